"""The bound on what an engine gives wrongly: one rank, and ranks that add up."""

from collections.abc import Sequence

import numpy as np

from streampack.errors import LoaderError, TokenizerError
from streampack.loader.adding import SharedCount
from streampack.loader.differences import EngineDifferences
from streampack.loader.messages import COLUMNS, Message
from streampack.packing.blocks import stack
from streampack.records import StorageUse


def message(differences: int, error: Exception | None = None) -> Message:
    return Message(
        slots=np.zeros(0, np.int8),
        block=stack([], seq_len=4, pad_id=0),
        changes=np.zeros((0, len(COLUMNS)), np.int64),
        sources=np.zeros(0, np.int16),
        ends=(),
        skipped_ranges=(),
        provenance=None,
        storage=StorageUse(),
        engine_differences=differences,
        error=error,
    )


def errors(counted: EngineDifferences, numbers: Sequence[int]) -> list[bool]:
    return [each.error is not None for each in counted.watch(iter(map(message, numbers)))]


def test_more_than_ten_are_an_error_and_all_passes_count() -> None:
    one = EngineDifferences(SharedCount(None))
    assert errors(one, [0, 4, 0, 6, 0]) == [False] * 5
    assert errors(one, [0, 1, 0]) == [False, True, True]
    assert one.number == 11
    assert errors(EngineDifferences(SharedCount(None)), [0] * 3) == [False] * 3


def test_ranks_add_up_where_one_meets_a_difference() -> None:
    store = [0]

    def add(amount: int) -> int:
        store[0] += amount
        return store[0]

    first, second = (EngineDifferences(SharedCount(add)) for _ in range(2))
    assert errors(first, [10]) == [False]
    assert errors(second, [0, 1]) == [False, True]
    assert errors(first, [0]) == [True]
    assert store == [11]


def test_an_error_of_the_message_comes_first() -> None:
    broken = LoaderError("broken")
    (found,) = EngineDifferences(SharedCount(None)).watch(iter([message(20, broken)]))
    assert found.error is broken
    (found,) = EngineDifferences(SharedCount(None)).watch(iter([message(20)]))
    assert isinstance(found.error, TokenizerError)
