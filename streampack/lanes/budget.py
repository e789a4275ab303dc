"""How much memory the lanes of a worker need and get, known before the run.

In:    a run's arguments and shards; how many lanes and workers a rank has.
Out:   bytes; or a `ConfigError` that says how many are needed and what to do.
"""

import dataclasses
from typing import NamedTuple

from streampack.corpus.epochs import Corpus
from streampack.corpus.partition import AUTO_LANES
from streampack.errors import ConfigError
from streampack.lanes.pipeline import Pipeline

MIN_SHARE_BYTES = 64 * 2**10
"""What a lane needs besides its windows."""
_GOOD_SHARE_BYTES = 2**20
"""What a lane gets besides its windows by default, where it can be had: shards that are read whole are then read in
large ranges."""
DEFAULT_BYTES = 512 * 2**20
MOST_DEFAULT_BYTES = 4 * 2**30
_PER_BLOCK_BYTE = 1.15
"""Bytes that are asked for, for a byte of a block."""


class WindowBytes(NamedTuple):
    """About how many bytes a lane holds for its windows."""

    shuffle: int = 0
    packing: int = 0


def window_bytes(pipeline: Pipeline, corpus: Corpus) -> WindowBytes:
    """What a lane of a run holds.

    Of a shuffle it is the records of one window, up to its bound, and the bytes of a block, or of all blocks of the
    next window where some of the storage is remote. What is larger than a block comes besides, one at a time: the last
    record of a window, and the member that it is in.
    """
    blocks = corpus.window * corpus.block_bytes
    if not blocks:
        return WindowBytes(0, pipeline.window_bytes)
    text = corpus.window_bytes(members_expand=pipeline.documents.field.may_be_compressed)
    fetched = blocks if corpus.table.is_remote else corpus.block_bytes
    return WindowBytes(text + int(_PER_BLOCK_BYTE * fetched), pipeline.window_bytes)


def worker_bytes(
    asked: int | None, pipeline: Pipeline, corpus: Corpus, *, num_lanes: int, num_workers: int = 1
) -> int:
    """The bytes that each worker of a rank may hold for its lanes.

    Args:
        asked: `Limits.buffer_bytes`. None: 512 MiB, or what the lanes need where that is more, up to 4 GiB.
        pipeline: how the lanes are read.
        corpus: what they read.
        num_lanes: of the rank; they are divided over the workers.
        num_workers: 0 counts as 1; of more than lanes, only so many as lanes count.

    Raises:
        ConfigError: that is too little; it says how many bytes these lanes and workers need.
    """
    windows = window_bytes(pipeline, corpus)
    budget_bytes = asked
    if budget_bytes is None:
        needed = _of_rank(num_lanes, num_workers, MIN_SHARE_BYTES + sum(windows))
        if needed > MOST_DEFAULT_BYTES:
            raise ConfigError(_too_much(pipeline, corpus, num_lanes, num_workers, windows, needed))
        good = _of_rank(num_lanes, num_workers, _GOOD_SHARE_BYTES + sum(windows))
        budget_bytes = min(max(DEFAULT_BYTES, good if any(windows) else needed), MOST_DEFAULT_BYTES)
    check_budget(budget_bytes=budget_bytes, num_lanes=num_lanes, num_workers=num_workers, windows=windows)
    return budget_bytes // max(min(num_workers, num_lanes), 1)


def _of_rank(num_lanes: int, num_workers: int, lane_bytes: int) -> int:
    """Bytes of a rank whose workers all have as much as the one with the most lanes needs."""
    num_workers = max(min(num_workers, num_lanes), 1)
    return -(-num_lanes // num_workers) * num_workers * lane_bytes


def _too_much(
    pipeline: Pipeline, corpus: Corpus, num_lanes: int, num_workers: int, windows: WindowBytes, needed: int
) -> str:
    """Why the default budget is not enough, and what to do."""
    ranks = max(corpus.num_lanes // num_lanes, 1)
    fitting = [
        lanes
        for lanes in AUTO_LANES
        if lanes < corpus.num_lanes
        and lanes % ranks == 0
        and _of_rank(
            lanes // ranks,
            num_workers,
            MIN_SHARE_BYTES + sum(window_bytes(pipeline, dataclasses.replace(corpus, num_lanes=lanes))),
        )
        <= MOST_DEFAULT_BYTES
    ]
    fewer = f"num_lanes={fitting[-1]}, the most of the automatic choices that fit" if fitting else "fewer lanes"
    return (
        f"the {num_lanes} lanes of this rank need {needed:,} bytes, {_held(windows)} and 64 KiB for each of them, and "
        f"without limits.buffer_bytes a rank takes at most 4 GiB. Set limits.buffer_bytes to at least {needed:,}, or "
        f"{', or '.join(_remedies(windows, fewer))}."
    )


def _held(windows: WindowBytes) -> str:
    return ", ".join(f"{size:,} bytes for the {name} window" for name, size in windows._asdict().items() if size)


def _remedies(windows: WindowBytes, fewer: str = "fewer lanes (num_lanes)") -> list[str]:
    """What to do besides a larger budget; `fewer` lanes."""
    remedies = ["use more ranks"]
    smaller = ["a smaller Packing(window=...)"] if windows.packing else []
    if windows.shuffle:
        smaller.append("a smaller Shuffle(block_bytes=..., window=...)")
    if smaller:
        remedies.append(f"begin a new run with {', '.join([fewer, *smaller])}")
    if windows.shuffle:
        remedies.append('shuffle="shards"')
    return remedies


def check_budget(*, budget_bytes: int, num_lanes: int, num_workers: int = 1, windows: WindowBytes) -> None:
    """Refuse a budget with which a lane has less than 64 KiB, and what its windows take.

    Args:
        budget_bytes: of the rank; it is divided over the workers.
        num_lanes: of the rank; they are divided over the workers, too.
        num_workers: 0 counts as 1.
        windows: what a lane holds for its windows, besides.

    Raises:
        ConfigError: it says how many bytes these lanes and workers need.
    """
    num_workers = max(min(num_workers, num_lanes), 1)
    most_lanes, part_bytes = -(-num_lanes // num_workers), budget_bytes // num_workers
    needed = most_lanes * (MIN_SHARE_BYTES + sum(windows))
    if part_bytes >= needed:
        return
    held = _held(windows)
    each = f" ({needed:,} for each of {num_workers} workers)" if num_workers > 1 else ""
    raise ConfigError(
        f"limits.buffer_bytes leaves a worker {part_bytes:,} bytes for {most_lanes} lanes, less than 64 KiB each"
        f"{f' and {held} of each' if held else ''}. Set limits.buffer_bytes to at least "
        f"{needed * num_workers:,}{each}, or {', or '.join(_remedies(windows))}."
    )
