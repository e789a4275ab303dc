"""Which source a pack of a lane is of: arithmetic on integers, without a table and without state.

In:    the weights of the sources; a lane, and how many packs it has given since its stage began.
Out:   the index of a source.
Never: a choice that depends on ranks, workers or packs before it.

    u(lane, k) = (k * STEP + lane * SHIFT) mod 2**64       a point of [0, 2**64)
    sources    |====== web ======|== code ==|=|            intervals as wide as the shares, in the order of the sources
    of an exhausted source the point is looked up among the others alone, so that they share in proportion

STEP and SHIFT are 1/r and 1/r**2 of 2**64, r = 1.3247... the plastic number (r**3 = r + 1): the two-dimensional
Kronecker sequence of Martin Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences" (2018). Its points lie
evenly along a lane, across the lanes of a round, and in the global order.
"""

from bisect import bisect_right
from collections.abc import Collection, Sequence
from fractions import Fraction
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

STEP = 0xC13FA9A902A6328F
SHIFT = 0x91E10DA5C79E7B1D
_END = 2**64
DEFAULT = "default"
"""The name of the only source of a run whose data have no names; errors do not mention it."""


class Shares(NamedTuple):
    """Sources with their parts of [0, 2**64); those of no weight are left out."""

    weights: tuple[tuple[int, Fraction], ...]
    """(index of the source, its weight), in the order of the intervals."""
    ends: tuple[int, ...]
    """Of each, where its interval ends; the last one is 2**64."""

    @classmethod
    def of(cls, weights: Sequence[float | Fraction]) -> "Shares":
        """`weights` [S]: of each source, 0 or more, finite, at least one of them above 0; they need not add up to 1."""
        return cls._of(tuple((index, Fraction(weight)) for index, weight in enumerate(weights) if weight))

    @classmethod
    def _of(cls, weights: tuple[tuple[int, Fraction], ...]) -> "Shares":
        sums = list(accumulate(weight for _, weight in weights))
        return cls(weights, tuple(int(_END * part / sums[-1]) for part in sums))

    def without(self, exhausted: Collection[int]) -> "Shares | None":
        """The shares of the other sources, in proportion; None: there is none."""
        live = tuple(each for each in self.weights if each[0] not in exhausted)
        return self._of(live) if live else None

    def source(self, lane: int, pack: int) -> int:
        """The source of a lane's pack; `pack` counts from the stage's first round."""
        if len(self.ends) == 1:
            return self.weights[0][0]
        return self.weights[bisect_right(self.ends, point(lane, pack))][0]

    def sources(self, lanes: NDArray[np.integer], packs: NDArray[np.integer]) -> NDArray[np.int64]:
        """The same for many packs: both [n] or of shapes that broadcast."""
        lanes, packs = lanes.astype(np.uint64), packs.astype(np.uint64)
        points = packs * np.uint64(STEP) + lanes * np.uint64(SHIFT)
        inner = np.array(self.ends[:-1], dtype=np.uint64)
        return np.array([index for index, _ in self.weights])[np.searchsorted(inner, points, side="right")]

    def share(self, source: int) -> float:
        """The share of a source, from 0 to 1."""
        total = sum(weight for _, weight in self.weights)
        return float(sum(weight for index, weight in self.weights if index == source) / total)


def point(lane: int, pack: int) -> int:
    """Where a lane's pack stands in [0, 2**64)."""
    return (pack * STEP + lane * SHIFT) % _END
