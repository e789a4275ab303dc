"""What a shard holds, counted in one pass, and the tallies of shards added up.

A tally has the same size whatever it counted: lengths go into bins of equal ratio, and of documents and bad records
only a few are kept. Adding tallies up gives the same whatever the order.

How well documents pack is tried with the real packer, shard by shard; rows that do not fill a pack at a shard's end
are not padded there, but joined over all shards, as they are in a lane that reads one shard after the other.
"""

import bisect
import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack.corpus.partition import Piece
from streampack.lanes.pipeline import Pipeline
from streampack.packing.options import Overflow, PackingKind, Tail
from streampack.packing.packer import Packer
from streampack.packing.policies import BoundaryPolicy
from streampack.records import BadRecord, Document, Shard
from streampack.tar.codecs import is_compressed

BINS_PER_OCTAVE = 8
"""A bin's ends are 9 % apart, so a percentile is right to 4.5 %."""
_NUM_BINS = 1 + 32 * BINS_PER_OCTAVE
_KEPT = 5
_RANGE_BYTES = 4 * 2**20
_STEP_BYTES = 2**20
"""How often progress is told, in bytes of members."""


class Place(NamedTuple):
    """A document, by where it is."""

    shard: int
    sample: int
    record: int
    part: int
    key: str
    url: str


@dataclass(slots=True)
class Lengths:
    """How many documents are how long, in bins of equal ratio."""

    documents: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_NUM_BINS, dtype=np.int64))
    """int64 [bins]; bin 0 is length 0, bin 1 + i the lengths from 2**(i/8) to below 2**((i+1)/8)."""
    units: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_NUM_BINS, dtype=np.int64))
    """int64 [bins]: their lengths added up."""
    longest: int = 0

    def add(self, length: int) -> None:
        place = 1 + int(math.log2(length) * BINS_PER_OCTAVE) if length else 0
        self.documents[place] += 1
        self.units[place] += length
        self.longest = max(self.longest, length)

    def merge(self, other: "Lengths") -> None:
        self.documents += other.documents
        self.units += other.units
        self.longest = max(self.longest, other.longest)

    @property
    def mean(self) -> float:
        return float(self.units.sum()) / max(int(self.documents.sum()), 1)

    def percentile(self, share: float) -> int:
        """About the length that `share` of the documents do not exceed."""
        below = np.cumsum(self.documents)
        if not below[-1]:
            return 0
        place = int(np.searchsorted(below, share * below[-1]))
        return min(round(2 ** ((place - 0.5) / BINS_PER_OCTAVE)), self.longest) if place else 0

    def octaves(self) -> list[tuple[int, int, int, int]]:
        """(from, to, documents, lengths added up) for each power of two between the shortest and the longest."""
        used = np.flatnonzero(self.documents)
        if not used.size:
            return []
        rows = [(0, 0, int(self.documents[0]), 0)] if used[0] == 0 else []
        first = max(int(used[used > 0][0]) - 1, 0) // BINS_PER_OCTAVE if self.longest else 0
        last = (int(used[-1]) - 1) // BINS_PER_OCTAVE
        for octave in range(first, last + 1):
            bins = slice(1 + octave * BINS_PER_OCTAVE, 1 + (octave + 1) * BINS_PER_OCTAVE)
            counts = int(self.documents[bins].sum()), int(self.units[bins].sum())
            rows.append((2**octave, 2 ** (octave + 1) - 1, *counts))
        return rows


@dataclass(slots=True)
class Packed:
    """What one strategy makes of the documents."""

    full_packs: int = 0
    tokens: int = 0
    """In full packs."""
    tail_tokens: int = 0
    """Behind each shard's last full pack."""
    split_documents: int = 0

    def merge(self, other: "Packed") -> None:
        self.full_packs += other.full_packs
        self.tokens += other.tokens
        self.tail_tokens += other.tail_tokens
        self.split_documents += other.split_documents

    def packs(self, seq_len: int) -> int:
        """All packs, the joined tails among them."""
        return self.full_packs + -(-self.tail_tokens // seq_len)

    def efficiency(self, seq_len: int) -> float:
        """Tokens for each row of the packs; 0 where there are none."""
        return (self.tokens + self.tail_tokens) / max(self.packs(seq_len) * seq_len, 1)


@dataclass(slots=True)
class Tally:
    """What some shards hold."""

    samples: int = 0
    documents: int = 0
    text_bytes: int = 0
    tokens: int = 0
    bad_records: int = 0
    lengths: Lengths = field(default_factory=Lengths)
    longest: list[tuple[int, Place]] = field(default_factory=list)
    """The longest documents, longest first."""
    bad: list[tuple[Place, str]] = field(default_factory=list)
    """The first bad records, with what is wrong."""
    packed: dict[PackingKind, Packed] = field(default_factory=dict)

    def merge(self, other: "Tally") -> None:
        """Add what other shards hold."""
        self.samples += other.samples
        self.documents += other.documents
        self.text_bytes += other.text_bytes
        self.tokens += other.tokens
        self.bad_records += other.bad_records
        self.lengths.merge(other.lengths)
        self.longest = heapq.nsmallest(_KEPT, self.longest + other.longest, key=_longest_first)
        self.bad = heapq.nsmallest(_KEPT, self.bad + other.bad)
        for packing, packed in other.packed.items():
            self.packed.setdefault(packing, Packed()).merge(packed)


def tally_shard(
    pipeline: Pipeline, index: int, shard: Shard, *, has_tokens: bool, tell: Callable[[int], None]
) -> Tally:
    """What one shard holds.

    Args:
        pipeline: reads and encodes; its `on_error` decides on bad records.
        index: of the shard in the list.
        shard: the shard.
        has_tokens: whether documents are tokenized (or tokens already), measured in tokens and packed.
        tell: called now and then with how many more of the shard's bytes are done; it may raise to stop.

    Raises:
        RecordError: a bad record, with on_error="raise".
        ShardError: the shard cannot be read.
    """
    tally, told, unheard = Tally(), 0, 0
    jumps = is_compressed(shard.url)  # positions are ordinals there
    packers = {packing: _packer(pipeline, packing) for packing in PackingKind} if has_tokens else {}
    full = dict.fromkeys(packers, 0)
    piece = Piece(index, 0, shard.size, whole=True)
    for sample in pipeline.samples(shard, piece, resume=-1, max_range_bytes=_RANGE_BYTES):
        tally.samples += 1
        position = sample.position
        unheard += sum(sample.sizes.values())
        if unheard >= _STEP_BYTES:
            reached = told if jumps else position
            tell(reached - told)
            told, unheard = reached, 0
        for item in pipeline.documents.read(
            sample, url=shard.url, shard_name=shard.name, shard_index=index, epoch=0
        ):
            part = 0 if isinstance(item, BadRecord) else item.part
            place = Place(index, position, item.record, part, sample.key, shard.url)
            if isinstance(item, BadRecord):
                if pipeline.on_error == "raise":
                    raise item.error
                tally.bad_records += 1
                if len(tally.bad) < _KEPT:
                    tally.bad.append((place, str(item.error)))
                continue
            length = _count_text(tally, item)
            if has_tokens:
                tokens, _ = pipeline.encode(item)
                length = len(tokens)
                tally.tokens += length
                for packing, packer in packers.items():
                    packer.feed(tokens)
                    full[packing] += sum(1 for _ in iter(packer.pop, None))
            tally.lengths.add(length)
            _keep_longest(tally, length, place)
    for packing, packer in packers.items():
        packer.finish()
        full[packing] += sum(1 for _ in iter(packer.pop, None))
        counts = packer.counts
        tally.packed[packing] = Packed(full[packing], counts.tokens, counts.tail_tokens, counts.split_documents)
    tell(shard.size - told)
    return tally


def _packer(pipeline: Pipeline, packing: PackingKind) -> Packer:
    return Packer(
        seq_len=pipeline.seq_len,
        boundary=BoundaryPolicy.MASK,
        packing=packing,
        overflow=Overflow.SPLIT,
        tail=Tail.DROP,
    )


def _count_text(tally: Tally, document: Document) -> int:
    """Count the document; its bytes of UTF-8, 0 where it is tokens."""
    tally.documents += 1
    size = 0 if document.text is None else len(document.text.encode("utf-8", "surrogatepass"))
    tally.text_bytes += size
    return size


def _keep_longest(tally: Tally, length: int, place: Place) -> None:
    kept = tally.longest
    if len(kept) < _KEPT or length > kept[-1][0]:
        bisect.insort(kept, (length, place), key=_longest_first)
        del kept[_KEPT:]


def _longest_first(entry: tuple[int, Place]) -> tuple[int, Sequence[object]]:
    return -entry[0], entry[1]
