"""An exception comes back as it was, whatever its class's `__init__` takes."""

import threading
from dataclasses import dataclass
from typing import Any, Self

import pytest

from streampack.errors import TruncatedShardError
from streampack.loader import failures


class CodedError(Exception):
    """Needs an argument by name."""

    def __init__(self, code: int, *, why: str) -> None:
        super().__init__(code)
        self.code, self.why = code, why


class ReadingError(OSError):
    """Builds its message from an argument."""

    def __init__(self, path: str) -> None:
        super().__init__(f"cannot read {path}")
        self.path = path


class LockedError(Exception):
    """Holds what cannot be pickled, as an attribute and in its arguments."""

    def __init__(self) -> None:
        super().__init__("locked", threading.Lock())
        self.lock, self.kept = threading.Lock(), 7


class OwnError(Exception):
    """Can only be made by a `__new__` that wants more."""

    __slots__ = ("slot",)

    def __new__(cls, *, slot: int) -> Self:
        made = super().__new__(cls, "of new")
        made.slot = slot
        return made

    def __init__(self, *, slot: int) -> None:
        pass


@dataclass(frozen=True)
class FrozenError(Exception):
    """Refuses that its attributes are set."""

    size: int


def back(error: BaseException) -> Any:
    return failures.failure_of(error, "raised in worker 3").error()


@pytest.mark.parametrize(
    "error",
    [
        CodedError(3, why="so"),
        ReadingError("/x"),
        OwnError(slot=5),
        FrozenError(4),
        ValueError(1, "two"),
        FileNotFoundError(2, "No such file", "a", None, "b"),
        UnicodeDecodeError("utf8", b"x", 0, 1, "bad"),
        ImportError("none", name="a module", path="/a"),
        SyntaxError("wrong", ("file", 1, 2, "text")),
        KeyError("k"),
        TruncatedShardError("short", url="a.tar", member="m", offset=7),
    ],
    ids=lambda error: type(error).__name__,
)
def test_class_text_arguments_and_attributes_are_those_that_were_raised(error: Exception) -> None:
    object.__setattr__(error, "__notes__", ["a note of its own"])
    came = back(error)
    assert type(came) is type(error) and str(came) == str(error) and came.args == error.args
    assert {**vars(error), "__notes__": None} == {**vars(came), "__notes__": None}
    assert came.__notes__ == ["a note of its own", "raised in worker 3"]
    assert isinstance(came.__cause__, failures.WorkerTracebackError)
    for name in ("slot", "errno", "filename", "filename2", "encoding", "reason", "name", "path", "lineno", "text"):
        assert getattr(came, name, None) == getattr(error, name, None)


def test_what_cannot_be_sent_is_left_out_and_a_note_says_so() -> None:
    came = back(LockedError())
    assert (
        type(came) is LockedError and came.args == ("locked", "<lock>") and came.kept == 7 and not hasattr(came, "lock")
    )
    first, second, where = came.__notes__
    assert first.startswith("argument 1 (lock) was left out, as it cannot be sent: cannot pickle")
    assert second.startswith("attribute `lock` (lock) was left out") and where == "raised in worker 3"


def test_that_holds_for_exceptions_in_others() -> None:
    inner = CodedError(1, why="z")
    inner.add_note("a note inside")
    came = back(ExceptionGroup("several", [inner, LockedError(), ReadingError("/y")]))
    assert type(came) is ExceptionGroup and came.message == "several"
    coded, locked, reading = came.exceptions
    assert (coded.why, coded.__notes__, locked.kept, str(reading)) == ("z", ["a note inside"], 7, "cannot read /y")


def test_an_exception_that_holds_itself_comes_back() -> None:
    error = ValueError("a ring")
    error.itself = error  # type: ignore[attr-defined]
    came = back(error)
    assert type(came) is ValueError and "attribute `itself` (ValueError) was left out" in came.__notes__[0]


def test_a_class_that_cannot_be_sent_is_told_in_words() -> None:
    class OfTheWorkerError(Exception):
        """Local, and it holds a lock."""

        lock = threading.Lock()

    error = OfTheWorkerError("why")
    error.add_note("a note")
    came = back(error)
    assert type(came) is RuntimeError and str(came).endswith("OfTheWorkerError: why")
    assert came.__notes__ == ["a note", "raised in worker 3"]


def test_a_class_whose_text_cannot_be_made_hides_nothing() -> None:
    class WordlessError(Exception):
        """Its attribute is missing."""

        def __str__(self) -> str:
            return str(self.missing)  # type: ignore[attr-defined]

    assert "AttributeError" in failures.failure_of(WordlessError(), "here").text
