"""Single values that a config file writes differently from Python: sizes, paths, functions.

In:    text out of the file. Out: numbers of bytes, paths as the rest of the library takes them, functions.
Never: an environment variable or `~` expanded: a config means the same for everyone who reads it.
"""

import importlib.resources
import os
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path

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


def as_function(name: str, key: str) -> Callable[..., object]:
    """The function that "module:function" names; `key` is where the file says so.

    Raises:
        ConfigError: it cannot be imported, or is not a function.
    """
    try:
        function: object = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"`{key}`: {name!r} cannot be imported: {error}") from error
    if not callable(function):
        raise ConfigError(f'`{key}` is "module:function"; {name!r} is {shown(function)}')
    return function


def shown(value: object) -> str:
    """A value and its type for an error, shortened."""
    if value is None:
        return "null"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
