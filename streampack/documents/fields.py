"""The argument `field` in, a record of its meaning out: which member of a sample holds documents, and where in it.

    field        member                       documents
    txt          .txt                         its text
    json:KEY     .json                        the string under KEY; `a.b` is the key b of the object under a
    jsonl:KEY    .jsonl .jsonl.gz .jsonl.zst  one per line; blank lines have no record index
    npy          .npy                         token ids, a 1-D array of integers

The value of a last key `messages` is a conversation: a list of objects with strings under `role` and `content`.
"""

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


@dataclass(frozen=True, slots=True)
class Field:
    """Which member of a sample holds the documents, and where in it; `parse_field` makes one."""

    kind: Literal["txt", "json", "jsonl", "npy"]
    keys: tuple[str, ...] = ()
    """For JSON: the key, after the keys of the objects around it."""

    def __str__(self) -> str:
        return f"{self.kind}:{'.'.join(self.keys)}" if self.keys else self.kind

    @property
    def is_chat(self) -> bool:
        """Whether a document is a conversation."""
        return self.keys[-1:] == ("messages",)

    @property
    def holds_many(self) -> bool:
        """Whether a member holds many documents, so that its size says nothing about theirs."""
        return self.kind == "jsonl"

    @property
    def extensions(self) -> tuple[str, ...]:
        """The usual extensions of the member."""
        return _EXTENSIONS[self.kind]

    def wanted(self, extension: str) -> bool:
        """Whether a member with this extension may hold the documents, so that it must be read."""
        names = _EXTENSIONS[self.kind]
        return extension in names or any(extension.endswith(f".{name}") for name in names)


def parse_field(field: str) -> Field:
    """The record for `"txt"`, `"json:KEY"`, `"jsonl:KEY"` or `"npy"`.

    Raises:
        ConfigError: it is not one of these.
    """
    kind, colon, path = field.partition(":")
    keys = tuple(path.split(".")) if colon else ()
    if kind in ("json", "jsonl") and not all(keys or ("",)):
        raise ConfigError(f"field={field!r} names no key: write {kind + ':text'!r}, or {kind + ':meta.text'!r}")
    if kind not in _EXTENSIONS or (colon and kind in ("txt", "npy")):
        raise unknown_choice(field, ("txt", "json:KEY", "jsonl:KEY", "npy"), "field")
    return Field(kind, keys)  # type: ignore[arg-type]  # a key of _EXTENSIONS
