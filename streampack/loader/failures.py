"""An exception in a worker, on its way to the trainer.

In:    an exception.
Out:   in the trainer one of the same class, with the same arguments, attributes and notes, made without the class's
       `__init__`; its cause is the worker's traceback. A note names what of it cannot be pickled and is left out.
Never: a class of the trainer that is changed by what comes back, also where it was made in a notebook or a script.
"""

import contextlib
import io
import pickle
import traceback
from typing import Any, NamedTuple

import cloudpickle

from streampack.loader import shortage


class WorkerTracebackError(Exception):
    """The traceback of an exception in the worker; it stands above the exception's own in what Python prints."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class Failure(NamedTuple):
    """An exception as bytes."""

    pickled: bytes | None
    """None: its class cannot be pickled."""
    text: str
    """Its class and message."""
    notes: tuple[str, ...]
    trace: str
    shortage: str | None
    """What is short, where the exception says that something is: a process that is started afterwards may have it."""

    def error(self) -> Exception:
        """The exception again; a RuntimeError with its class and message where its class cannot be sent."""
        try:
            error = _load(self.pickled or b"")
        except Exception:  # noqa: BLE001 (whatever its class does)
            error = None
        if not isinstance(error, Exception):
            error = RuntimeError(self.text)
        # By `object`, as a frozen dataclass refuses it.
        object.__setattr__(error, "__notes__", list(self.notes))
        object.__setattr__(error, "__cause__", WorkerTracebackError(self.trace))
        return error


def failure_of(error: BaseException, where: str) -> Failure:
    """An exception for another process; `where` says in which one it was raised."""
    pickled, notes = None, getattr(error, "__notes__", ())
    with contextlib.suppress(Exception):  # whatever its class does
        pickled = _dumped(error)
        sent = _load(pickled)
        if type(sent) is type(error):
            notes = getattr(sent, "__notes__", ())
        else:
            pickled = None
    return Failure(
        pickled=pickled,
        text=f"{type(error).__module__}.{type(error).__qualname__}: {_text(error)}",
        notes=(*notes, where),
        trace="".join(traceback.format_exception(error)),
        shortage=shortage.described(error) if shortage.is_shortage(error) else None,
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failed:  # noqa: BLE001 (whatever its class does)
        return f"(its text cannot be made: {type(failed).__name__})"


# -- exceptions by their parts, as many cannot be made by their class from their arguments -----------------------------


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Takes exceptions apart, those inside others as well."""

    def __init__(self, file: io.BytesIO, outer: frozenset[int] = frozenset()) -> None:
        super().__init__(file)
        self._outer = outer

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, BaseException):
            return super().reducer_override(value)
        if id(value) in self._outer:
            raise pickle.PicklingError("an exception that holds itself")
        return _taken_apart(value, self._outer | {id(value)})


def _dumped(value: object, outer: frozenset[int] = frozenset()) -> bytes:
    file = io.BytesIO()
    _Pickler(file, outer).dump(value)
    return file.getvalue()


def _taken_apart(error: BaseException, outer: frozenset[int]) -> tuple[Any, ...]:
    """The class of an exception, its arguments and its attributes, without what cannot be pickled."""
    left_out: list[str] = []

    def can_be_sent(what: str, value: object) -> bool:
        try:
            _load(_dumped(value, outer))
        except Exception as failed:  # noqa: BLE001 (whatever a class does)
            left_out.append(f"{what} ({type(value).__qualname__}) was left out, as it cannot be sent: {failed}")
            return False
        return True

    reduced: tuple[Any, ...] = _built_in(type(error)).__reduce__(error)  # type: ignore[assignment]  # never a string
    _, arguments, *state = reduced
    given = [
        each if can_be_sent(f"argument {number}", each) else f"<{type(each).__qualname__}>"
        for number, each in enumerate(arguments)
    ]
    attributes = {**_slots(error), **(state[0] if state and state[0] else {})}
    sent = {name: each for name, each in attributes.items() if can_be_sent(f"attribute `{name}`", each)}
    if left_out:
        sent["__notes__"] = [*sent.get("__notes__", ()), *left_out]
    return _put_together, (type(error), tuple(given), sent)


def _put_together(cls: type[BaseException], arguments: tuple[Any, ...], attributes: dict[str, Any]) -> BaseException:
    made_by = _built_in(cls)
    error = made_by.__new__(cls, *arguments)
    made_by.__init__(error, *arguments)
    for name, value in attributes.items():
        try:
            object.__setattr__(error, name, value)
        except AttributeError:  # a property of the same name hides it
            vars(error)[name] = value
    return error


def _built_in(cls: type[BaseException]) -> type[BaseException]:
    """The class of C, such as OSError, that holds what an exception of this class has beside its attributes."""
    while cls.__flags__ & _MADE_BY_PYTHON:
        cls = cls.__base__  # type: ignore[assignment]  # a BaseException is the last one
    return cls


_MADE_BY_PYTHON = 1 << 9  # Py_TPFLAGS_HEAPTYPE


def _slots(error: BaseException) -> dict[str, Any]:
    found = {}
    for cls in type(error).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            with contextlib.suppress(AttributeError):
                found[name] = getattr(error, name)
    return found


# cloudpickle gives a class that this process has made or met before as it is, and then sets all of its attributes
# again, to copies from the worker. Tried with cloudpickle 3.1.3; where a release has no such function, it does that.
_FILL = getattr(cloudpickle.cloudpickle, "_class_setstate", None)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return _fill_new if found is _FILL else found


def _fill_new(made: type, state: tuple[dict[str, Any], Any]) -> type:
    """Give a class its attributes, if it has none yet."""
    assert _FILL is not None
    return made if state[0].keys() <= vars(made).keys() else _FILL(made, state)


def _load(pickled: bytes) -> object:
    return _Unpickler(io.BytesIO(pickled)).load()
