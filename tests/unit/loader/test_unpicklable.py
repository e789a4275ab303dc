"""What cannot be given to workers is named, and where it was found."""

import functools
import os
import pickle
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streampack import PackedDataset
from streampack.errors import ConfigError
from streampack.loader import parcels, recipes, unpicklable
from streampack.testing import ByteTokenizer, write_shards

LOCK = threading.Lock()


class Model:
    """Holds what cannot be copied two levels down."""

    def __init__(self, part: object) -> None:
        self.layers = {"first": [1, part]}

    def __call__(self, document: Any, rng: Any) -> Any:
        return document


class FakeTensor:
    """As much of a tensor as is looked at: it pickles without a word."""

    def __init__(self, device: str) -> None:
        self.device = FakeDevice(device)


class FakeDevice(str):
    """Its text is its name, as torch's."""

    __slots__ = ()

    @property
    def type(self) -> str:
        return self.partition(":")[0]


def closing_over(value: object) -> Callable[..., Any]:
    def clean(document: Any, rng: Any) -> Any:
        return value

    return clean


def uses_global() -> Callable[..., Any]:
    def clean(document: Any, rng: Any) -> Any:
        return [LOCK for _ in range(3)]

    return clean


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (closing_over(LOCK), ["function closing_over.<locals>.clean of ", "closure variable `value` (lock of _thread"]),
        (closing_over(Model(LOCK)), ["`value` (Model of ", "attribute `layers`", "item 'first'", "item 1 (lock of "]),
        (uses_global(), ["function uses_global.<locals>.clean", "global variable `LOCK` (lock of _thread)"]),
        (functools.partial(Model(0), rng=LOCK), ["partial of functools", "item 'rng' (lock of "]),
        (Model(LOCK).__call__, ["its object (Model of ", "item 1 (lock of "]),
        (closing_over(x for x in ()), ["closure variable `value` (generator of builtins): cannot pickle 'generator'"]),
        (closing_over(sys.stdout), ["closure variable `value`"]),
    ],
)  # fmt: skip
def test_the_path_leads_to_the_innermost_object(value: object, path: list[str]) -> None:
    found = unpicklable.find({"tokenizer": ByteTokenizer(), "transform": value})
    assert found is not None and found.startswith("transform (")
    at = 0
    for part in path:
        at = found.index(part, at)


def test_what_can_be_pickled_has_no_path() -> None:
    assert unpicklable.find({"transform": closing_over(Model(7)), "tokenizer": ByteTokenizer()}) is None


def test_what_is_on_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(Tensor=FakeTensor))  # type: ignore[arg-type]
    found = unpicklable.find({"transform": closing_over(Model(FakeTensor("cuda:0")))})
    assert found is not None and "item 1 (FakeTensor of " in found and found.endswith("): a tensor on cuda:0")


def test_the_error_of_a_dataset_says_what_to_do(tmp_path: Path) -> None:
    write_shards(tmp_path, ["a text"])
    data = PackedDataset(str(tmp_path), ByteTokenizer(), transform=closing_over(LOCK), num_lanes=1)
    with pytest.raises(ConfigError) as caught:
        recipes.wrap_recipe(recipes.Parts.of(data.run()))
    for part in ("transform (function", "closure variable `value`", "Make it in the worker", "multiprocessing_context"):
        assert part in str(caught.value)


def test_a_value_comes_out_as_it_went_in_as_often_as_it_is_unwrapped() -> None:
    parcel = parcels.wrap({"a": [1, 2], "b": b"x" * 100_000})
    assert [parcels.unwrap(parcel) for _ in range(2)] == [{"a": [1, 2], "b": b"x" * 100_000}] * 2
    with pytest.raises(pickle.UnpicklingError):
        parcels.unwrap(parcel, _Refusing)


class _Refusing(pickle.Unpickler):
    def load(self) -> Any:
        raise pickle.UnpicklingError


def local_class() -> type:
    class Base:
        lock = LOCK

    class Derived(Base):
        def __call__(self, document: Any, rng: Any) -> Any:
            return document

    return Derived


def cached_over(value: object) -> Callable[..., Any]:
    return functools.lru_cache(lambda _: value)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (local_class()(), ["class local_class.<locals>.Derived", "base class (class local_class.<locals>.B", "`lock`"]),
        (cached_over(LOCK), ["(_lru_cache_wrapper of functools)", "`__wrapped__` (function cached_over", "`value` (l"]),
    ],
)  # fmt: skip
def test_the_path_leads_through_base_classes_and_caches(value: object, path: list[str]) -> None:
    test_the_path_leads_to_the_innermost_object(value, path)


class Preempted(Exception):  # noqa: N818
    """What a handler of SIGTERM raises."""


class Interrupted:
    """At some of its picklings a signal comes, whose handler raises."""

    def __init__(self, *numbers: int) -> None:
        self.at, self.count = numbers, 0

    def __getstate__(self) -> dict[str, int]:
        self.count += 1
        if self.count in self.at:
            raise Preempted
        return {}

    def __call__(self, document: Any, rng: Any) -> Any:
        return document


@pytest.mark.parametrize("at", range(1, 6))
@pytest.mark.parametrize("also", [0, LOCK], ids=["alone", "lock"])
def test_what_a_handler_raises_meanwhile_is_not_taken_for_a_reason(tmp_path: Path, at: int, also: object) -> None:
    write_shards(tmp_path, ["a text"])
    interrupted = Interrupted(at)
    data = PackedDataset(
        str(tmp_path), ByteTokenizer(), transform=closing_over([interrupted, also]), transform_version="1", num_lanes=1
    )
    error = None
    try:
        os.close(recipes.wrap_recipe(recipes.Parts.of(data.run())))
    except (Preempted, ConfigError) as raised:
        error = raised
    wanted = Preempted if interrupted.count >= at else None if also == 0 else ConfigError
    assert type(error) is (wanted or type(None))
