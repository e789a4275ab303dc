"""The bound on what an engine gives wrongly: one rank, and ranks that add up."""

import logging
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from streampack.errors import LoaderError, TokenizerError
from streampack.loader.adding import SharedCount
from streampack.loader.dealing import Item
from streampack.loader.differences import EngineDifferences
from streampack.loader.messages import COLUMNS, Message
from streampack.packing.blocks import stack
from streampack.records import StorageUse


def message(texts: range) -> Message:
    return Message(
        slots=np.zeros(0, np.int8),
        block=stack([], seq_len=4, pad_id=0),
        changes=np.zeros((0, len(COLUMNS)), np.int64),
        sources=np.zeros(0, np.int16),
        ends=(),
        skipped_ranges=(),
        provenance=None,
        storage=StorageUse(),
        engine_differences=tuple((text, f"place {text}: wrong") for text in texts),
    )


def alone() -> EngineDifferences:
    return EngineDifferences(lambda _: SharedCount(None))


def two_ranks() -> tuple[EngineDifferences, EngineDifferences]:
    store: dict[str, int] = {}

    def adding(name: str) -> Callable[[int], int]:
        def add(amount: int) -> int:
            store[name] = store.get(name, 0) + amount
            return store[name]

        return add

    first, second = (EngineDifferences(lambda name: SharedCount(adding(name))) for _ in range(2))
    return first, second


def a_pass(counted: EngineDifferences, *found: range, error: Exception | None = None) -> list[Item]:
    """What a pass gives that has two slots in each message; with `error` in the last one."""

    def dealt(messages: Iterator[Message]) -> Iterator[Item]:
        for number, _ in enumerate(messages):
            yield Item(number, 0, None, waits=True)
            yield Item(number, 1, None, waits=True, error=error if number + 1 == len(found) else None)

    return list(counted.watch(dealt(counted.look_through(iter(map(message, found))))))


NONE = range(0)


def test_the_eleventh_document_is_an_error_in_place_of_the_next_item_and_of_the_first_of_each_later_pass() -> None:
    counted = alone()
    items = a_pass(counted, NONE, range(4), range(4, 10), NONE)
    assert [each.error for each in items] == [None] * 8
    items = a_pass(counted, NONE, range(10, 11), NONE)
    assert [(each.round, each.lane_index, type(each.error)) for each in items] == [
        (0, 0, type(None)),
        (0, 1, type(None)),
        (1, 0, TokenizerError),
    ]
    assert counted.number == 11
    (item,) = a_pass(counted, NONE, NONE)
    assert (item.round, item.lane_index, type(item.error)) == (0, 0, TokenizerError)


def test_a_text_counts_once_in_all_passes() -> None:
    counted = alone()
    for _ in range(20):
        assert not any(each.error for each in a_pass(counted, range(3), range(2, 5)))
    assert counted.number == 5


def test_a_text_counts_once_on_all_ranks_and_others_add_up() -> None:
    first, second = two_ranks()
    assert not any(each.error for each in a_pass(first, range(6)))
    assert not any(each.error for each in a_pass(second, range(10)))
    assert (first.number, second.number) == (6, 10)
    assert [type(each.error) for each in a_pass(second, range(10, 11))] == [TokenizerError]
    assert [type(each.error) for each in a_pass(first, NONE)] == [TokenizerError]


def test_only_the_first_is_told(caplog: pytest.LogCaptureFixture) -> None:
    counted = alone()
    with caplog.at_level(logging.WARNING, logger="streampack"):
        for begin in range(3):
            a_pass(counted, range(begin, begin + 2))
    assert caplog.messages == ["place 0: wrong"]


def test_an_error_that_stands_in_the_place_already_stays() -> None:
    broken, counted = LoaderError("broken"), alone()
    one, other = a_pass(counted, NONE, error=broken)
    assert (one.error, other.error) == (None, broken)
    counted._total = 11
    dealt = [Item(0, 0, None, error=broken)]
    assert list(counted.watch(iter(dealt))) == dealt
