"""Every error that streampack raises on purpose, in one tree.

StreampackError
├── ConfigError (ValueError)          an argument, a config file or a combination of them that cannot work
│   └── TopologyError                 ranks, workers and lanes that do not fit together
├── ShardError (OSError)              a shard as a whole
│   ├── ShardNotFoundError (FileNotFoundError)  nothing matches, or a listed shard is not there
│   ├── TruncatedShardError           the bytes end before the archive does
│   ├── CorruptShardError             the bytes are not what a tar may hold
│   │   └── WrongCutError             a range of a shard does not end where the next range begins
│   └── StorageError                  the storage kept failing until the retry budget was spent
├── RecordError (ValueError)          one sample or record inside a good shard; `on_error="skip"` skips it
│   ├── MissingFieldError             the member or the key that `field` asks for is not there
│   └── DocumentTooLongError          above `limits.document_bytes`, or above a pack with `overflow="error"`
├── TokenizerError (ValueError)       a model that cannot be loaded, or cannot do what is asked of it
├── StateError (ValueError)           a state that cannot be loaded here, with the field that differs
└── LoaderError (RuntimeError)        an iterator used after its end, or workers that cannot start or continue

Each can be built from one string, because torch rebuilds an exception from a worker as `type(message)`; where it
happened (`url`, `member`, `offset`) is in the message, and in attributes where the exception did not cross a process.

The checks of an argument that every package needs are here too: `as_integer`, `as_number`, `as_bool`, `as_choice`,
`check_choice`, and `unknown_choice`, the error of the last two; `record_hint` says how a record is written. `warn` is
for what works, and may be a mistake.
"""

import difflib
import sys
import warnings
from collections.abc import Mapping, Sequence
from enum import StrEnum
from numbers import Integral, Real
from typing import TypeVar

import numpy as np

_Choice = TypeVar("_Choice", bound=StrEnum)


class StreampackError(Exception):
    """The root: catch this to catch all of streampack's own errors."""

    def __init__(
        self, message: str = "", *, url: str | None = None, member: str | None = None, offset: int | None = None
    ) -> None:
        where = ", ".join(
            part
            for part in (
                url,
                None if member is None else f"member {member!r}",
                None if offset is None else f"byte {offset}",
            )
            if part is not None
        )
        message = f"{where}: {message}" if where else message
        # A name that is not UTF-8 has lone surrogates, which no terminal, log or message between ranks can take.
        self.message = message.encode("utf-8", "backslashreplace").decode()
        super().__init__(self.message)
        self.url = url
        self.member = member
        self.offset = offset

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[type["StreampackError"], tuple[str]]:
        return type(self), (self.message,)


class ConfigError(StreampackError, ValueError):
    """An argument, a config file or a combination of them that cannot work."""


class TopologyError(ConfigError):
    """Ranks, workers and lanes that do not fit together."""


class ShardError(StreampackError, OSError):
    """A shard as a whole."""


class ShardNotFoundError(ShardError, FileNotFoundError):
    """Nothing matches, or a listed shard is not there."""


class TruncatedShardError(ShardError):
    """The bytes end before the archive does."""


class CorruptShardError(ShardError):
    """The bytes are not what a tar may hold."""


class WrongCutError(CorruptShardError):
    """A range of a shard does not end where the next one begins: the cut fell into a tar in the tar. Never skipped."""


class StorageError(ShardError):
    """The storage kept failing until the retry budget was spent."""


class RecordError(StreampackError, ValueError):
    """One sample or record inside a good shard."""


class MissingFieldError(RecordError):
    """The member or the key that `field` asks for is not there."""


class DocumentTooLongError(RecordError):
    """A document above `limits.document_bytes`, or above a pack with `overflow="error"`."""


class TokenizerError(StreampackError, ValueError):
    """A model that cannot be loaded, or cannot do what is asked of it."""


class StateError(StreampackError, ValueError):
    """A state that cannot be loaded here."""


class LoaderError(StreampackError, RuntimeError):
    """An iterator used after its end, or workers that cannot start or continue."""


def as_integer(value: object, argument: str, *, low: int | None = None, high: int | None = None) -> int:
    """Return `value` as an int, or raise a ConfigError unless it is an integer (not a bool) from `low` to `high`.

    Store the result, not `value`: an integer of numpy is taken too, and it is no JSON value.
    """
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if number is None or (low is not None and number < low) or (high is not None and number > high):
        limits = "" if low is None else f" of at least {low}" if high is None else f" from {low} to {high}"
        raise ConfigError(f"{argument}={value!r} must be a whole number{limits}.")
    return number


def as_number(value: object, argument: str) -> float:
    """Return `value` as an int or a float, or raise a ConfigError unless it is a real number (not a bool)."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ConfigError(f"{argument}={value!r} must be a number.")
    try:
        number = float(value)
    except OverflowError:
        raise ConfigError(f"{argument} is larger than any float, and must be a number of at most 1.8e308") from None
    return value if isinstance(value, int) else number


def as_bool(value: object, argument: str, *, other: str | None = None) -> bool:
    """Return `value` as a bool, or raise a ConfigError unless it is True or False (numpy's too).

    `other`: what else the caller takes, for the error's text.
    """
    if not isinstance(value, bool | np.bool_):
        choices = "True or False" if other is None else f"True, False or {other}"
        raise ConfigError(f"{argument}={value!r} must be {choices}")
    return bool(value)


def as_choice(kind: type[_Choice], value: object, argument: str) -> _Choice:
    """Return the member of `kind` that `value` is or names; otherwise a ConfigError that suggests the nearest name."""
    check_choice(value, [member.value for member in kind], argument)
    return kind(str(value))


def check_choice(value: object, names: Sequence[str], argument: str) -> None:
    """Raise a ConfigError that suggests the nearest name unless `value`, as a string, is one of `names`."""
    if str(value) not in names:
        raise unknown_choice(value, names, argument)


def unknown_choice(value: object, names: Sequence[str], argument: str) -> ConfigError:
    """The ConfigError for a value that is none of `names`; it suggests the nearest name."""
    near = difflib.get_close_matches(str(value).lower(), names, n=1, cutoff=0.4)
    hint = f'did you mean "{near[0]}"? Choose' if near else "choose"
    return ConfigError(f"{argument}={value!r} is not known; {hint} one of {', '.join(names)}.")


def record_hint(kind: type, value: object) -> str:
    """What an error adds where `value` is a mapping, as in a config file, or the class, in place of a record."""
    if value is kind:
        return f"; write {kind.__name__}(...)"
    if not isinstance(value, Mapping):
        return ""
    return f"; write {kind.__name__}({', '.join(f'{name}={each!r}' for name, each in value.items())})"


def warn(message: str) -> None:
    """A `UserWarning` that points at the line outside of streampack from which it was called."""
    level, frame = 2, sys._getframe(1)  # noqa: SLF001  # there is no other way to a caller's line
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "streampack":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)
