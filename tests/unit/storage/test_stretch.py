"""A stretch of an object: any range of it, from memory where it is held, from the storage elsewhere."""

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streampack.errors import StorageError
from streampack.storage.stretch import Stretch

DATA = Random(0).randbytes(400_000)


class Object:
    def __init__(self, data: bytes = DATA) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []

    def chunks(self, begin: int, end: int, size: int = 30_000) -> Iterator[bytes]:
        self.asked.append((begin, end))
        for at in range(begin, end, size):
            yield self.data[at : min(at + size, end)]

    def stretch(self, start: int, stop: int, step: int = 1) -> Stretch:
        return Stretch(
            self.chunks(start, stop), self.chunks, start=start, stop=stop, size=len(self.data), step=step
        )


PLACES = st.integers(0, 400_000)


@given(PLACES, st.integers(1, 200_000), st.lists(st.tuples(PLACES, PLACES), max_size=8))
def test_any_range_is_right_wherever_it_lies(start: int, length: int, ranges: list[tuple[int, int]]) -> None:
    stretch = Object().stretch(min(start, 399_999), min(start + length, 400_000))
    for begin, count in ranges:
        end = min(begin + count, 400_000)
        assert b"".join(stretch.chunks(begin, end)) == DATA[begin:end]
        assert b"".join(stretch.chunks(begin)) == DATA[begin:]


def test_what_is_held_is_asked_for_once() -> None:
    thing = Object()
    stretch = thing.stretch(1000, 90_000)
    for begin in (1000, 5000, 1000, 80_000):
        assert b"".join(stretch.chunks(begin, 90_000)) == DATA[begin:90_000]
    assert thing.asked == [(1000, 90_000)]
    search = stretch.chunks(89_000)
    assert next(search) == DATA[89_000:90_000]
    assert thing.asked == [(1000, 90_000)], "nothing is asked for before it is wanted"
    next(search)
    assert b"".join(stretch.chunks(89_000, 120_000)) == DATA[89_000:120_000]
    assert thing.asked == [(1000, 90_000), (90_000, 90_000 + 2**15)]


def test_what_follows_is_asked_for_in_whole_blocks() -> None:
    thing = Object()
    stretch = thing.stretch(0, 50_000, step=50_000)
    assert b"".join(stretch.chunks(0, 60_000)) == DATA[:60_000]
    assert b"".join(stretch.chunks(0, 130_000)) == DATA[:130_000]
    assert thing.asked == [(0, 50_000), (50_000, 100_000), (100_000, 150_000)]


def test_a_document_that_goes_on_and_on_is_not_held() -> None:
    thing = Object(bytes(9_000_000))
    stretch = thing.stretch(0, 1000)
    assert sum(map(len, stretch.chunks(0))) == 9_000_000
    assert stretch.stop < 3_000_000


def test_what_came_before_an_error_is_given_and_the_next_reading_asks_again() -> None:
    thing = Object()

    def first() -> Iterator[bytes]:
        yield DATA[:30_000]
        raise StorageError("no more")

    stretch = Stretch(first(), thing.chunks, start=0, stop=90_000, size=len(DATA))
    assert b"".join(stretch.chunks(10_000, 20_000)) == DATA[10_000:20_000]
    reading = stretch.chunks(10_000, 50_000)
    assert next(reading) == DATA[10_000:30_000]
    with pytest.raises(StorageError, match="no more"):
        next(reading)
    assert b"".join(stretch.chunks(10_000, 50_000)) == DATA[10_000:50_000]


def test_a_closed_stretch_asks_for_all() -> None:
    thing = Object()
    stretch = thing.stretch(0, 50_000)
    stretch.close()
    assert b"".join(stretch.chunks(10, 60)) == DATA[10:60]
    assert thing.asked == [(10, 60)]
