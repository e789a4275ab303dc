"""What a run of several sources must hand out, worked out slowly from the rules, and its ranks, by hand.

`Mixture` shares no code with the product but the hash: documents of a lane come from `jobs.lane_texts`, which reads
shards with tarfile; the source of a pack, where a stage begins and how rows are cut is counted out in plain Python.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import torch.distributed.checkpoint as dcp

import streampack
from streampack.hashing import Purpose, hash_name, hash_words
from streampack.state.joining import to_json
from streampack.testing import ByteTokenizer
from support.arguments import packed_dataset
from support.jobs import LANES, NAMES, Corpus, lane_texts, tokens_of

Pack = tuple[int, tuple[tuple[int, ...], ...]]
"""The index of its source; its tokens, labels, positions and segments."""
Packs = dict[int, Pack]
"""By global number."""
Row = tuple[int, int]
"""A token and its label."""


# --- what must come


def plastic() -> tuple[int, int]:
    """1/r and 1/r**2 of 2**64, odd, for the real r with r**3 = r + 1."""
    with localcontext(prec=60):
        r = Decimal("1.3247")
        for _ in range(20):
            r -= (r**3 - r - 1) / (3 * r**2 - 1)
        return int(2**64 / r) | 1, int(2**64 / r**2) | 1


STEP, SHIFT = plastic()


def source_at(weights: Mapping[int, Fraction], lane: int, k: int) -> int:
    """The source whose interval of [0, 1) has the point of a lane's pack number k of a stage."""
    place = Fraction((k * STEP + lane * SHIFT) % 2**64, 2**64) * sum(weights.values())
    for source, weight in sorted(weights.items()):
        if place < weight:
            return source
        place -= weight
    raise AssertionError("a point is in an interval")


@dataclass(frozen=True)
class Cut:
    """How the rows of a stage become packs."""

    seq_len: int = 32
    boundary: str = "mask"
    packing: str = "wrap"

    def changed(self, stage: streampack.Stage) -> "Cut":
        given = {name: getattr(stage, name) for name in ("seq_len", "boundary", "packing")}
        return Cut(**{name: getattr(self, name) if value is None else value for name, value in given.items()})


class LaneOfSource:
    """The documents of a source in a lane, one row after the other."""

    def __init__(self, documents: Iterator[list[int]]) -> None:
        self._documents = documents
        self._next = next(documents, None)
        self._rest: list[int] = []
        """Tokens of the document that is under way."""

    @property
    def is_over(self) -> bool:
        """Whether no row is left."""
        return self._next is None and not self._rest

    def _rows(self, cut: Cut) -> list[Row]:
        """The rows of the document that is under way; of the next one, where there is none."""
        if not self._rest and self._next is not None:
            self._rest, self._next = self._next, next(self._documents, None)
        rows = list(itertools.pairwise(self._rest))
        if cut.boundary != "trim" and self._rest:
            joined = cut.boundary == "keep" and self._next is not None
            rows.append((self._rest[-1], self._next[0] if joined and self._next else -100))
        return rows

    def pack(self, cut: Cut) -> tuple[tuple[int, ...], ...] | None:
        """The next pack that trains something; None: the source has no more."""
        rows, segments, positions = list[Row](), list[int](), list[int]()
        number, is_whole = 0, False
        while len(rows) < cut.seq_len and (document := self._rows(cut)):
            free = cut.seq_len - len(rows)
            if cut.packing == "next_fit" and rows and len(document) > free:
                break
            part = document[:free]
            number += 1
            rows += part
            segments += [number] * len(part)
            positions += range(len(part))
            is_whole = len(part) == len(document)
            self._rest = [] if is_whole else self._rest[len(part) :]
        if not rows:
            return None
        if cut.packing == "next_fit" and cut.boundary == "keep" and is_whole:
            rows[-1] = rows[-1][0], -100  # the next document is not in this pack
        if all(label == -100 for _, label in rows):
            return self.pack(cut)
        padding = cut.seq_len - len(rows)
        tokens, labels = zip(*rows, *[(ByteTokenizer.pad_id, -100)] * padding, strict=True)
        return tokens, labels, (*positions, *range(padding)), (*segments, *[0] * padding)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A run of several sources."""

    corpora: Mapping[str, Corpus]
    stages: Sequence[streampack.Stage]
    """The sources that they add are of `corpora`, by name."""
    max_epochs: Mapping[str, int] = field(default_factory=dict)
    cut: Cut = Cut()
    shuffle: Any = "shards"
    seed: int = 0
    num_lanes: int = LANES

    def dataset(self, **changes: Any) -> streampack.PackedDataset:
        added = {name for stage in self.stages for name in stage.sources or ()}
        given = {"stages": self.stages, "num_lanes": self.num_lanes, "shuffle": self.shuffle, "seed": self.seed}
        data = {name: self.source(name) for name in self.corpora if name not in added}
        return packed_dataset(data, **{**vars(self.cut), **given, **changes})

    def source(self, name: str) -> streampack.Source:
        return streampack.Source(self.corpora[name].urls, max_epochs=self.max_epochs.get(name))

    @property
    def names(self) -> list[str]:
        """In the order of the run."""
        added = [name for stage in self.stages for name in stage.sources or ()]
        return [*(name for name in self.corpora if name not in added), *added]

    def begins(self) -> list[int]:
        """The global pack with which each stage begins."""
        found, tokens, cut = [0], 0, self.cut.changed(self.stages[0])
        for stage in self.stages[1:]:
            at = stage.at_packs
            if at is None:
                assert stage.at_tokens is not None
                at = found[-1] + -((tokens - int(stage.at_tokens)) // cut.seq_len)
            first = -(-int(at) // self.num_lanes) * self.num_lanes
            tokens += (first - found[-1]) * cut.seq_len
            found.append(first)
            cut = cut.changed(stage)
        return found

    def texts(self, name: str, lane: int, epoch: int) -> list[str]:
        """What a lane reads in an epoch of a source."""
        seed = hash_words(Purpose.SOURCE, self.seed, hash_name(name))
        order: dict[str, Any] = {"num_lanes": self.num_lanes, "seed": seed, "shuffle": self.shuffle}
        return lane_texts(self.corpora[name], lane, epoch, **order)

    def _documents(self, name: str, lane: int) -> Iterator[list[int]]:
        for epoch in range(self.max_epochs.get(name, 1000)):  # the end of 1000 says that a lane is empty
            yield from map(tokens_of, self.texts(name, lane, epoch))

    def _lane(self, lane: int) -> Iterator[Pack | None]:
        """None: no source of the stage has a pack; a later stage may have one for the lane."""
        names, begins = self.names, [first // self.num_lanes for first in self.begins()]
        sources = [LaneOfSource(self._documents(name, lane)) for name in names]
        exhausted, cut, weights = set[int](), self.cut, dict[str, float]()
        for index, stage in enumerate(self.stages):
            cut, weights = cut.changed(stage), dict(stage.weights or weights or dict.fromkeys(self.corpora, 1))
            last = begins[index + 1] if index + 1 < len(begins) else 10**9
            for k in range(last - begins[index]):
                given: Pack | None = None
                while given is None:
                    live = {names.index(name): Fraction(weight) for name, weight in weights.items()}
                    live = {source: weight for source, weight in live.items() if source not in exhausted and weight}
                    if not live:
                        break
                    source = source_at(live, lane, k)
                    pack = sources[source].pack(cut)
                    if pack is not None:
                        given = source, pack
                    if sources[source].is_over:
                        exhausted.add(source)
                yield given

    def packs(self, count: int) -> Packs:
        """The first global packs; in a stage whose sources are exhausted in a lane, it gives none."""
        lanes = [self._lane(lane) for lane in range(self.num_lanes)]
        found = ((number, next(lanes[number % self.num_lanes], None)) for number in range(count))
        return {number: pack for number, pack in found if pack is not None}


def packs_of(batch: Mapping[str, Any]) -> Packs:
    """The packs of a batch with "pack_numbers"; fillers left out."""
    numbers, sources = batch["pack_numbers"].tolist(), batch["source_ids"].tolist()
    packs = zip(*(map(tuple, batch[name].tolist()) for name in NAMES), strict=True)
    return {number: (source, pack) for number, source, pack in zip(numbers, sources, packs, strict=True) if source >= 0}


def assert_packs(found: Packs, wanted: Packs) -> None:
    """They are the same; else fail with the first one that differs."""
    for number in sorted(found.keys() | wanted.keys()):
        assert number in wanted, f"global pack {number} is more than the run has"
        assert number in found, f"global pack {number} is missing"
        (source, pack), (right_source, right_pack) = found[number], wanted[number]
        assert source == right_source, f"global pack {number} is of source {source}, not {right_source}"
        for name, got, right in zip(NAMES, pack, right_pack, strict=True):
            assert got == right, f"global pack {number}, {name}"


# --- running


class Ranks:
    """The ranks of a run, by hand, one after the other; workers are forked from this process."""

    def __init__(
        self, data: streampack.PackedDataset, ranks: int = 1, workers: int = 0, batch_size: int = 1, state: Any = None
    ) -> None:
        """`state`: a joined one, or the folder of a checkpoint of torch."""
        self.loaders = [
            streampack.PackedDataLoader(
                *(data, batch_size),
                num_workers=workers,
                dp_rank=rank,
                dp_size=ranks,
                provenance=True,
                multiprocessing_context="fork",
            )
            for rank in range(ranks)
        ]
        for loader in self.loaders if state is not None else []:
            loader.load_checkpoint(state) if isinstance(state, Path) else loader.load_state_dict(state)
        self.counts = [0] * ranks

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for loader in self.loaders:
            loader.close()

    def run(self, batches: int | None = None) -> Packs:
        """So many batches of each rank; None: up to the end."""
        found: Packs = {}
        for rank, loader in enumerate(self.loaders):
            for batch in itertools.islice(loader, batches):
                self.counts[rank] += 1
                given = packs_of(batch)
                assert not found.keys() & given.keys(), "a pack twice"
                found |= given
        return found

    def state(self) -> dict[str, Any]:
        """That of all ranks."""
        return streampack.merge_state_dicts(loader.state_dict() for loader in self.loaders)


Journey = Callable[[dict[str, Any], Path], Any]
"""A state on its way from one job to the next; a folder for what is written."""


def by_json(state: dict[str, Any], folder: Path) -> Any:
    return json.loads(to_json(state))


def by_checkpoint(state: dict[str, Any], folder: Path) -> Any:
    dcp.save({"loader": state}, checkpoint_id=folder, no_dist=True)  # type: ignore[attr-defined]
    return folder


JOURNEYS: dict[str, Journey] = {"plain": lambda state, _: state, "json": by_json, "dcp": by_checkpoint}
