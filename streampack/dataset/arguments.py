"""The arguments of `PackedDataset`, checked once: from then on their values are trusted.

In:    what a user gave: strings, numbers, option records or their shorthands.
Out:   a frozen `DatasetArguments`, whose numbers are in range and whose names are known.
Never: a request to a storage. What only the tokenizer or a template can tell is checked by `assembly`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from streampack.chat.options import Chat
from streampack.chat.templates import ChatFunction
from streampack.documents.split import HoldOut
from streampack.documents.transform import Transform
from streampack.errors import ConfigError, as_integer, check_choice
from streampack.packing.options import Packing, PackingKind
from streampack.packing.policies import BoundaryPolicy, ReplaceBoundary
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
    shuffle: bool | Literal["shards"]
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
        check_choice(self.epoch_end, ("pad", "stop"), "epoch_end")
        check_choice(self.on_error, ("raise", "skip"), "on_error")
        if not isinstance(self.shuffle, bool) and self.shuffle != "shards":
            raise ConfigError(f'shuffle={self.shuffle!r} must be True, False or "shards"')
        _check_record("hold_out", self.hold_out, HoldOut, optional=True)
        _check_record("limits", self.limits, Limits)
        self._check_integer("seed", 0)
        if self.num_lanes != "auto":
            self._check_integer("num_lanes", 1)
        if self.epochs is not None:
            self._check_integer("epochs", 1)
        if not isinstance(self.max_bad, float):
            self._check_integer("max_bad", 0)
        elif not 0 < self.max_bad < 1:
            raise ConfigError(f"max_bad={self.max_bad!r} must be a whole number, or a fraction above 0 and below 1")
        if self.is_validation and self.epochs not in (None, 1):
            raise ConfigError(
                f'hold_out: part="val" is always one epoch; epochs={self.epochs} cannot work, leave it out'
            )
        if self.tokenizer is None and (self.field != "npy" or self.add_bos or self.add_eos):
            raise ConfigError('tokenizer=None works with field="npy", add_bos=False and add_eos=False only')

    def _check_integer(self, name: str, low: int) -> None:
        """Check an argument; an integer of another type, such as numpy's, becomes an int, as it goes into JSON."""
        object.__setattr__(self, name, as_integer(getattr(self, name), name, low=low))

    @property
    def is_validation(self) -> bool:
        """Whether the documents are those that training holds out."""
        return self.hold_out is not None and self.hold_out.part == "val"

    @property
    def names_of_shards(self) -> tuple[str, ...]:
        """What `data` names, each as text."""
        if isinstance(self.data, (str, os.PathLike)):
            return (os.fspath(self.data),)
        return tuple(os.fspath(name) for name in self.data)


def as_storage(value: Storage | Mapping[str, object]) -> Storage:
    """The record that `value` is; a plain mapping stands for `Storage(options=value)`."""
    if isinstance(value, Mapping):
        return Storage(options=value)
    _check_record("storage", value, Storage)
    return value


def _check_record(name: str, value: object, kind: type, *, optional: bool = False) -> None:
    if not isinstance(value, kind) and not (optional and value is None):
        raise ConfigError(f"{name}={value!r} must be a streampack.{kind.__name__}" + (" or None" if optional else ""))
