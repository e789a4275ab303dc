"""The stages of a run: the public record `Stage`, and what several of them must have in common.

In:    what a user wrote, and the sources of `data`.
Out:   all sources of the run by name; of each stage the weight of each source; or a ConfigError that names the stage.
Never: a lane. With which pack a stage begins is resolved in `resolution`, once the number of lanes is known.
"""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from streampack.dataset.sources import Source, as_sources, as_weight
from streampack.errors import ConfigError, as_integer, record_hint
from streampack.packing.options import Packing, PackingKind, as_packing
from streampack.packing.policies import INT32, BoundaryPolicy, ReplaceBoundary, as_boundary


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What changes in mid-run; the first stage of a run begins with it, each other one at a number of tokens or packs.

    A stage begins with the first round (a pack of each lane) at or after its number. What it does not name stays as it
    was in the stage before; the first stage has the arguments of the dataset.

    Args:
        at_tokens: tokens of the run before it, where each pack counts `seq_len` of them. A whole number; 2e12 is one.
        at_packs: packs of the run before it. Each stage but the first has one of the two.
        weights: name -> weight, in proportion; a source that is not named has none. None: as in the stage before; for
            the first stage those of the sources.
        sources: name -> `Source` that are there from this stage on; their shares are in `weights`.
        seq_len: tokens of a pack.
        packing: how rows become packs.
        boundary: the label of the row at a document's end.
        exclude: a file of documents that are left out from this stage on, and in all stages after it: lines of JSON
            with the source, the shard, the key of the sample and, where a member has many, the record
            (docs/mixing.md). They count as nothing, not as bad records either.

    Raises:
        ConfigError: a value that cannot work.
    """

    at_tokens: float | None = None
    at_packs: float | None = None
    weights: Mapping[str, float] | None = None
    sources: Mapping[str, Source] | None = None
    seq_len: int | None = None
    packing: Packing | PackingKind | str | None = None
    boundary: BoundaryPolicy | ReplaceBoundary | str | None = None
    exclude: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for name in ("at_tokens", "at_packs"):
            if (at := getattr(self, name)) is not None:
                object.__setattr__(self, name, as_count(at, name))
        if self.at_tokens is not None and self.at_packs is not None:
            raise ConfigError(f"at_tokens={self.at_tokens} and at_packs={self.at_packs}: give one of the two")
        if self.weights is not None:
            object.__setattr__(self, "weights", as_weights(self.weights))
        if self.sources is not None:
            if not isinstance(self.sources, Mapping):
                raise ConfigError(
                    f"sources must be a mapping of names to sources, not a {type(self.sources).__name__}: "
                    "{'name': streampack.Source(shards)}"
                )
            object.__setattr__(self, "sources", as_sources(self.sources, "sources"))
        if self.seq_len is not None:
            object.__setattr__(self, "seq_len", as_integer(self.seq_len, "seq_len", low=2, high=INT32.max))
        if self.packing is not None:
            as_packing(self.packing)  # refuses what it is not
        if self.boundary is not None:
            object.__setattr__(self, "boundary", as_boundary(self.boundary))
        if self.exclude is not None:
            object.__setattr__(self, "exclude", as_file(self.exclude, "exclude"))

    @property
    def begin(self) -> tuple[str, int] | None:
        """The name and the number of what says where it begins; None: with the run."""
        if self.at_tokens is not None:
            return "at_tokens", int(self.at_tokens)
        return None if self.at_packs is None else ("at_packs", int(self.at_packs))


def as_stages(value: object) -> tuple[Stage, ...]:
    """The stages that `value` is, each at a later place than the one before; a first one is always there.

    Raises:
        ConfigError: something else; or a stage that begins nowhere, or before the one that it follows.
    """
    if isinstance(value, Mapping | Stage | str) or not isinstance(value, Iterable):
        kind = type(value).__name__
        raise ConfigError(f"stages must be a list of stages, not a {kind}: [streampack.Stage(weights={{...}}), ...]")
    stages = tuple(value)
    for index, stage in enumerate(stages):
        if not isinstance(stage, Stage):
            raise ConfigError(f"stages[{index}]={stage!r:.200} must be a streampack.Stage{record_hint(Stage, stage)}")
        if index == 0 and stage.begin is not None:
            name, number = stage.begin
            raise ConfigError(
                f"stages[0] begins with the run, and has {name}={number}: leave it out, or put a Stage() before it"
            )
        if index == 0:
            continue
        if stage.begin is None:
            raise ConfigError(f"stages[{index}] needs at_tokens or at_packs: where it begins")
        name, number = stage.begin
        before = stages[index - 1].begin
        if before is not None and before[0] == name and number <= before[1]:
            raise ConfigError(
                f"stages[{index}] has {name}={number}, and the one before it {before[1]}: stages come in the order in "
                "which they begin"
            )
    if stages and stages[0].sources is not None:
        raise ConfigError("stages[0] has sources: those that are there from the beginning belong in data")
    return stages or (Stage(),)


def all_sources(first: Mapping[str, Source], stages: Sequence[Stage]) -> dict[str, Source]:
    """The sources of a run in order: those of `data`, then those that stages add.

    Raises:
        ConfigError: a name that is there already; a stage without the weights of what it adds.
    """
    found = dict(first)
    for index, stage in enumerate(stages):
        if not stage.sources:
            continue
        for name, source in stage.sources.items():
            if name in found:
                raise ConfigError(
                    f"stages[{index}] adds a source {name!r}, and there is one of that name: give it another one, or "
                    "give the one that is there a weight"
                )
            _refuse_weight(name, source, index)
            found[name] = source
        if stage.weights is None:
            raise ConfigError(
                f"stages[{index}] adds {_listed(stage.sources)} without weights: give it the weights of all sources "
                "that it is to have"
            )
    return found


def weights_of(first: Mapping[str, Source], stages: Sequence[Stage]) -> list[dict[str, float]]:
    """For each stage the weight of each source of the run, in its order.

    Raises:
        ConfigError: a name that no source has, or that none has yet; weights in two places; nothing above 0.
    """
    names = list(all_sources(first, stages))
    known = set(first)
    found: list[dict[str, float]] = []
    for index, stage in enumerate(stages):
        known |= set(stage.sources or ())
        if stage.weights is not None:
            for name in stage.weights:
                if name not in known:
                    raise _unknown(name, index, known, later=name in names)
            if index == 0:
                for name, source in first.items():
                    _refuse_weight(name, source, 0)
            given = stage.weights
        else:
            given = found[-1] if found else {name: source.weight for name, source in first.items()}
        weights = {name: given.get(name, 0) for name in names}
        if not any(weights.values()):
            raise ConfigError(f"all weights of {_listed(first)} are 0: one of them must be above 0")
        found.append(weights)
    return found


def _refuse_weight(name: str, source: Source, index: int) -> None:
    """Of a source whose weight is in a stage."""
    if source.weight != 1:
        raise ConfigError(
            f"source {name!r} has weight={source.weight}, and stages[{index}] has weights: give it in one of the two "
            f"places, stages[{index}].weights[{name!r}]" + (", or leave out weights there" if index == 0 else "")
        )


def _unknown(name: object, index: int, known: Collection[str], *, later: bool) -> ConfigError:
    if later:
        return ConfigError(
            f"stages[{index}].weights has {name!r}, a source that only a later stage adds: put it into data, or into "
            f"stages[{index}].sources"
        )
    near = get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ConfigError(f"stages[{index}].weights has {name!r}, which is no source: {hint}there are {_listed(known)}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names)))


def as_weights(value: object) -> Mapping[str, float]:
    """A mapping of names to weights, of which one is above 0."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"weights={value!r:.200} must be a mapping of the names of sources to numbers")
    weights = {name: as_weight(weight, f"weights[{name!r}]") for name, weight in value.items()}
    if not any(weights.values()):
        raise ConfigError(f"weights={dict(value)!r:.200}: one of them must be above 0")
    return weights


def as_count(value: object, argument: str, *, low: int = 1) -> int:
    """A number of tokens or packs; 2e12 is one, though it is a float."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return as_integer(value, argument, low=low)


def as_file(value: object, argument: str) -> str:
    """The path or URL of a file, as a text."""
    if not isinstance(value, str | os.PathLike) or not isinstance(path := os.fspath(value), str) or not path:
        raise ConfigError(f"{argument}={value!r:.200} must be the path or URL of a file")
    return path
