"""`assert_resumes_exactly` passes for what resumes exactly, and says where anything else differs."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from streampack import PackedDataLoader, PackedDataset
from streampack.errors import ConfigError
from streampack.records import Document
from streampack.testing import ByteTokenizer, assert_resumes_exactly, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    texts = [f"document {number} " * (1 + number % 7) for number in range(120)]
    return write_shards(tmp_path_factory.mktemp("shards"), texts, documents_per_shard=30)


def loaders(shards: list[str], *, num_workers: int = 0, **options: Any) -> Callable[[], PackedDataLoader]:
    arguments = {"num_lanes": 4, "transform_version": "1", **options}
    return lambda: PackedDataLoader(
        PackedDataset(shards, ByteTokenizer(), 32, **arguments), batch_size=2, num_workers=num_workers
    )


def upper(document: Document, rng: np.random.Generator) -> Document:
    assert document.text is not None
    return dataclasses.replace(document, text=document.text.upper() + str(rng.integers(100)))


def test_a_loader_resumes_at_every_batch(shards: list[str]) -> None:
    assert_resumes_exactly(loaders(shards, transform=upper), num_batches=12)


def test_a_finite_loader_resumes_up_to_its_end(shards: list[str]) -> None:
    made: list[PackedDataLoader] = []

    def make() -> PackedDataLoader:
        made.append(loaders(shards[:1], epochs=1)())
        return made[-1]

    assert_resumes_exactly(make, num_batches=1000, num_stops=5)
    assert len(made) == 6


def test_a_loader_resumes_with_workers(shards: list[str]) -> None:
    other = loaders(shards, num_workers=2)
    assert_resumes_exactly(loaders(shards), num_batches=6, num_stops=1, make_resumed=other)


def test_a_transform_that_remembers_fails_and_the_difference_is_named(shards: list[str]) -> None:
    def make() -> PackedDataLoader:
        seen = itertools.count()

        def numbered(document: Document, rng: np.random.Generator) -> Document:
            return dataclasses.replace(document, text=f"{next(seen):05d}{document.text}")

        return loaders(shards, transform=numbered)()

    said = (
        r"^after a stop after [1-9]\d* batches: batch \d+, key \['tokens'\]: \d+ in place of \d+ at index \[\d, \d+\], "
        r"the first of [\d,]+ that differ\. A transform must depend on nothing but the document"
    )
    with pytest.raises(AssertionError, match=said):
        assert_resumes_exactly(make, num_batches=8)


class Fake:
    """A loader that gives what it is told, from where its state says."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches, self._at = batches, 0

    def __iter__(self) -> Iterator[Any]:
        while self._at < len(self._batches):
            self._at += 1
            yield self._batches[self._at - 1]

    def state_dict(self) -> Mapping[str, Any]:
        return {"at": torch.tensor([self._at])}

    def load_state_dict(self, state: Any, /) -> None:
        (self._at,) = state["at"]


BATCH = {"x": torch.zeros(2, 3), "y": (np.arange(2), "name", float("nan"))}


@pytest.mark.parametrize(
    ("resumed", "message"),
    [
        ([BATCH, {**BATCH, "x": torch.eye(2, 3)}], "batch 1, key ['x']: 1.0 in place of 0.0 at index [0, 0]"),
        ([BATCH, {**BATCH, "x": torch.zeros(2)}], "key ['x']: torch.float32 [2] in place of torch.float32 [2, 3]"),
        ([BATCH, {**BATCH, "x": BATCH["x"].long()}], "key ['x']: torch.int64 [2, 3] in place of torch.float32"),
        ([BATCH, {**BATCH, "x": 3}], "key ['x']: a int in place of a Tensor"),
        ([BATCH, {**BATCH, "z": 3}], "batch 1 has other keys than without the stop: ['z']"),
        ([BATCH, {**BATCH, "y": (np.arange(2), "other")}], "has other keys than without the stop: ['y'][2]"),
        ([BATCH, {**BATCH, "y": (np.arange(2), "other", 1.0)}], "key ['y'][1]: 'other' in place of 'name'"),
        ([BATCH], "in a second run from the beginning: the run has 1 batches, and 2 without the stop"),
        ([BATCH] * 3, "in a second run from the beginning: the run has 3 batches, and 2 without the stop"),
    ],
)
def test_each_difference_is_named(resumed: list[Any], message: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        assert_resumes_exactly(lambda: Fake([BATCH] * 2), make_resumed=lambda: Fake(resumed))


def test_equal_batches_of_any_shape_are_equal() -> None:
    batch = {"x": torch.tensor(3), "y": [torch.full((2,), float("nan")), np.array(2)], "z": torch.tensor([True])}
    assert_resumes_exactly(lambda: Fake([batch] * 3))


def test_a_loader_without_batches_is_no_success() -> None:
    with pytest.raises(AssertionError, match="gives no batches"):
        assert_resumes_exactly(lambda: Fake([]))


@pytest.mark.parametrize("number", [0, -1, 1.5])
@pytest.mark.parametrize("name", ["num_batches", "num_stops"])
def test_a_comparison_of_nothing_is_refused(name: str, number: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name}={number} must be a whole number of at least 1"):
        assert_resumes_exactly(lambda: Fake([BATCH]), **{name: number})


@pytest.mark.parametrize(
    ("array", "other"),
    [
        (np.array([["a", "b"]]), np.array([["a", "c"]])),
        (np.array([b"a", b"b"]), np.array([b"c", b"d"])),
        (np.array(["a", None, np.nan, np.arange(2)], object), np.array(["a", 1, np.nan, np.arange(2)], object)),
        (np.array(["2020", "NaT"], "M8[s]"), np.array(["2021", "NaT"], "M8[s]")),
    ],
)
def test_arrays_of_no_numbers_are_compared(array: np.ndarray, other: np.ndarray) -> None:
    assert_resumes_exactly(lambda: Fake([{"x": array}] * 2))
    with pytest.raises(AssertionError, match=r"batch 0, key \['x'\]: .* at index \[.*\], the first of . that differ"):
        assert_resumes_exactly(lambda: Fake([{"x": array}]), make_resumed=lambda: Fake([{"x": other}]))
