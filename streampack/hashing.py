"""Choices that must never change: pure functions of integers and names, the same on every machine and release.

All randomness of the order (shards and blocks per epoch, held-out documents and cells, a transform's generator) comes
from here. The generator is counter-based: a chain of the SplitMix64 finalizer (Steele, Lea, Flood 2014) over the words
of the counter. Nothing depends on `hash()`, a process, a clock or a library's random stream. Golden tests hold every
value.
"""

import enum
import hashlib

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


class Purpose(enum.IntEnum):
    """What a choice is for; it keeps equal counters of different choices apart."""

    SHARD_ORDER = 1
    SPLIT = 2
    TRANSFORM = 3
    GLOBAL_GENERATORS = 4
    BLOCK_ORDER = 5
    WINDOW_ORDER = 6
    PACK_ORDER = 7
    CELLS = 8
    SOURCE = 9
    WRITE_ORDER = 10


def _mix(word: int) -> int:
    word = (word + _GAMMA) & _MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)


def hash_words(*words: int) -> int:
    """A 64-bit unsigned hash of a tuple of integers (each taken modulo 2**64)."""
    state = 0
    for word in words:
        state = _mix(state ^ (word & _MASK))
    return state


def as_int64(word: int) -> int:
    """The lowest 64 bits of an integer, as a number with a sign."""
    word &= _MASK
    return word - 2**64 if word >= 2**63 else word


def hash_range(*words: int, count: int) -> NDArray[np.uint64]:
    """`hash_words(*words, index)` for index 0 .. count-1, as a uint64 array [count]."""
    return _mix_all(np.uint64(hash_words(*words)) ^ np.arange(count, dtype=np.uint64))


def _mix_all(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`_mix` of each word."""
    state = state + np.uint64(_GAMMA)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def hash_name(name: str) -> int:
    """A 64-bit unsigned hash of a string (BLAKE2b of its UTF-8 bytes)."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def permutation(*words: int, count: int) -> NDArray[np.int64]:
    """A permutation of 0 .. count-1 chosen by `words`, as an int64 array [count]; equal hashes keep their order."""
    return np.argsort(hash_range(*words, count=count), kind="stable").astype(np.int64)


class Bijection:
    """A permutation of 0 .. count-1 chosen by `words`, computed number by number: it takes no memory, however many.

    A balanced Feistel network (Luby, Rackoff 1988) of `_ROUNDS` rounds of our hash over the smallest domain of 4**h
    numbers that holds `count`; a number that falls out of the range goes through it again until it is back in (cycle
    walking; Black, Rogaway 2002), which takes fewer than four times on average.
    """

    _ROUNDS = 8

    def __init__(self, *words: int, count: int) -> None:
        assert 1 <= count <= 2**62, count
        self.count = count
        half = max((count - 1).bit_length() + 1 >> 1, 1)
        self._half = np.uint64(half)
        self._mask = np.uint64((1 << half) - 1)
        self._keys = [np.uint64(hash_words(*words, each)) for each in range(self._ROUNDS)]

    def of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers that these become: int64 [n] of 0 .. count-1."""
        return self._walk(numbers, self._keys, inverse=False)

    def inverse(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers that become these: int64 [n] of 0 .. count-1."""
        return self._walk(numbers, self._keys[::-1], inverse=True)

    def _walk(self, numbers: NDArray[np.int64], keys: list[np.uint64], *, inverse: bool) -> NDArray[np.int64]:
        found = self._once(numbers.astype(np.uint64), keys, inverse=inverse)
        outside = np.flatnonzero(found >= self.count)
        while outside.size:
            found[outside] = self._once(found[outside], keys, inverse=inverse)
            outside = outside[found[outside] >= self.count]
        return found.astype(np.int64)

    def _once(self, numbers: NDArray[np.uint64], keys: list[np.uint64], *, inverse: bool) -> NDArray[np.uint64]:
        left, right = numbers >> self._half, numbers & self._mask
        if inverse:
            left, right = right, left
        for key in keys:
            left, right = right, left ^ (_mix_all(right ^ key) & self._mask)
        if inverse:
            left, right = right, left
        return (left << self._half) | right


def is_held_out(*, name: str, key: str, record: int, fraction: float) -> bool:
    """Whether a document belongs to the validation split: the same for ever, for every seed and topology.

    `name` is the shard's file name (without folders), `key` the sample's key, `record` its index in the member.
    """
    return hash_words(Purpose.SPLIT, hash_name(name), hash_name(key), record) < int(fraction * 2**64)


def hash_cells(name: str, *, count: int) -> NDArray[np.uint64]:
    """Of each of a shard's cells, uint64 [count]: it is held out where this is below the fraction of 2**64.

    `name` is the shard's file name (without folders). The same for ever, for every seed and topology.
    """
    return hash_range(Purpose.CELLS, hash_name(name), count=count)


def generator(*words: int) -> np.random.Generator:
    """A NumPy generator (Philox) for one document's transform, seeded by `words` alone."""
    key = (hash_words(Purpose.TRANSFORM, *words), hash_words(Purpose.TRANSFORM, *words, 1))
    return np.random.Generator(np.random.Philox(key=np.array(key, dtype=np.uint64)))
