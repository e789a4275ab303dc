"""How much memory the lanes of a worker need and get, known before the run.

In:    a run's arguments and shards; how many lanes and workers a rank has.
Out:   bytes; or a `ConfigError` that says how many are needed and what to do.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from streampack.corpus.epochs import Corpus
from streampack.corpus.partition import AUTO_LANES
from streampack.errors import ConfigError
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.run import Run

STREAM_BYTES = 48 * 2**10
"""What reading a source in a lane takes besides ranges and tokens: the readers' objects, about 30 KiB, and the samples
that they are in."""
MIN_SHARE_BYTES = STREAM_BYTES + 64 * 2**10
"""What a lane needs for a source, besides the windows."""
_SHARE = f"{MIN_SHARE_BYTES // 2**10} KiB"
_GOOD_SHARE_BYTES = 2**20
"""What a lane gets for a source by default besides the windows, where it can be had: shards that are read whole are
then read in large ranges."""
DEFAULT_BYTES = 512 * 2**20
MOST_DEFAULT_BYTES = 4 * 2**30
_PER_BLOCK_BYTE = 1.15
"""Bytes that are asked for, for a byte of a block."""


class LaneNeeds(NamedTuple):
    """About how many bytes a lane needs: those of its windows, of all sources that it reads, and a share for each."""

    shuffle: int = 0
    packing: int = 0
    sources: int = 1
    """How many sources it reads at a time."""

    @classmethod
    def of(cls, run: Run) -> "LaneNeeds":
        """Those of the stage that needs most."""
        stages = range(len(run.schedule.stages))
        return max((cls._of_stage(run, stage) for stage in stages), key=lambda each: each.bytes)

    @classmethod
    def _of_stage(cls, run: Run, stage: int) -> "LaneNeeds":
        read = [dict(each.shares.weights) for each in run.schedule.stages[: stage + 1]]
        needs = []
        for index in read[-1]:
            source = run.sources[index]
            pipelines = [source.pipelines[before] for before, sources in enumerate(read) if index in sources]
            needs.append(source_needs(pipelines, source.corpus))
        return cls(*map(sum, zip(*needs, strict=True)))

    @property
    def windows(self) -> int:
        """Bytes of the windows."""
        return self.shuffle + self.packing

    @property
    def bytes(self) -> int:
        """The least that a lane can do with."""
        return self.sources * MIN_SHARE_BYTES + self.windows


def packing_bytes(pipelines: Sequence[Pipeline]) -> int:
    """What the packing windows of a source take in the last of the stages that read it.

    In the windows of an earlier one the lanes may be inside still.
    """
    return max(pipeline.window_bytes for pipeline in pipelines)


def source_needs(pipelines: Sequence[Pipeline], corpus: Corpus) -> LaneNeeds:
    """What a lane needs for one source, in the last of the stages that read it, whose pipelines these are.

    Of a shuffle it is the records of one window, up to its bound, and the bytes of a block, or of all blocks of the
    next window where some of the storage is remote. What is larger than a block comes besides, one at a time: the last
    record of a window, and the member that it is in.
    """
    if not corpus.window:
        return LaneNeeds(0, packing_bytes(pipelines))
    corpus = max(corpus.cuts, key=lambda each: each.block_bytes)
    blocks = corpus.window * corpus.block_bytes
    text = corpus.window_bytes(members_expand=pipelines[-1].documents.field.may_be_compressed)
    fetched = blocks if corpus.table.is_remote else corpus.block_bytes
    return LaneNeeds(text + int(_PER_BLOCK_BYTE * fetched), packing_bytes(pipelines))


def worker_bytes(asked: int | None, run: Run, *, num_lanes: int, num_workers: int = 1) -> int:
    """The bytes that each worker of a rank may hold for its lanes.

    Args:
        asked: `Limits.buffer_bytes`. None: 512 MiB, or what the lanes need where that is more, up to 4 GiB.
        run: what is read.
        num_lanes: of the rank; they are divided over the workers.
        num_workers: 0 counts as 1; of more than lanes, only so many as lanes count.

    Raises:
        ConfigError: that is too little; it says how many bytes these lanes and workers need.
    """
    needs = LaneNeeds.of(run)
    budget_bytes = asked
    if budget_bytes is None:
        needed = _of_rank(num_lanes, num_workers, needs.bytes)
        if needed > MOST_DEFAULT_BYTES:
            raise ConfigError(_too_much(run, num_lanes, num_workers, needs, needed))
        good = _of_rank(num_lanes, num_workers, needs.sources * _GOOD_SHARE_BYTES + needs.windows)
        budget_bytes = min(max(DEFAULT_BYTES, good if needs.windows else needed), MOST_DEFAULT_BYTES)
    check_budget(budget_bytes=budget_bytes, num_lanes=num_lanes, num_workers=num_workers, needs=needs)
    return budget_bytes // max(min(num_workers, num_lanes), 1)


def _of_rank(num_lanes: int, num_workers: int, lane_bytes: int) -> int:
    """Bytes of a rank whose workers all have as much as the one with the most lanes needs."""
    num_workers = max(min(num_workers, num_lanes), 1)
    return -(-num_lanes // num_workers) * num_workers * lane_bytes


def _too_much(run: Run, num_lanes: int, num_workers: int, needs: LaneNeeds, needed: int) -> str:
    """Why the default budget is not enough, and what to do."""
    ranks = max(run.num_lanes // num_lanes, 1)
    fitting = [
        lanes
        for lanes in AUTO_LANES
        if lanes < run.num_lanes
        and lanes % ranks == 0
        and _of_rank(lanes // ranks, num_workers, LaneNeeds.of(_with_lanes(run, lanes)).bytes) <= MOST_DEFAULT_BYTES
    ]
    fewer = f"num_lanes={fitting[-1]}, the most of the automatic choices that fit" if fitting else "fewer lanes"
    share = _SHARE if needs.sources == 1 else f"{_SHARE} of each of {needs.sources} sources"
    return (
        f"the {num_lanes} lanes of this rank need {needed:,} bytes, {_held(needs)} and {share} for each of them, and "
        f"without limits.buffer_bytes a rank takes at most 4 GiB. Set limits.buffer_bytes to at least {needed:,}, or "
        f"{', or '.join(_remedies(needs, fewer))}."
    )


def _with_lanes(run: Run, num_lanes: int) -> Run:
    """The run as it would need memory with so many lanes."""
    sources = (each._replace(corpus=dataclasses.replace(each.corpus, num_lanes=num_lanes)) for each in run.sources)
    return run._replace(sources=tuple(sources))


def _held(needs: LaneNeeds) -> str:
    plural = "s" if needs.sources > 1 else ""
    held = {"shuffle": needs.shuffle, "packing": needs.packing}
    return ", ".join(f"{size:,} bytes for the {name} window{plural}" for name, size in held.items() if size)


def _remedies(needs: LaneNeeds, fewer: str = "fewer lanes (num_lanes)") -> list[str]:
    """What to do besides a larger budget; `fewer` lanes."""
    remedies = ["use more ranks"] if needs.sources == 1 else ["use more ranks, or fewer sources at a time"]
    smaller = ["a smaller Packing(window=...)"] if needs.packing else []
    if needs.shuffle:
        smaller.append("a smaller Shuffle(block_bytes=..., window=...)")
    if smaller:
        remedies.append(f"begin a new run with {', '.join([fewer, *smaller])}")
    if needs.shuffle:
        remedies.append('shuffle="shards"')
    return remedies


def check_budget(*, budget_bytes: int, num_lanes: int, num_workers: int = 1, needs: LaneNeeds) -> None:
    """Refuse a budget with which a lane has less than 112 KiB for each source, and what its windows take.

    Args:
        budget_bytes: of the rank; it is divided over the workers.
        num_lanes: of the rank; they are divided over the workers, too.
        num_workers: 0 counts as 1.
        needs: of a lane.

    Raises:
        ConfigError: it says how many bytes these lanes and workers need.
    """
    num_workers = max(min(num_workers, num_lanes), 1)
    most_lanes, part_bytes = -(-num_lanes // num_workers), budget_bytes // num_workers
    needed = most_lanes * needs.bytes
    if part_bytes >= needed:
        return
    held = _held(needs)
    each = f" ({needed:,} for each of {num_workers} workers)" if num_workers > 1 else ""
    share = f"{_SHARE} each" if needs.sources == 1 else f"{_SHARE} for each of {needs.sources} sources in each"
    raise ConfigError(
        f"limits.buffer_bytes leaves a worker {part_bytes:,} bytes for {most_lanes} lanes, less than {share}"
        f"{f' and {held} of each' if held else ''}. Set limits.buffer_bytes to at least "
        f"{needed * num_workers:,}{each}, or {', or '.join(_remedies(needs))}."
    )
