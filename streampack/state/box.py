"""The lanes as a box, in which the lanes of any rank of any number of ranks are one chunk. Arithmetic on integers only.

In:    L lanes; of R ranks, R dividing L, rank r, which owns the lanes r, r + R, r + 2R, ...
Out:   the shape of the box, where each lane is in it, and which part of it the rank owns.
Never: an order of the lanes that depends on R.

    L = 12 = 2**2 * 3    an axis for each prime power: shape (4, 3)
    lane l               is at l % 4, its binary digits reversed, on the first axis and at l % 3 on the second
    rank 1 of 2          owns what is odd: reversed digits 1x, so [2, 4) on the first axis and [0, 3) on the second

By the Chinese remainder theorem every place has one lane. R divides L, so lanes that are equal modulo R are equal in
their last digits modulo each prime power; reversed, these come first, so the lanes are neighbours on every axis.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Chunk(NamedTuple):
    """A part of the box: the places [start, start + shape) on each axis."""

    start: tuple[int, ...]
    shape: tuple[int, ...]


def prime_powers(number: int) -> list[tuple[int, int]]:
    """(prime, exponent) of each prime that divides the number."""
    found, prime = [], 2
    while number > 1:
        if prime * prime > number:
            prime = number
        exponent = 0
        while number % prime == 0:
            number, exponent = number // prime, exponent + 1
        if exponent:
            found.append((prime, exponent))
        prime += 1
    return found


def shape_of(num_lanes: int) -> tuple[int, ...]:
    """The shape of the box; () for one lane."""
    return tuple(prime**exponent for prime, exponent in prime_powers(num_lanes))


def places(lanes: NDArray[np.int64], num_lanes: int) -> NDArray[np.int64]:
    """int64 [axes, len(lanes)]: where each lane is in the box."""
    axes = []
    for prime, exponent in prime_powers(num_lanes):
        rest, place = lanes % prime**exponent, np.zeros(len(lanes), dtype=np.int64)
        for _ in range(exponent):
            rest, digit = np.divmod(rest, prime)
            place = place * prime + digit
        axes.append(place)
    return np.array(axes, dtype=np.int64).reshape(len(axes), len(lanes))


def chunk_of(lanes: range, num_lanes: int) -> tuple[Chunk, NDArray[np.int64]]:
    """The chunk of a rank's lanes, and int64 [len(lanes)]: where each lane is in the chunk, counted in C order."""
    at = places(np.arange(lanes.start, lanes.stop, lanes.step, dtype=np.int64), num_lanes)
    start = at.min(axis=1)
    shape = tuple((at.max(axis=1) - start + 1).tolist())
    assert np.prod(shape, dtype=np.int64) == len(lanes), "the lanes are not those of a rank"
    index = np.ravel_multi_index(tuple(at - start[:, None]), shape) if shape else np.zeros(1, dtype=np.int64)
    return Chunk(tuple(start.tolist()), shape), np.asarray(index, dtype=np.int64)
