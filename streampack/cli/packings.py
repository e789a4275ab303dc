"""What each way of packing makes of the same documents, tried with the real packers.

In:  the tokens of documents, one after the other. Out: for each packing its packs, tokens and cut documents.
Invariants: whole documents, split where they are longer than a pack; the rows after the last full pack are not padded
but counted, since a lane continues its pack.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streampack.packing.making import AnyPacker, make_packer
from streampack.packing.options import Packing, PackingKind, Tail
from streampack.packing.policies import Boundary, BoundaryPolicy, has_best_fit


@dataclass(slots=True)
class Packed:
    """What one packing makes of the documents."""

    full_packs: int = 0
    tokens: int = 0
    """Those in full packs."""
    tail_tokens: int = 0
    """Those after the last full pack; of several trials added up."""
    split_documents: int = 0

    def merge(self, other: "Packed") -> None:
        self.full_packs += other.full_packs
        self.tokens += other.tokens
        self.tail_tokens += other.tail_tokens
        self.split_documents += other.split_documents

    def packs(self, seq_len: int) -> int:
        """All packs: the full ones, and those that the tails make together."""
        return self.full_packs + -(-self.tail_tokens // seq_len)

    def padding(self, seq_len: int) -> int:
        """Rows of the packs that hold no token."""
        return self.packs(seq_len) * seq_len - self.tokens - self.tail_tokens

    def efficiency(self, seq_len: int) -> float:
        """The share of the packs' rows that are tokens, not padding; 0 without packs."""
        return (self.tokens + self.tail_tokens) / max(self.packs(seq_len) * seq_len, 1)


class PackingTrial:
    """Every packing that the boundary allows, on the same documents."""

    def __init__(self, seq_len: int, boundary: Boundary) -> None:
        kinds = [kind for kind in PackingKind if kind is not PackingKind.BEST_FIT or has_best_fit(boundary)]
        self._packers = {kind: _packer(seq_len, kind) for kind in kinds}
        self._full = dict.fromkeys(kinds, 0)

    def feed(self, tokens: NDArray[np.integer]) -> None:
        """One document."""
        for kind, packer in self._packers.items():
            packer.feed(tokens)
            self._full[kind] += _count(iter(packer.pop, None))

    def finish(self) -> dict[PackingKind, Packed]:
        """What became of the documents."""
        found = {}
        for kind, packer in self._packers.items():
            packer.finish()
            full, counts = self._full[kind] + _count(iter(packer.pop, None)), packer.counts
            found[kind] = Packed(full, counts.tokens, counts.tail_tokens, counts.split_documents)
        return found


def _packer(seq_len: int, kind: PackingKind) -> AnyPacker:
    return make_packer(seq_len=seq_len, boundary=BoundaryPolicy.MASK, packing=Packing(kind, tail=Tail.DROP))


def _count(packs: Iterable[object]) -> int:
    return sum(1 for _ in packs)
