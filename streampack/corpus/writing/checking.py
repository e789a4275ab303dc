"""A record of JSON in, the error of one that no run could read out; by the code that a run reads with."""

from collections.abc import Callable
from functools import partial

from streampack.documents.contents import BadContentError
from streampack.documents.conversations import json_conversation
from streampack.documents.fields import Field, parse_field
from streampack.documents.jsonrecords import json_text
from streampack.errors import ConfigError, RecordError
from streampack.records import Limits

KEPT = 100
"""Bad records of a portion that are kept with their text; the others are only counted."""
Check = Callable[[bytes], object]


def as_field(field: str) -> Field:
    """The record of `field`, of JSON lines.

    Raises:
        ConfigError: it says another kind of member.
    """
    if isinstance(field, str) and field.startswith("jsonl:"):
        found = parse_field(field)
        if not found.exact:
            return found
    raise ConfigError(
        f"field={field!r} must be 'jsonl:KEY': shards are written as JSON lines, and KEY is where the text of a record "
        "is, as in 'jsonl:text' or 'jsonl:messages'; 'jsonl:a.b' is the key b of the object under a"
    )


def check_of(field: Field) -> Check:
    """A function that raises `BadContentError` for a record that a run with this field could not read."""
    read: Callable[..., object] = json_conversation if field.is_chat else json_text
    return partial(read, keys=field.keys, limit=Limits().document_bytes)


class BadRecords:
    """Counts the records that cannot be written, or raises the first one."""

    def __init__(self, *, skip: bool) -> None:
        self._skip = skip
        self.count = 0
        self.kept: list[str] = []
        """The first of them, each with its place."""

    def add(self, error: BadContentError, place: Callable[[], str]) -> None:
        """Take the next one.

        Raises:
            RecordError: bad records are not skipped.
        """
        if not self._skip:
            skip = "on_error='skip' (--on-error skip) leaves such records out and lists them"
            raise RecordError(f"{place()}: {error}. {skip}")
        self.count += 1
        if len(self.kept) < KEPT:
            self.kept.append(f"{place()}: {error}")
