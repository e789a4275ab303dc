"""What cannot be sent to another process, and where in the user's objects it was found.

In:    objects by name, such as a transform.
Out:   a path to the innermost object that cannot be pickled, in words:

    transform (function clean of __main__) -> closure variable `model` (Model of __main__) -> attribute `weight`
    (Parameter of torch.nn.parameter): a tensor on cuda:0

Never: torch, where nothing else has imported it.
"""

import functools
import io
import types
from collections.abc import Iterator, Mapping
from typing import Any

from streampack.loader import pickling

_MOST_STEPS = 50


def find(parts: Mapping[str, object]) -> str | None:
    """The path to what cannot be pickled in the first of these that cannot; None: all can."""
    for name, value in parts.items():
        error = failure(value)
        if error is not None:
            return _path(name, value, error)
    return None


def failure(value: object) -> Exception | None:
    """Why an object cannot be pickled; None: it can.

    What is raised only once is not the object's, such as the exception of a signal's handler: it is raised here.
    """
    first = _tried(value)
    if first is None:
        return None
    second = _tried(value)
    if type(second) is type(first):
        return first
    raise first if second is None or type(_tried(value)) is type(second) else second


def _tried(value: object) -> Exception | None:
    try:
        pickling.RecipePickler(io.BytesIO(), protocol=5, buffer_callback=lambda _: False).dump(value)
    except Exception as error:  # noqa: BLE001 (whatever a class does)
        return error
    return None


def _path(name: str, value: object, error: Exception) -> str:
    steps, met = [f"{name} ({_described(value)})"], {id(value)}
    while len(steps) < _MOST_STEPS:
        for what, inner in _inside(value):
            if id(inner) not in met and (reason := failure(inner)) is not None:
                steps.append(f"{what} ({_described(inner)})")
                met.add(id(inner))
                value, error = inner, reason
                break
        else:
            break
    return f"{' -> '.join(steps)}: {error}"


def _described(value: object) -> str:
    if isinstance(value, types.FunctionType):
        return f"function {value.__qualname__} of {value.__module__}"
    kind = value if isinstance(value, type) else type(value)
    return f"{'class ' if kind is value else ''}{kind.__qualname__} of {kind.__module__}"


def _inside(value: Any) -> Iterator[tuple[str, object]]:
    """What an object is pickled with, each with words that say where it stands."""
    if (reduced := pickling.reduced_by_value(value)) is not None:
        yield from _parts(reduced)
    elif isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield f"closure variable `{name}`", cell.cell_contents
            except ValueError:  # not set yet
                continue
        for name in sorted(_names(value.__code__) & value.__globals__.keys()):
            yield f"global variable `{name}`", value.__globals__[name]
        yield "default arguments", (value.__defaults__, value.__kwdefaults__)
        yield "attributes of the function", vars(value)
    elif isinstance(value, types.MethodType):
        yield "its object", value.__self__
        yield "its function", value.__func__
    elif isinstance(value, functools.partial):
        yield "its function", value.func
        yield from _inside(value.args)
        yield from _inside(value.keywords)
    elif isinstance(value, type):
        for name, each in vars(value).items():
            yield f"attribute `{name}`", each
        for base in value.__bases__:
            yield "base class", base
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield f"item {key!r:.80}", each
            yield "a key", key
    elif isinstance(value, (list, tuple, set, frozenset)):
        names = getattr(value, "_fields", None) or (f"item {number}" for number in range(len(value)))
        yield from zip(names, value, strict=True)
    else:
        yield from _state(value)


def _state(value: object) -> Iterator[tuple[str, object]]:
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:  # noqa: BLE001 (it is the object itself that cannot be pickled)
        return
    if not isinstance(reduced, str):  # a global name
        yield from _parts(reduced)


def _parts(reduced: tuple[Any, ...]) -> Iterator[tuple[str, object]]:
    """The parts of what `__reduce__` gives."""
    _, arguments, *more = reduced
    states = more[0] if more and isinstance(more[0], tuple) else more[:1]
    for state in states:
        if isinstance(state, dict):
            yield from ((f"attribute `{name}`", each) for name, each in state.items())
        else:
            yield "its state", state
    yield from _inside(arguments)


def _names(code: types.CodeType) -> set[str]:
    """The names that a function's code looks up, also in functions inside it."""
    inner = (each for each in code.co_consts if isinstance(each, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))
