"""Single values that a config file writes differently from Python: sizes, paths, functions.

In:    text out of the file. Out: numbers of bytes, paths as the rest of the library takes them, functions.
Never: an environment variable or `~` expanded: a config means the same for everyone who reads it.
"""

import importlib.resources
import os
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streampack.errors import ConfigError

_UNITS = {f"{prefix}{i}B": (1024 if i else 1000) ** power for power, prefix in enumerate("KMGT", 1) for i in ("", "i")}


def as_bytes(text: str) -> int:
    """The number of bytes that "512MiB" or "8 MB" is.

    Raises:
        ConfigError: the text has another form.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]i?B)", text)
    if match is None:
        raise ConfigError(f"must be a number of bytes or a size such as 512MiB or 8MB; found {shown(text)}")
    return int(float(match[1]) * _UNITS[match[2]])


def as_path(text: str, folder: Path) -> str:
    """A path or URL, where one that starts with ./ or ../ is relative to `folder`.

    `package://some.package/path` is inside an installed package; `@` before a path marks a manifest.

    Raises:
        ConfigError: there is no such package.
    """
    if text.startswith("@"):
        return "@" + as_path(text[1:], folder)
    if text.startswith(("./", "../")):
        return os.path.abspath(folder / text)  # noqa: PTH100  # resolve() would follow symbolic links
    if text.startswith("package://"):
        package, _, inner = text.removeprefix("package://").partition("/")
        try:
            return f"{importlib.resources.files(package)}/{inner}"
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{text}: there is no package {package!r} to import") from error
    return text


@dataclass(frozen=True, slots=True)
class NamedFunction:
    """A function that a file names as "module:function"; it is imported when the arguments are asked for."""

    name: str
    key: str
    """Where the file says so."""

    def __call__(self, *_: object) -> object:
        raise AssertionError(f"{self} was not imported")

    def imported(self) -> Callable[..., Any]:  # Any: only the constructor that takes it knows
        """The function itself.

        Raises:
            ConfigError: it cannot be imported, or is not a function.
        """
        try:
            function: object = pkgutil.resolve_name(self.name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(f"`{self.key}`: {self.name!r} cannot be imported: {error}") from error
        if not callable(function):
            raise ConfigError(f'`{self.key}` is "module:function"; {self.name!r} is {shown(function)}')
        return function


def shown(value: object) -> str:
    """A value and its type for an error, shortened."""
    if value is None:
        return "null"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
