"""An exception in a worker, on its way to the trainer.

In:    an exception.
Out:   in the trainer one of the same class, with the same attributes and notes; its cause is the worker's traceback.
Never: a class of the trainer that is changed by what comes back, also where it was made in a notebook or a script.
"""

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
    """None: it cannot be pickled."""
    text: str
    """Its class and message."""
    notes: tuple[str, ...]
    trace: str
    shortage: str | None
    """What is short, where the exception says that something is: a process that is started afterwards may have it."""

    def error(self) -> Exception:
        """The exception again; a RuntimeError with its class and message where it cannot be built again."""
        try:
            error = _load(self.pickled or b"")
        except Exception:  # noqa: BLE001 (whatever its class does)
            error = None
        if not isinstance(error, Exception):
            error = RuntimeError(self.text)
        error.__notes__ = list(self.notes)
        error.__cause__ = WorkerTracebackError(self.trace)
        return error


def failure_of(error: BaseException, where: str) -> Failure:
    """An exception for another process; `where` says in which one it was raised."""
    try:
        pickled = cloudpickle.dumps(error)
        if type(_load(pickled)) is not type(error):
            pickled = None
    except Exception:  # noqa: BLE001 (whatever its class does)
        pickled = None
    return Failure(
        pickled=pickled,
        text=f"{type(error).__module__}.{type(error).__qualname__}: {error}",
        notes=(*getattr(error, "__notes__", ()), where),
        trace="".join(traceback.format_exception(error)),
        shortage=shortage.described(error) if shortage.is_shortage(error) else None,
    )


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
