"""The arguments of `PackedDataset`, checked once: from then on their values are trusted.

In:    what a user gave: strings, numbers, option records or their shorthands.
Out:   a frozen `DatasetArguments`, whose numbers are in range and whose names are known.
Never: a request to a storage. What only the tokenizer or a template can tell is checked by `assembly`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, NamedTuple

from streampack.chat.options import Chat
from streampack.chat.templates import ChatFunction
from streampack.corpus.options import Order, Shuffle, as_order
from streampack.dataset.sources import Data, Source, as_sources
from streampack.dataset.stages import Stage, all_sources, as_count, as_stages, weights_of
from streampack.documents.split import HoldOut
from streampack.documents.transform import Transform
from streampack.errors import ConfigError, as_bool, as_integer, as_number, check_choice, record_hint, warn
from streampack.packing.options import Packing, PackingKind
from streampack.packing.policies import INT32, BoundaryPolicy, ReplaceBoundary
from streampack.records import Limits, Tokenizer
from streampack.storage.options import Storage, as_storage
from streampack.tokenizers.folders import TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetArguments:
    """The arguments of `PackedDataset`, by the same names; its docstring says what they mean.

    Raises:
        ConfigError: a value that cannot work.
    """

    data: Data | Source | Mapping[str, Data | Source]
    """Here it is a dict of sources."""
    tokenizer: str | os.PathLike[str] | Tokenizer | None
    seq_len: int
    field: str
    chat: Chat | str | ChatFunction | None
    transform: Transform | None
    transform_version: str
    add_bos: bool
    add_eos: bool
    pad_id: int | None
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    boundary: BoundaryPolicy | ReplaceBoundary | str
    packing: Packing | PackingKind | str | None
    shuffle: Shuffle | bool | Literal["shards"]
    """True is `Shuffle()`; `order` is what is read."""
    seed: int
    num_lanes: int | Literal["auto"]
    epochs: int | None
    stages: Sequence[Stage]
    """Here it is a tuple, never empty."""
    num_tokens: float | None
    num_packs: float | None
    exhausted: Literal["skip", "error"]
    epoch_end: Literal["pad", "stop"]
    hold_out: HoldOut | None
    on_error: Literal["raise", "skip"]
    max_bad: float
    limits: Limits
    storage: Storage
    engine: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", as_sources(self.data))
        object.__setattr__(self, "stages", as_stages(self.stages))
        weights_of(self.first_sources, self.stages)  # refuses names and weights that do not fit together
        self._check_text("field")
        self._check_text("transform_version")
        if self.transform is not None and not callable(self.transform):
            raise ConfigError(f"transform={self.transform!r} must be a function or None")
        self._check_bool("add_bos")
        self._check_bool("add_eos")
        self._check_tokens()
        check_choice(self.epoch_end, ("pad", "stop"), "epoch_end")
        check_choice(self.on_error, ("raise", "skip"), "on_error")
        check_choice(self.exhausted, ("skip", "error"), "exhausted")
        as_order(self.shuffle)  # refuses what it is not
        _check_record("hold_out", self.hold_out, HoldOut, optional=True)
        _check_record("limits", self.limits, Limits)
        self._check_integer("seq_len", 2, INT32.max)
        self._check_integer("seed", 0)
        if not isinstance(self.num_lanes, str) or self.num_lanes != "auto":
            self._check_integer("num_lanes", 1)
        if self.epochs is not None:
            self._check_integer("epochs", 1)
        for name in ("num_tokens", "num_packs"):
            if (budget := getattr(self, name)) is not None:
                object.__setattr__(self, name, as_count(budget, name))
        self._check_end()
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
        if self.tokenizer is None and (self.add_bos or self.add_eos or self._reads_text()):
            raise ConfigError(
                'tokenizer=None works with field="npy", add_bos=False and add_eos=False only; else give the path of a '
                "SentencePiece model, a tokenizer.json, a tekken.json or a folder with one"
            )

    def _check_tokens(self) -> None:
        """Refuse a BOS, EOS or PAD by name where nothing could follow it."""
        for name in TOKENS:
            if (token := getattr(self, name)) is None:
                continue
            self._check_text(name)
            if self.tokenizer is None:
                raise ConfigError(f"{name}={token!r} is a token of a tokenizer, and there is none: leave it out")
            if not isinstance(self.tokenizer, (str, os.PathLike)):
                raise ConfigError(
                    f"{name}={token!r} is for a tokenizer that is given by its path. An object says itself what its "
                    f"{name.removesuffix('_token')}_id is; those of streampack.tokenizers take {name}= too"
                )
        if self.pad_token and self.pad_id is not None:
            raise ConfigError(f"pad_id={self.pad_id} and pad_token={self.pad_token!r}: give one of the two")

    def _check_end(self) -> None:
        """Refuse two ends of a run, and an end that is not one for these sources."""
        budgets = ("num_tokens", "num_packs")
        given = {name: getattr(self, name) for name in budgets if getattr(self, name) is not None}
        if len(given) > 1:
            raise ConfigError(f"num_tokens={self.num_tokens} and num_packs={self.num_packs}: give one of the two")
        for index, stage in enumerate(self.stages):
            for kind in ("tokens", "packs"):
                begin, end = getattr(stage, f"at_{kind}"), given.get(f"num_{kind}")
                if begin is not None and end is not None and begin >= end:
                    warn(
                        f"stages[{index}] (at_{kind}={begin}) does not begin: the run ends at num_{kind}={end}",
                    )
        if self.is_validation and self.stages != (Stage(),):
            raise ConfigError('hold_out: part="val" is one epoch of the sources in data; leave stages out')
        if self.is_validation and given:
            (name, budget), read = next(iter(given.items())), sum(map(bool, self.weights[0].values()))
            if (packs := -(-budget // self.seq_len) if name == "num_tokens" else budget) < read:
                raise ConfigError(
                    f"{name}={budget} of a validation set is {packs} packs, fewer than its {read} sources, and each "
                    "gives at least one: raise it, or leave sources out"
                )
        if self.epochs is None or self.is_validation:
            return
        others = [f"{name}={value}" for name, value in given.items()]
        others += [f"{len(self.sources)} sources"] * (len(self.sources) > 1) + ["stages"] * (len(self.stages) > 1)
        others += [f"max_epochs={source.max_epochs}" for source in self.sources.values() if source.max_epochs]
        if others:
            raise ConfigError(
                f"epochs={self.epochs} is passes over one source, and cannot be given with {others[0]}. End the run "
                "at a number of tokens or packs (num_tokens, num_packs), or after so many epochs of each source: "
                "streampack.Source(shards, max_epochs=...)"
            )

    def _reads_text(self) -> bool:
        return any(self.reading(source).field != "npy" for source in self.sources.values())

    def _check_integer(self, name: str, low: int, high: int | None = None) -> None:
        """Check an argument; an integer of another type, such as numpy's, becomes an int, as it goes into JSON."""
        object.__setattr__(self, name, as_integer(getattr(self, name), name, low=low, high=high))

    def _check_bool(self, name: str, *, other: str | None = None) -> None:
        object.__setattr__(self, name, as_bool(getattr(self, name), name, other=other))

    def _check_text(self, name: str) -> None:
        if not isinstance(getattr(self, name), str):
            raise ConfigError(f"{name}={getattr(self, name)!r} must be a string")

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """Which of "bos_token", "eos_token" and "pad_token" are given, with the text of each token."""
        return {name: token for name in TOKENS if (token := getattr(self, name)) is not None}

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
    def first_sources(self) -> Mapping[str, Source]:
        """The sources of `data`."""
        assert isinstance(self.data, dict)
        return self.data

    @property
    def sources(self) -> Mapping[str, Source]:
        """All sources of the run, in order."""
        return all_sources(self.first_sources, self.stages)

    @property
    def weights(self) -> list[dict[str, float]]:
        """Of each stage, for all sources."""
        return weights_of(self.first_sources, self.stages)

    def reading(self, source: Source) -> "SourceReading":
        """How the documents of a source are read: what it does not say, the dataset does."""
        own = source.transform is not None
        return SourceReading(
            field=self.field if source.field is None else source.field,
            transform=source.transform if own else self.transform,
            transform_version=source.transform_version if own else self.transform_version,
            chat=self.chat if source.chat is None else source.chat,
            storage=self.storage if source.storage is None else as_storage(source.storage),
        )


class SourceReading(NamedTuple):
    """How the documents of a source are read."""

    field: str
    transform: Transform | None
    transform_version: str
    chat: Chat | str | ChatFunction | None
    storage: Storage


def _check_record(name: str, value: object, kind: type, *, optional: bool = False) -> None:
    if not isinstance(value, kind) and not (optional and value is None):
        wanted = f"a streampack.{kind.__name__}" + (" or None" if optional else "")
        raise ConfigError(f"{name}={value!r} must be {wanted}{record_hint(kind, value)}")
