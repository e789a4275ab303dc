"""Configuration from a YAML file: typed, strict, and only what the file says.

In: a file with the sections `dataset` and `loader`, whose keys are the keyword arguments of `PackedDataset` and
`PackedDataLoader`. Out: a frozen `Config`, whose `dataset_arguments()` and `loader_arguments()` go to the constructors
as they are. A key that the file leaves out is not there: defaults live in the constructors and nowhere else, and so
do the checks of what the values may be together.

An unknown key, a key given twice and a value of the wrong type are errors that name file, line and key. Environment
variables and `~` are not expanded: a config means the same for everyone who reads it. What is written otherwise than
in Python:

    sizes in bytes    a number, or text with a unit: 512MiB, 8MB
    boundary          a name, or {replace: 7} for ReplaceBoundary(7)
    transform         "module:function", imported when the arguments are asked for
    retry             a mapping of RetryPolicy's fields
    paths             of shards, tokenizer, chat_template and cache_dir: one that starts with ./ or ../ is relative to
                      the config file, package://some.package/path is inside an installed package, any other stays
"""

import importlib.resources
import os
import pkgutil
import re
from collections.abc import Callable
from difflib import get_close_matches
from enum import EnumType
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import yaml
from msgspec import UNSET, UnsetType

from streampack.config.yamltree import LimitError, compose, construct
from streampack.errors import ConfigError
from streampack.packing.options import Overflow, PackingKind, Tail
from streampack.packing.policies import BoundaryPolicy, ReplaceBoundary
from streampack.storage.options import RetryPolicy


class Replace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`boundary: {replace: 7}`: the label between two documents is this token."""

    replace: int


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    def given(self) -> dict[str, Any]:  # Any: each field has its own type, and the constructors take it by name
        """The fields that the file sets."""
        return {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not UNSET}


class DatasetConfig(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Arguments of `PackedDataset`; a field that the file does not set is `msgspec.UNSET`."""

    shards: str | list[str]
    tokenizer: str | None
    seq_len: int | UnsetType = UNSET
    field: str | UnsetType = UNSET
    boundary: BoundaryPolicy | Replace | UnsetType = UNSET
    packing: PackingKind | UnsetType = UNSET
    overflow: Overflow | UnsetType = UNSET
    tail: Tail | UnsetType = UNSET
    lookahead: bool | UnsetType = UNSET
    pad_id: int | UnsetType | None = UNSET
    add_bos: bool | UnsetType = UNSET
    add_eos: bool | UnsetType = UNSET
    chat_template: str | UnsetType | None = UNSET
    train_on: Literal["assistant", "last_assistant", "all"] | UnsetType = UNSET
    transform: str | UnsetType | None = UNSET
    transform_version: str | UnsetType = UNSET
    split: Literal["train", "val"] | UnsetType | None = UNSET
    val_fraction: float | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    shuffle: bool | UnsetType = UNSET
    num_lanes: int | Literal["auto"] | UnsetType = UNSET
    epochs: int | UnsetType | None = UNSET
    epoch_end: Literal["pad", "stop"] | UnsetType = UNSET
    on_error: Literal["raise", "skip"] | UnsetType = UNSET
    max_skipped: int | float | UnsetType = UNSET
    max_document_bytes: int | UnsetType = UNSET
    max_buffer_bytes: int | UnsetType = UNSET
    storage_options: dict[str, object] | UnsetType = UNSET
    retry: RetryPolicy | UnsetType = UNSET
    cache_dir: str | UnsetType | None = UNSET
    cache_bytes: int | UnsetType = UNSET
    engine: str | UnsetType = UNSET


class LoaderConfig(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Arguments of `PackedDataLoader`; a field that the file does not set is `msgspec.UNSET`."""

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
    multiprocessing_context: Literal["fork", "spawn", "forkserver"] | UnsetType | None = UNSET
    worker_timeout_s: float | UnsetType = UNSET
    verify_every: int | UnsetType | None = UNSET
    whole_state: bool | UnsetType = UNSET


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one config file says."""

    dataset: DatasetConfig
    loader: LoaderConfig = LoaderConfig()

    def dataset_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `PackedDataset`: those that the file sets, ready to use.

        Raises:
            ConfigError: `transform` cannot be imported.
        """
        arguments = self.dataset.given()
        if isinstance(boundary := arguments.get("boundary"), Replace):
            arguments["boundary"] = ReplaceBoundary(boundary.replace)
        if (transform := arguments.get("transform")) is not None:
            arguments["transform"] = _imported(transform)
        return arguments

    def loader_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `PackedDataLoader`: those that the file sets."""
        return self.loader.given()


def load_config(path: str | os.PathLike[str]) -> Config:
    """The configuration in a local YAML file.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds a key or a value that has no place there.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
        lines = _Lines(path, compose(text))
        data = construct(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config file cannot be read: {error}", url=str(path)) from error
    except LimitError as error:
        where = str(path) if error.line is None else f"{path}:{error.line}"
        raise ConfigError(f"the config file is too large: {error}", url=where) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"the config file is not YAML: {error}", url=str(path)) from error
    data = _checked_mapping(data, (), tuple(_SECTIONS), lines)
    for section, kind in _SECTIONS.items():
        if section in data:
            values = _checked_mapping(data[section], (section,), kind.__struct_fields__, lines)
            data[section] = {key: _plain(value, (section, key), lines) for key, value in values.items()}
    try:
        return msgspec.convert(data, Config)
    except msgspec.ValidationError as error:
        raise _type_error(str(error), data, lines) from error


_SECTIONS: dict[str, type[_Section]] = {"dataset": DatasetConfig, "loader": LoaderConfig}
_UNITS = {f"{prefix}{i}B": (1024 if i else 1000) ** power for power, prefix in enumerate("KMGT", 1) for i in ("", "i")}


class _Lines:
    """Where each key stands in the file; refuses a key that stands there twice, which YAML lets pass."""

    def __init__(self, file: Path, root: yaml.Node | None) -> None:
        self.file = file
        self._lines: dict[tuple[str, ...], int] = {(): 1}
        if root is not None:
            self._collect(root, ())

    def _collect(self, node: yaml.Node, keys: tuple[str, ...]) -> None:
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._collect(item, (*keys, str(index)))
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            inner = (*keys, str(key.value))
            first, self._lines[inner] = self._lines.get(inner), key.start_mark.line + 1
            if first is not None:
                problem = f"`{'.'.join(inner)}` is given twice, first on line {first}; leave one"
                raise ConfigError(problem, url=self.where(inner))
            self._collect(value, inner)

    def where(self, keys: tuple[str, ...]) -> str:
        """`file:line` of the key, or of what is nearest above it."""
        while keys not in self._lines:
            keys = keys[:-1]
        return f"{self.file}:{self._lines[keys]}"


def _checked_mapping(value: object, keys: tuple[str, ...], known: tuple[str, ...], lines: _Lines) -> dict[str, Any]:
    """`value`, if it is a mapping of known keys."""
    section = ".".join(keys)
    if not isinstance(value, dict):
        raise ConfigError(
            f"{f'`{section}`' if keys else 'the file'} must be a mapping with keys of {', '.join(known)}; "
            f"found {_shown(value)}",
            url=lines.where(keys),
        )
    for key in map(str, value):
        if key in known:
            continue
        homes = [name for name, kind in _SECTIONS.items() if key in kind.__struct_fields__]
        nearest = get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean `{nearest[0]}`?" if nearest else f"known are {', '.join(known)}"
        if homes:
            hint = f"it belongs into the section `{homes[0]}`"
        place = f"in `{section}`" if keys else "at the top of the file"
        raise ConfigError(f"unknown key `{key}` {place}: {hint}", url=lines.where((*keys, key)))
    return dict(value)


def _plain(value: object, keys: tuple[str, str], lines: _Lines) -> object:
    """The value with sizes as numbers and paths resolved; a value of a wrong type stays for the check of types."""
    key = keys[1]
    if key in {"shards", "tokenizer", "chat_template", "cache_dir"}:
        if isinstance(value, list):
            return [_plain(item, keys, lines) for item in value]
        return _resolved(value, lines.file, lines.where(keys)) if isinstance(value, str) else value
    if key == "retry":
        return _checked_mapping(value, keys, tuple(RetryPolicy.__dataclass_fields__), lines)
    if key.endswith("_bytes") and isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]i?B)", value)
        if match is None:
            problem = f"must be a number of bytes or a size such as 512MiB or 8MB; found {_shown(value)}"
            raise ConfigError(f"`{'.'.join(keys)}` {problem}", url=lines.where(keys))
        return int(float(match[1]) * _UNITS[match[2]])
    return value


def _resolved(path: str, file: Path, where: str) -> str:
    """A path of the config file as the rest of the library takes it."""
    if path.startswith("@"):  # a manifest
        return "@" + _resolved(path[1:], file, where)
    if path.startswith(("./", "../")):
        return os.path.abspath(file.parent / path)  # noqa: PTH100  # resolve() would follow symbolic links
    if path.startswith("package://"):
        package, _, inner = path.removeprefix("package://").partition("/")
        try:
            return f"{importlib.resources.files(package)}/{inner}"
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{path}: there is no package {package!r} to import", url=where) from error
    return path


def _imported(name: str) -> Callable[..., object]:
    """The function that "module:function" names."""
    try:
        function: object = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"`dataset.transform`: {name!r} cannot be imported: {error}") from error
    if not callable(function):
        raise ConfigError(f'`dataset.transform` is "module:function"; {name!r} is {_shown(function)}')
    return function


def _type_error(message: str, data: object, lines: _Lines) -> ConfigError:
    """The first wrong value that msgspec complains of, with what was expected and where it stands."""
    match = re.fullmatch(r"(.*?)(?: - at .*`\$\.(.*)`)?", message)
    assert match is not None
    problem, path = match.groups("")
    keys = tuple(re.findall(r"[^.\[\]]+", path))
    if missing := re.fullmatch("Object missing required field `(.*)`", problem):
        return ConfigError(f"`{'.'.join((*keys, missing[1]))}` must be given", url=lines.where(keys))
    value = data
    for key in keys:
        if isinstance(value, dict):
            value = value[key]
        elif isinstance(value, list):
            value = value[int(key)]
    if len(keys) == 2 and problem.startswith(("Expected", "Invalid")):  # not what a policy's own check says
        problem = f"expected {_described(get_type_hints(_SECTIONS[keys[0]])[keys[1]])}"
    hint = ""
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d*)?[eE][+-]?\d+", value):
        hint = " (in YAML a number with an exponent needs a point and a sign: 1.0e-3)"
    return ConfigError(f"`{path}`: {problem}, found {_shown(value)}{hint}", url=lines.where(keys))


def _described(hint: object) -> str:
    """A field's type in words: what a file may say there."""
    options: list[str] = []
    for option in get_args(hint) or (hint,):
        if get_origin(option) is Literal:
            options += get_args(option)
        elif isinstance(option, EnumType):
            options += option
        elif option is not UnsetType:
            options.append(_NAMES.get(option) or str(option))
    return " or ".join(options)


_NAMES: dict[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
    list[str]: "a list of texts",
    dict[str, object]: "a mapping",
    Replace: "{replace: token id}",
    RetryPolicy: "a mapping of RetryPolicy's fields",
}


def _shown(value: object) -> str:
    if value is None:
        return "null"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
