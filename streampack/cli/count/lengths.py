"""A histogram of lengths that takes the same room however many it counts.

    length     0    1    2..3    4..7    8..15   ...    an octave: from a power of two to the next
    bins       1    8     8       8        8            of equal ratio, 9 % from one to the next

In:  lengths, one at a time, and other histograms. Out: mean, percentiles, counts by octave.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BINS_PER_OCTAVE = 8
"""A bin's ends are 9 % apart, so a percentile is right to 4.5 %."""
_NUM_BINS = 1 + 32 * BINS_PER_OCTAVE


@dataclass(slots=True)
class Lengths:
    """How many documents are how long, in bins of equal ratio."""

    documents: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_NUM_BINS, dtype=np.int64))
    """int64 [bins]; bin 0 is length 0, bin 1 + i the lengths from 2**(i/8) to below 2**((i+1)/8)."""
    units: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_NUM_BINS, dtype=np.int64))
    """int64 [bins]: their lengths added up."""
    longest: int = 0

    def add(self, length: int) -> None:
        index = 1 + int(math.log2(length) * BINS_PER_OCTAVE) if length else 0
        self.documents[index] += 1
        self.units[index] += length
        self.longest = max(self.longest, length)

    def merge(self, other: "Lengths") -> None:
        self.documents += other.documents
        self.units += other.units
        self.longest = max(self.longest, other.longest)

    @property
    def mean(self) -> float:
        return float(self.units.sum()) / max(int(self.documents.sum()), 1)

    def percentile(self, share: float) -> int:
        """The length that `share` (0 to 1) of the documents do not exceed, to about 4.5 %."""
        below = np.cumsum(self.documents)
        if not below[-1]:
            return 0
        index = int(np.searchsorted(below, share * below[-1]))
        return min(round(2 ** ((index - 0.5) / BINS_PER_OCTAVE)), self.longest) if index else 0

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
