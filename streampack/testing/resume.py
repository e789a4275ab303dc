"""For tests of your own transforms, tokenizers and loaders: a run that continues from a state must not differ.

In:  a function that makes a loader.
Out: nothing, or an AssertionError that names the batch, the key and the first index that differ.
Never: a loader that is left open; an import of torch when this module is imported.
"""

import contextlib
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from streampack.errors import as_integer


class ResumableLoader(Protocol):
    """What a loader must have here; `streampack.PackedDataLoader` has it.

    `close()` is called where there is one, and `digest()` is compared at the end where there is one.
    """

    def __iter__(self) -> Iterator[Any]:
        """The batches: tensors, arrays and plain values in mappings, lists and tuples."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """The state after the last batch that was taken: tensors, arrays, and what JSON has."""
        ...

    def load_state_dict(self, state: Any, /) -> None:
        """Continue from a state that went through JSON, where tensors are lists."""
        ...


def assert_resumes_exactly(
    make_loader: Callable[[], ResumableLoader],
    *,
    num_batches: int = 16,
    num_stops: int | None = None,
    make_resumed: Callable[[], ResumableLoader] | None = None,
    seed: int = 0,
) -> None:
    """Compare a run of `num_batches` batches with runs that were stopped and continued from their states.

    One loader gives the batches without a stop, and its state before the first and after each of them. Each state goes
    through JSON into another loader, whose batches must be equal to the rest of those of the first one: the same keys,
    dtypes, shapes and values, and the same end where the run ends before `num_batches`.

    Args:
        make_loader: makes a new loader with the same arguments at each call.
        num_batches: of the run; with every stop, about half the square of it is read.
        num_stops: how many of the states to continue from, at least 1, chosen by `seed`; None: all of them.
        make_resumed: makes the loaders that continue; None: `make_loader` does. It may have another `num_workers`, but
            must give batches of the same size.
        seed: of the choice of the stops.

    Raises:
        AssertionError: a run that continued differs from the uninterrupted one.
        ConfigError: `num_batches` or `num_stops` is below 1, so nothing would be compared.
    """
    as_integer(num_batches, "num_batches", low=1)
    if num_stops is not None:
        as_integer(num_stops, "num_stops", low=1)
    with _closing(make_loader()) as loader:
        states, batches = [_through_json(loader.state_dict())], []
        for batch in itertools.islice(loader, num_batches):
            batches.append(batch)
            states.append(_through_json(loader.state_dict()))
        digest = _digest(loader)
    if not batches:
        raise AssertionError("the loader gives no batches, so there is nothing to compare")
    if len(batches) == num_batches:
        states.pop()  # nothing is compared after it
    stops = list(range(len(states)))
    if num_stops is not None and num_stops < len(stops):
        stops = sorted(random.Random(seed).sample(stops, num_stops))  # noqa: S311  # no secret
    for stop in stops:
        with _closing((make_resumed or make_loader)()) as loader:
            loader.load_state_dict(states[stop])
            resumed = list(itertools.islice(loader, num_batches - stop))
            _compare(batches[stop:], resumed, stop)
            if (found := _digest(loader)) != digest:
                raise AssertionError(
                    f"{_where(stop)}: the batches are equal, but digest() is {found} in place of {digest}"
                )


def _compare(wanted: list[Any], found: list[Any], stop: int) -> None:
    """Raise where the batches after a stop are not those of the run without it."""
    for number, (one, other) in enumerate(zip(wanted, found, strict=False), start=stop):
        left, right = dict(_leaves(one)), dict(_leaves(other))
        if left.keys() != right.keys():
            only = ", ".join(sorted(left.keys() ^ right.keys()))
            raise AssertionError(f"{_where(stop)}: batch {number} has other keys than without the stop: {only}")
        for key, value in left.items():
            if difference := _difference(value, right[key]):
                raise AssertionError(f"{_where(stop)}: batch {number}, key {key}: {difference}. {_CAUSES}")
    if len(wanted) != len(found):
        raise AssertionError(
            f"{_where(stop)}: the run has {stop + len(found)} batches, and {stop + len(wanted)} without the stop"
        )


_CAUSES = (
    "A transform must depend on nothing but the document and the `rng` that it gets, a tokenizer on nothing but the "
    "text; and make_loader must give the same arguments each time"
)


def _where(stop: int) -> str:
    return f"after a stop after {stop} batches" if stop else "in a second run from the beginning"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The tensors, arrays and plain values in a batch, each with where it is in it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{index}]")
    else:
        yield path, value


def _difference(one: Any, other: Any) -> str:
    """In what a value differs, where one is of the run without a stop; empty where they are equal."""
    import torch

    if type(one) is not type(other):
        return f"a {type(other).__name__} in place of a {type(one).__name__}"
    if not isinstance(one, (torch.Tensor, np.ndarray)):
        is_equal = one == other or repr(one) == repr(other)  # as those of NaN
        return "" if is_equal else f"{other!r:.100} in place of {one!r:.100}"
    if one.dtype != other.dtype or one.shape != other.shape:
        return f"{other.dtype} {list(other.shape)} in place of {one.dtype} {list(one.shape)}"
    if isinstance(one, np.ndarray) and np.asarray(one).dtype.kind not in "biufc":  # text, objects, dates: not in torch
        return _first_difference(one, other)
    left, right = torch.as_tensor(one), torch.as_tensor(other)
    differs = (left != right) & ~(torch.isnan(left) & torch.isnan(right))
    if not differs.any():
        return ""
    index = tuple(torch.nonzero(differs)[0].tolist())
    num = int(differs.sum())
    return f"{right[index]} in place of {left[index]} at index {list(index)}, the first of {num:,} that differ"


def _first_difference(one: Any, other: Any) -> str:
    """In what two arrays of one shape, compared value by value, differ; empty where they are equal."""
    pairs = zip(np.ndindex(one.shape), one.flat, other.flat, strict=True)
    differing = [(index, left, right) for index, left, right in pairs if _difference(left, right)]
    if not differing:
        return ""
    index, left, right = differing[0]
    return (
        f"{right!r:.100} in place of {left!r:.100} at index {list(index)}, the first of {len(differing):,} that differ"
    )


def _through_json(state: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(state, default=lambda value: value.tolist()))


def _digest(loader: ResumableLoader) -> int | None:
    digest = getattr(loader, "digest", None)
    return None if digest is None else digest()


@contextlib.contextmanager
def _closing(loader: ResumableLoader) -> Iterator[ResumableLoader]:
    try:
        yield loader
    finally:
        close = getattr(loader, "close", None)
        if close is not None:
            close()
