"""The sources of a run: the public record `Source`, and the names that a mapping gives to several.

In:    what a user wrote as `data`: names of shards, a `Source`, or a mapping of names to these.
Out:   frozen sources by name, in the order in which they were given; the seed of each.
Never: a request to a storage. Whether fields, templates and shards are there is checked by `assembly` and `shardlist`.
"""

import contextlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TypeAlias

from streampack.chat.options import Chat, as_chat
from streampack.chat.templates import ChatFunction
from streampack.corpus.shares import DEFAULT
from streampack.documents.transform import Transform
from streampack.errors import ConfigError, StreampackError, as_integer, as_number, record_hint
from streampack.hashing import Purpose, hash_name, hash_words
from streampack.storage.options import Storage, as_storage

Data: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""What names shards: a URL, braces, a glob, a directory, "@manifest.jsonl"; or several of them."""

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class Source:
    """One part of a mixture: its shards, its share, and how its documents are read.

    Args:
        data: which shards, as `PackedDataset` takes them.
        weight: its share of the packs, in proportion to those of the other sources; weights need not add up to 1.
            Under "wrap" the share of packs is that of tokens. 0: it is named, and none of it is read.
        field: which part of a sample is a document. None, here and below: the dataset's own.
        transform: what is done with each document.
        transform_version: a name for what this `transform` does; part of the fingerprint.
        chat: for conversations: how they become tokens, and which messages are targets.
        max_epochs: how many times each document is read at most; None: without end. It may be raised at any resume.
        storage: how the shards are reached. A plain mapping stands for `Storage(options=mapping)`.

    Raises:
        ConfigError: a value that cannot work.
    """

    data: Data
    """Any iterable of names may be given; here it is a tuple of texts, which can be pickled."""
    weight: float = 1.0
    _: KW_ONLY
    field: str | None = None
    transform: Transform | None = None
    transform_version: str = ""
    chat: Chat | str | ChatFunction | None = None
    max_epochs: int | None = None
    storage: Storage | Mapping[str, object] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", names_of(self.data))
        object.__setattr__(self, "weight", as_weight(self.weight, "weight"))
        if not isinstance(self.field, str | None):
            raise ConfigError(f"field={self.field!r} must be a string or None")
        if self.transform is not None and not callable(self.transform):
            raise ConfigError(f"transform={self.transform!r} must be a function or None")
        if not isinstance(self.transform_version, str):
            raise ConfigError(f"transform_version={self.transform_version!r} must be a string")
        if self.transform_version and self.transform is None:
            raise ConfigError(
                f"transform_version={self.transform_version!r} is of a transform, and this source has none of its own"
            )
        if self.chat is not None:
            as_chat(self.chat)  # refuses what it is not
        if self.max_epochs is not None:
            object.__setattr__(self, "max_epochs", as_integer(self.max_epochs, "max_epochs", low=1))
        if self.storage is not None:
            object.__setattr__(self, "storage", as_storage(self.storage))


def as_sources(data: object, argument: str = "data") -> dict[str, Source]:
    """The sources that `data` is, by name; data without names is one source, "default".

    Raises:
        ConfigError: a name that is no name, a value that is no data; no source at all.
    """
    if isinstance(data, Source):
        return {DEFAULT: data}
    if not isinstance(data, Mapping):
        return {DEFAULT: Source(data)}  # type: ignore[arg-type]  # checked there
    if not data:
        raise ConfigError(f"{argument}: no sources, as the mapping is empty; give a name to the shards of each")
    found = {}
    for name, value in data.items():
        check_name(name, argument)
        if value is Source or isinstance(value, Mapping):
            raise ConfigError(
                f"{argument}[{name!r}] must be a streampack.Source, or what names shards{record_hint(Source, value)}"
            )
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ConfigError(
                f"{argument}[{name!r}]={value!r} is a number: {argument} maps the name of each source to its shards; "
                f"a weight goes into the source: {{{name!r}: streampack.Source(shards, {value!r})}}"
            )
        try:
            found[name] = value if isinstance(value, Source) else Source(value)
        except ConfigError as error:
            raise ConfigError(f"source {name!r}: {error.message}") from error
    return found


def check_name(name: object, argument: str) -> None:
    """Refuse what cannot be the name of a source."""
    if isinstance(name, str) and _NAME.fullmatch(name):
        return
    hint = ""
    if isinstance(name, str) and ("/" in name or name.endswith(".tar")):
        hint = f"; to read shards with other weights, give each a name: {{'web': streampack.Source({name!r}, 0.7)}}"
    raise ConfigError(
        f"{argument}: {name!r} is not the name of a source, which is a text of letters, digits, '_', '-' and '.'{hint}"
    )


def as_weight(value: object, argument: str) -> float:
    """A weight as a number, or a ConfigError unless it is finite and at least 0."""
    number = as_number(value, argument)
    if not (math.isfinite(number) and number >= 0):
        raise ConfigError(f"{argument}={value!r} must be a number of at least 0, and finite")
    return number


def source_seed(seed: int, name: str) -> int:
    """The seed of a source: another one for each name, and the run's own for a source without a name."""
    return seed if name == DEFAULT else hash_words(Purpose.SOURCE, seed, hash_name(name))


@contextlib.contextmanager
def errors_of(name: str) -> Iterator[None]:
    """Name the source in the errors of what is done for it; that of a dataset without names goes unnamed."""
    try:
        yield
    except StreampackError as error:
        if name == DEFAULT or error.message.startswith(f"source {name!r}: "):
            raise
        named = type(error)(f"source {name!r}: {error.message}")
        named.url, named.member, named.offset = error.url, error.member, error.offset
        raise named from error


def names_of(data: object) -> tuple[str, ...]:
    """What `data` names, each as text."""
    wanted = "must be a URL or a path, as text or os.PathLike; or several of them"
    if isinstance(data, set | frozenset | Mapping):
        is_set = not isinstance(data, Mapping)
        why = "its order may be another one in each process" if is_set else "shards have no other names"
        raise ConfigError(f"data: {_shown(data)} {wanted} in a list ({why})")
    several = isinstance(data, Iterable) and not isinstance(data, str | bytes | os.PathLike)
    names: Iterable[object] = data if several else (data,)  # type: ignore[assignment]  # an Iterable
    texts = []
    for name in names:
        text = os.fspath(name) if isinstance(name, os.PathLike) else name
        if not isinstance(text, str):
            if isinstance(name, Source):
                raise ConfigError("data: several sources need names: {'web': streampack.Source(shards, 0.7), ...}")
            holder = f" (in {_shown(data)})" if several else ""
            raise ConfigError(
                f"data: {_shown(name)}{holder} {wanted}. Documents are read from tar shards: "
                "streampack.write_shards(data, FOLDER) makes them; docs/data.md shows how"
            )
        texts.append(text)
    if not texts:
        raise ConfigError(f"data: no shards, as {_shown(data)} is empty; it {wanted}")
    return tuple(texts)


def _shown(value: object) -> str:
    """The value, or its type where it may hold documents."""
    kind = type(value)
    plain = value is None or isinstance(value, int | float | bytes)
    return f"{value!r:.80}" if plain else f"a {kind.__module__}.{kind.__qualname__}".replace(" builtins.", " ")
