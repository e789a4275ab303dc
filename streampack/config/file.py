"""Configuration from a YAML file: typed, strict, and only what the file says.

In:    a file with the sections `dataset` and `loader`, whose keys are the keyword arguments of `PackedDataset` and
       `PackedDataLoader`; an option record is a mapping of its fields, or its shorthand.
Out:   a frozen `Config`, whose `dataset_arguments()` and `loader_arguments()` go to the constructors as they are.
Never: a default: a key that the file leaves out is not in the arguments either. An unknown key, a key
       given twice or a value of the wrong type is an error that names file, line and key.

    sizes in bytes    a number, or text with a unit: 512MiB, 8MB
    boundary          a name, or {replace: 7} for ReplaceBoundary(7)
    data              names of shards; or a mapping of names to these or to the fields of a Source, also as `sources`
    transform         "module:function", imported when the arguments are asked for
    packing, chat     a shorthand (wrap, phi3) or a mapping: {kind: next_fit, overflow: truncate}
    paths             of data, tokenizer, chat template, cache_dir and exclude: one that starts with ./ or ../ is
                      relative to the config file, package://some.package/path is inside an installed package, any other
                      stays
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml
from msgspec import UNSET, UnsetType

from streampack.config.lines import Keys, Lines
from streampack.config.sections import (
    Section,
    described,
    has_shorthand,
    hint_of,
    inner_hint,
    record_of,
    section_in,
    section_of,
)
from streampack.config.values import NamedFunction, as_bytes, as_path, shown
from streampack.config.yamltree import LimitError, compose, construct
from streampack.dataset.arguments import DatasetArguments
from streampack.dataset.sources import Source
from streampack.dataset.stages import Stage
from streampack.errors import ConfigError


class LoaderSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Arguments of `PackedDataLoader`, but for those that only a program can give: the dataset, ranks and groups."""

    batch_size: int | UnsetType = UNSET
    num_workers: int | UnsetType = UNSET
    format: str | UnsetType = UNSET
    positions: Literal["document", "pack"] | UnsetType = UNSET
    loss_weights: Literal["token", "document"] | UnsetType | None = UNSET
    mask: bool | UnsetType = UNSET
    provenance: bool | UnsetType = UNSET
    drop_last: bool | UnsetType = UNSET
    prefetch_bytes: int | UnsetType = UNSET
    pin_memory: bool | Literal["auto"] | UnsetType = UNSET
    multiprocessing_context: Literal["fork"] | UnsetType | None = UNSET
    worker_timeout_s: float | UnsetType = UNSET
    verify_every: int | UnsetType | None = UNSET
    whole_state: bool | UnsetType = UNSET


_MAPPING_OF_SOURCES: Any = dict[str, str | list[str] | section_of(Source)]  # type: ignore[misc]  # made here
SECTIONS: dict[str, type[Section]] = {
    "dataset": section_of(DatasetArguments, required=("tokenizer",), besides=(("sources", _MAPPING_OF_SOURCES),)),
    "loader": LoaderSection,
}
_PATHS = frozenset({"data", "sources", "tokenizer", "chat", "template", "cache_dir", "exclude"})


@dataclass(frozen=True, slots=True)
class Config:
    """What one config file says."""

    dataset: dict[str, Any]
    """Arguments of `PackedDataset`; each `transform` is a `NamedFunction`."""
    loader: dict[str, Any]

    def dataset_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `PackedDataset`: those that the file sets, ready to use.

        Raises:
            ConfigError: `transform` cannot be imported.
        """
        return {name: _imported(value) for name, value in self.dataset.items()}

    def loader_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `PackedDataLoader`: those that the file sets."""
        return dict(self.loader)


def _imported(value: Any) -> Any:
    """A value with the functions that it names: itself, or in sources and stages."""
    if isinstance(value, NamedFunction):
        return value.imported()
    if isinstance(value, Source) and isinstance(value.transform, NamedFunction):
        return dataclasses.replace(value, transform=value.transform.imported())
    if isinstance(value, Stage) and value.sources is not None:
        return dataclasses.replace(value, sources=_imported(value.sources))
    if isinstance(value, dict):
        return {name: _imported(each) for name, each in value.items()}
    return [_imported(each) for each in value] if isinstance(value, list) else value


def load_config(path: str | os.PathLike[str]) -> Config:
    """The configuration in a local YAML file.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds an unknown key or a value of a wrong type.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
        lines = Lines(path, compose(text))
        data = construct(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config file cannot be read: {error}", url=str(path)) from error
    except LimitError as error:
        where = str(path) if error.line is None else f"{path}:{error.line}"
        raise ConfigError(f"the config file is too large: {error}", url=where) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"the config file is not YAML: {error}", url=str(path)) from error
    data = _checked_mapping(data, (), tuple(SECTIONS), lines)
    if "dataset" not in data:
        raise ConfigError("`dataset` must be given", url=lines.where(()))
    found = {}
    for name, kind in SECTIONS.items():
        plain = _plain_mapping(data.get(name, {}), (name,), kind, lines)
        try:
            section = msgspec.convert(plain, kind)
        except msgspec.ValidationError as error:
            raise _type_error(str(error), (name,), plain, kind, lines) from error
        found[name] = _with_records(section, (name,), lines)
    dataset = found["dataset"]
    if ("data" in dataset) == ("sources" in dataset):
        what = "are both given: leave one of them out" if "data" in dataset else "are both missing: give one of them"
        raise ConfigError(f"`dataset.data` and `dataset.sources` {what}", url=lines.where(("dataset",)))
    if "sources" in dataset:
        dataset["data"] = dataset.pop("sources")
        if not dataset["data"]:
            problem = "`dataset.sources` is empty: name at least one source, as in `sources: {web: shards/}`"
            raise ConfigError(problem, url=lines.where(("dataset", "sources")))
    return Config(**found)


def _checked_mapping(value: object, keys: Keys, known: tuple[str, ...], lines: Lines) -> dict[str, Any]:
    """`value`, if it is a mapping of known keys."""
    section = _place(keys)
    if not isinstance(value, dict):
        raise ConfigError(
            f"{f'`{section}`' if keys else 'the file'} must be a mapping with keys of {', '.join(known)}; "
            f"found {shown(value)}",
            url=lines.where(keys),
        )
    for key in map(str, value):
        if key in known:
            continue
        homes = [name for name, kind in _all_sections(SECTIONS) if key in kind.__struct_fields__]
        nearest = get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean `{nearest[0]}`?" if nearest else f"known are {', '.join(known)}"
        if homes:
            hint = f"it belongs in the section `{homes[0]}`"
        place = f"in `{section}`" if keys else "at the top of the file"
        raise ConfigError(f"unknown key `{key}` {place}: {hint}", url=lines.where((*keys, key)))
    return dict(value)


def _all_sections(sections: Mapping[str, type[Section]]) -> Iterator[tuple[str, type[Section]]]:
    """Each section with its path in a file, such as "dataset.limits"."""
    for name, kind in sections.items():
        yield name, kind
        inner = {f"{name}.{key}": section_in(hint_of(kind, key)) for key in kind.__struct_fields__}
        yield from _all_sections({place: each for place, each in inner.items() if each is not None})


def _plain_mapping(value: object, keys: Keys, kind: type[Section], lines: Lines) -> dict[str, Any]:
    """A mapping of a section's keys, with sizes as numbers and paths resolved; types are checked after this."""
    data = _checked_mapping(value, keys, kind.__struct_fields__, lines)
    return {key: _plain(inner, (*keys, key), key, hint_of(kind, key), lines) for key, inner in data.items()}


def _plain(value: object, keys: Keys, name: str, hint: object, lines: Lines) -> object:
    """A value of which `hint` says what it may be; `name` is that of the field that it is in."""
    section = section_in(hint)
    if section is not None and (isinstance(value, dict) or not has_shorthand(hint)):
        return _plain_mapping(value, keys, section, lines)
    if isinstance(value, list):
        each = [(str(index), item) for index, item in enumerate(value)]
        return [_plain(item, (*keys, index), name, inner_hint(hint, index, value), lines) for index, item in each]
    if isinstance(value, dict) and (inner := inner_hint(hint, "", value)) is not None:
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(
                    f"`{_place(keys)}`: the name {key!r} is of type {type(key).__name__}, as YAML reads it; a name "
                    "is a text: put it in quotes as it is written there",
                    url=lines.where(keys),
                )
        return {key: _plain(item, (*keys, key), name, inner, lines) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    try:
        if name in _PATHS:
            return as_path(value, lines.file.parent)
        if name.endswith("_bytes"):
            return as_bytes(value)
    except ConfigError as error:
        raise type(error)(f"`{_place(keys)}`: {error.message}", url=lines.where(keys)) from error
    return value


def _with_records(section: Section, keys: Keys, lines: Lines) -> dict[str, Any]:
    """What a section says, each section in it as the record that it stands for."""
    return {key: _with_record(value, (*keys, key), lines) for key, value in section.given().items()}


def _with_record(value: Any, keys: Keys, lines: Lines) -> Any:
    if isinstance(value, list):
        return [_with_record(item, (*keys, str(index)), lines) for index, item in enumerate(value)]
    if isinstance(value, dict):
        return {key: _with_record(item, (*keys, str(key)), lines) for key, item in value.items()}
    if keys[-1] == "transform" and isinstance(value, str):
        return NamedFunction(value, _place(keys))
    if not isinstance(value, Section):
        return value
    try:
        return record_of(type(value), _with_records(value, keys, lines))
    except ConfigError as error:
        if error.url is not None:  # of a section inside
            raise
        raise type(error)(f"`{_place(keys)}`: {error.message}", url=lines.where(keys)) from error


def _place(keys: Keys) -> str:
    """Where a value is, as errors write it: dataset.stages[0].weights."""
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", ".".join(keys))


def _type_error(message: str, keys: Keys, value: Any, kind: type[Section], lines: Lines) -> ConfigError:
    """The error for the first wrong value that msgspec reports: what was expected, and on which line."""
    match = re.fullmatch(r"(.*?)(?: - at .*`\$\.?(.*)`)?", message)
    assert match is not None
    problem, path = match.groups("")
    hint: Any = kind
    inside: Keys = ()
    for step in re.findall(r"\.\.\.|[^.\[\]]+", path):
        key = _wrong_name(value, hint) if step == "..." else step
        hint, inside = inner_hint(hint, key, value), (*inside, key)
        value = value[int(key)] if isinstance(value, list) else value.get(key, value)
    if missing := re.fullmatch("Object missing required field `(.*)`", problem):
        problem = f"`{_place((*keys, *inside, missing[1]))}` must be given"
        return ConfigError(problem, url=lines.where((*keys, *inside)))
    if hint is not None and problem.startswith(("Expected", "Inv")):
        problem = f"expected {described(hint)}"
    advice = ""
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d*)?[eE][+-]?\d+", value):
        advice = " (in YAML a number with an exponent needs a point and a sign: 1.0e-3)"
    elif type(value) in (int, float) and re.fullmatch(r"(data|sources)\.[\w-]+", _place(inside)):
        advice = f"; a weight goes into the source: {inside[-1]}: {{data: shards/, weight: {value}}}"
    return ConfigError(
        f"`{_place((*keys, *inside))}`: {problem}, found {shown(value)}{advice}", url=lines.where((*keys, *inside))
    )


def _wrong_name(values: Mapping[str, Any], hint: object) -> str:
    """The first name whose value is not what it may be."""
    for name, value in values.items():
        try:
            msgspec.convert(value, inner_hint(hint, name, values))
        except msgspec.ValidationError:
            return name
    raise AssertionError("msgspec has found a wrong value under some name")
