"""The arguments of `PackedDataset`, checked once: from then on their values are trusted.

In:    what a user gave: strings, numbers, option records or their shorthands.
Out:   a frozen `DatasetArguments`, whose numbers are in range and whose names are known.
Never: a request to a storage. What only the tokenizer or a template can tell is checked by `assembly`.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Literal, TypeAlias

from streampack.chat.options import Chat
from streampack.chat.templates import ChatFunction
from streampack.corpus.options import Order, Shuffle, as_order
from streampack.documents.split import HoldOut
from streampack.documents.transform import Transform
from streampack.errors import ConfigError, as_bool, as_integer, as_number, check_choice, record_hint
from streampack.packing.options import Packing, PackingKind
from streampack.packing.policies import INT32, BoundaryPolicy, ReplaceBoundary
from streampack.records import Limits, Tokenizer
from streampack.storage.options import Storage

Data: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""What names shards: a URL, braces, a glob, a directory, "@manifest.jsonl"; or several of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetArguments:
    """The arguments of `PackedDataset`, by the same names; its docstring says what they mean.

    Raises:
        ConfigError: a value that cannot work.
    """

    data: Data
    """Any iterable of names may be given; here it is a tuple of texts, which can be pickled."""
    tokenizer: str | os.PathLike[str] | Tokenizer | None
    seq_len: int
    field: str
    chat: Chat | str | ChatFunction | None
    transform: Transform | None
    transform_version: str
    add_bos: bool
    add_eos: bool
    pad_id: int | None
    boundary: BoundaryPolicy | ReplaceBoundary | str
    packing: Packing | PackingKind | str | None
    shuffle: Shuffle | bool | Literal["shards"]
    """True is `Shuffle()`; `order` is what is read."""
    seed: int
    num_lanes: int | Literal["auto"]
    epochs: int | None
    epoch_end: Literal["pad", "stop"]
    hold_out: HoldOut | None
    on_error: Literal["raise", "skip"]
    max_bad: float
    limits: Limits
    storage: Storage
    engine: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", _names(self.data))
        self._check_text("field")
        self._check_text("transform_version")
        if self.transform is not None and not callable(self.transform):
            raise ConfigError(f"transform={self.transform!r} must be a function or None")
        self._check_bool("add_bos")
        self._check_bool("add_eos")
        check_choice(self.epoch_end, ("pad", "stop"), "epoch_end")
        check_choice(self.on_error, ("raise", "skip"), "on_error")
        as_order(self.shuffle)  # refuses what it is not
        _check_record("hold_out", self.hold_out, HoldOut, optional=True)
        _check_record("limits", self.limits, Limits)
        self._check_integer("seq_len", 2, INT32.max)
        self._check_integer("seed", 0)
        if not isinstance(self.num_lanes, str) or self.num_lanes != "auto":
            self._check_integer("num_lanes", 1)
        if self.epochs is not None:
            self._check_integer("epochs", 1)
        if isinstance(self.max_bad, Integral):
            self._check_integer("max_bad", 0)
        else:
            object.__setattr__(self, "max_bad", as_number(self.max_bad, "max_bad"))
            if not 0 < self.max_bad < 1:
                raise ConfigError(f"max_bad={self.max_bad!r} must be a whole number, or a fraction above 0 and below 1")
        if self.is_validation and self.epochs not in (None, 1):
            raise ConfigError(
                f'hold_out: part="val" is always one epoch; epochs={self.epochs} cannot work, leave it out'
            )
        if self.tokenizer is None and (self.field != "npy" or self.add_bos or self.add_eos):
            raise ConfigError(
                'tokenizer=None works with field="npy", add_bos=False and add_eos=False only; else give the path of a '
                "SentencePiece model or of a tokenizer.json"
            )

    def _check_integer(self, name: str, low: int, high: int | None = None) -> None:
        """Check an argument; an integer of another type, such as numpy's, becomes an int, as it goes into JSON."""
        object.__setattr__(self, name, as_integer(getattr(self, name), name, low=low, high=high))

    def _check_bool(self, name: str, *, other: str | None = None) -> None:
        object.__setattr__(self, name, as_bool(getattr(self, name), name, other=other))

    def _check_text(self, name: str) -> None:
        if not isinstance(getattr(self, name), str):
            raise ConfigError(f"{name}={getattr(self, name)!r} must be a string")

    @property
    def is_validation(self) -> bool:
        """Whether the documents are those that training holds out."""
        return self.hold_out is not None and self.hold_out.part == "val"

    @property
    def held_out_cells(self) -> HoldOut | None:
        """Which part of the corpus is read, where cells of the shards are held out; else None."""
        return self.hold_out if self.hold_out is not None and self.hold_out.by == "block" else None

    @property
    def order(self) -> Order:
        """In which order documents are read; those for validation come as listed."""
        return False if self.is_validation else as_order(self.shuffle)

    @property
    def names_of_shards(self) -> tuple[str, ...]:
        """What `data` names, each as text."""
        return _names(self.data)


def as_storage(value: Storage | Mapping[str, object]) -> Storage:
    """The record that `value` is; a plain mapping stands for `Storage(options=value)`."""
    if isinstance(value, Mapping):
        if own := [field.name for field in fields(Storage) if field.name in value]:
            given = ", ".join(f"{name}=..." for name in own)
            raise ConfigError(
                f"storage is a mapping with {', '.join(map(repr, own))}, and a plain mapping holds options of the "
                f"filesystem: use storage=streampack.Storage({given}). An option of the filesystem that has such a "
                "name goes into Storage(options=...)."
            )
        return Storage(options=value)
    _check_record("storage", value, Storage)
    return value


def _names(data: object) -> tuple[str, ...]:
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
            holder = f" (in {_shown(data)})" if several else ""
            raise ConfigError(
                f"data: {_shown(name)}{holder} {wanted}. Documents are read from tar shards: docs/data.md shows how to "
                "write them (streampack.testing.write_shards)"
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


def _check_record(name: str, value: object, kind: type, *, optional: bool = False) -> None:
    if not isinstance(value, kind) and not (optional and value is None):
        wanted = f"a streampack.{kind.__name__}" + (" or None" if optional else "")
        raise ConfigError(f"{name}={value!r} must be {wanted}{record_hint(kind, value)}")
