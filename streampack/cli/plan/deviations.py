"""How far the packs of a stage are from the shares asked for: counted with the function that a run uses.

In:  shares, the number of lanes, a number of packs. Out: the largest deviations, in packs.
Invariants: each is the largest over every prefix, not over some of them: the count of a source is ahead most after one
of its packs, and lags most before one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streampack.corpus.shares import Shares

_LANE_ROUNDS = 1 << 16
"""Lanes are followed for up to so many rounds; some of them where all would be more packs than asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviations:
    """Of the source that is farthest from its share, in packs."""

    packs: int
    """So many were looked at."""
    prefix: float
    """In the packs up to any one, in the global order."""
    round: float
    """In any round."""
    lane: float
    """In the packs of any lane up to any one."""


def deviations(shares: Shares, num_lanes: int, packs: int) -> Deviations:
    """Of the first `packs` packs of a stage, as far as they are full rounds; of lanes, some over more rounds."""
    rounds = max(packs // num_lanes, 1)
    some = np.unique(np.linspace(0, num_lanes - 1, min(num_lanes, max(packs // _LANE_ROUNDS, 1))).astype(np.int64))
    order = shares.sources(np.arange(num_lanes)[None, :], np.arange(rounds)[:, None])
    in_lanes = shares.sources(some[:, None], np.arange(max(packs // len(some), 1))[None, :])
    wanted = np.array([shares.share(source) for source in range(max(index for index, _ in shares.weights) + 1)])
    return Deviations(
        packs=order.size,
        prefix=_of_prefixes(order.reshape(1, -1), wanted),
        round=_of_rounds(order, wanted),
        lane=_of_prefixes(in_lanes, wanted),
    )


def _of_rounds(order: NDArray[np.int64], wanted: NDArray[np.float64]) -> float:
    rounds, num_lanes = order.shape
    of_both = order + np.arange(rounds)[:, None] * len(wanted)
    counts = np.bincount(of_both.ravel(), minlength=rounds * len(wanted)).reshape(rounds, len(wanted))
    return float(np.abs(counts - num_lanes * wanted).max())


def _of_prefixes(lines: NDArray[np.int64], wanted: NDArray[np.float64]) -> float:
    """The largest deviation in any prefix of any line [n, packs]."""
    num_lines, packs = lines.shape
    by_source = np.argsort(lines.ravel().astype(np.uint16), kind="stable")  # within a source: by line, by pack
    line, pack = np.divmod(by_source, packs)
    source = lines.ravel()[by_source]
    counts = np.bincount(source * num_lines + line, minlength=num_lines * len(wanted))
    before = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)  # of that source in that line
    ahead = before + 1 - (pack + 1) * wanted[source]
    behind = pack * wanted[source] - before
    at_end = packs * wanted[:, None] - counts.reshape(len(wanted), num_lines)
    return float(max(ahead.max(), behind.max(), at_end.max()))
