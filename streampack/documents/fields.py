"""The argument `field` in, a record of its meaning out: which member of a sample holds documents, and where in it.

    field        member                       documents
    txt          .txt                         its text
    json:KEY     .json                        the string under KEY; `a.b` is the key b of the object under a
    jsonl:KEY    .jsonl .jsonl.gz .jsonl.zst  one per line; blank lines have no record index
    npy          .npy                         token ids, a 1-D array of integers
    .meta.json:KEY                            as json:KEY, of the member with exactly this extension

Without a dot at the front, the member may also be one whose extension ends so (`page.txt`), if it is the only one.
The value of a last key `messages` is a conversation: a list of objects with strings under `role` and `content`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from streampack.documents.compression import SUFFIXES
from streampack.errors import ConfigError, unknown_choice

_EXTENSIONS = {
    "txt": ("txt",),
    "json": ("json",),
    "jsonl": ("jsonl", *(f"jsonl.{suffix}" for suffix in SUFFIXES)),
    "npy": ("npy",),
}
_MAX_EXTENSIONS = 64
"""Extensions for which it is remembered whether they are wanted."""


@dataclass(frozen=True, slots=True)
class Field:
    """Which member of a sample holds the documents, and where in it; `parse_field` makes one."""

    kind: Literal["txt", "json", "jsonl", "npy"]
    keys: tuple[str, ...] = ()
    """For JSON: the key, after the keys of the objects around it."""
    exact: str = ""
    """The extension of the member; "": any that the kind has."""

    def __str__(self) -> str:
        member = f".{self.exact}" if self.exact else self.kind
        return f"{member}:{'.'.join(self.keys)}" if self.keys else member

    @property
    def is_chat(self) -> bool:
        """Whether a document is a conversation."""
        return self.keys[-1:] in (("messages",), ("conversations",))

    @property
    def holds_many(self) -> bool:
        """Whether a member holds many documents, so that its size says nothing about theirs."""
        return self.kind == "jsonl"

    @property
    def extensions(self) -> tuple[str, ...]:
        """The usual extensions of the member."""
        return (self.exact,) if self.exact else _EXTENSIONS[self.kind]

    @property
    def may_be_compressed(self) -> bool:
        """Whether the member may hold more bytes than are stored of it."""
        return any(name.endswith(SUFFIXES) for name in self.extensions)

    @property
    def wanted(self) -> Callable[[str], bool]:
        """Whether a member with this extension may hold the documents, so that it must be read."""
        return _wanted(self)

    def _is_wanted(self, extension: str) -> bool:
        return extension == self.exact if self.exact else _kind_of(extension) == self.kind


@functools.lru_cache(16)
def _wanted(field: Field) -> Callable[[str], bool]:
    return functools.lru_cache(_MAX_EXTENSIONS)(field._is_wanted)  # noqa: SLF001 - of this module


def parse_field(field: str) -> Field:
    """The record for `"txt"`, `"json:KEY"`, `"jsonl:KEY"`, `"npy"`, or one of them as a whole extension (`".a.txt"`).

    Raises:
        ConfigError: it is not one of these.
    """
    member, colon, path = field.partition(":")
    exact = member[1:].lower() if member.startswith(".") else ""
    kind = _kind_of(exact) if exact else member
    keys = tuple(path.split(".")) if colon else ()
    if kind in ("json", "jsonl") and not all(keys or ("",)):
        raise ConfigError(f"field={field!r} names no key: write {member + ':text'!r}, or {member + ':meta.text'!r}")
    if kind not in _EXTENSIONS or (colon and kind in ("txt", "npy")):
        raise unknown_choice(field, ("txt", "json:KEY", "jsonl:KEY", "npy"), "field")
    return Field(kind, keys, exact)  # type: ignore[arg-type]  # a key of _EXTENSIONS


def _kind_of(extension: str) -> str:
    """The kind that a member with this extension may hold; "" for none."""
    for kind, names in _EXTENSIONS.items():
        if extension in names or extension.endswith(tuple(f".{name}" for name in names)):
            return kind
    return ""
