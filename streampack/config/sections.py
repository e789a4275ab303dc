"""What the mappings of a config file may hold: the fields of the records that they become, as a file can say them.

In:    a record: a dataclass such as `DatasetArguments` or `Limits`.
Out:   a `Section` (a msgspec struct) with the same names; a section with values makes a record again.
Never: a default or a check of values; both are the record's.

    in the record                 in the file
    text or a path                text
    a function                    "module:function"
    a choice                      its name
    a sequence of texts           text, or a list of texts
    another record                a mapping of its fields
    ReplaceBoundary(7)            {replace: 7}
"""

import dataclasses
import functools
import operator
import os
import types
from collections.abc import Callable, Mapping, Sequence
from enum import EnumType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import UNSET, UnsetType

from streampack.packing.policies import ReplaceBoundary


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mapping of a config file; a key that the file does not set is `msgspec.UNSET`."""

    def given(self) -> dict[str, Any]:  # Any: each field has its own type, and constructors take it by name
        """The keys that the file sets."""
        return {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not UNSET}


class Replace(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`boundary: {replace: 7}`: the label between two documents is this token."""

    replace: int


_RECORDS: dict[type[Section], type] = {}
"""The record that each section was made of."""


@functools.cache
def section_of(record: type, *, required: tuple[str, ...] | None = None) -> type[Section]:
    """The section with a dataclass's fields; `required`: those that a file must set (None: those without a default)."""
    hints = get_type_hints(record)
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for field in dataclasses.fields(record):
        kind: Any = functools.reduce(operator.or_, _in_a_file(hints[field.name]))
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if (not has_default) if required is None else field.name in required:
            fields.append((field.name, kind))
        else:
            fields.append((field.name, kind | UnsetType, UNSET))
    section: Any = msgspec.defstruct(
        record.__name__, fields, bases=(Section,), frozen=True, kw_only=True, forbid_unknown_fields=True
    )
    _RECORDS[section] = record
    made: type[Section] = section
    return made


def record_of(kind: type[Section], values: dict[str, Any]) -> object:
    """The record that a section of this kind with these values stands for; the record's own errors pass."""
    return ReplaceBoundary(values["replace"]) if kind is Replace else _RECORDS[kind](**values)


def inner_section(kind: type[Section], key: str) -> type[Section] | None:
    """The section that may be under a key of a section of this kind; None: no mapping with known keys."""
    hint = get_type_hints(kind).get(key)
    return next((option for option in _options(hint) if isinstance(option, type) and issubclass(option, Section)), None)


def has_shorthand(kind: type[Section], key: str) -> bool:
    """Whether a key may have a value that is not a mapping."""
    options = [option for option in _options(get_type_hints(kind)[key]) if option is not UnsetType]
    return len(options) > 1


def described(kind: type[Section], key: str) -> str:
    """In words, what may be under a key of a section of this kind."""
    words: list[str] = []
    for option in _options(get_type_hints(kind)[key]):
        if get_origin(option) is Literal:
            words += get_args(option)
        elif isinstance(option, EnumType):
            words += option
        elif option in _RECORDS:
            words.append(f"a mapping of {_RECORDS[option].__name__}'s fields")
        elif option is not UnsetType and not (option is int and float in _options(get_type_hints(kind)[key])):
            words.append(_WORDS.get(option) or str(option))
    return " or ".join(words)


_WORDS: dict[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
    list[str]: "a list of texts",
    dict[str, object]: "a mapping",
    Replace: "{replace: token id}",
}


def _in_a_file(hint: object) -> list[Any]:
    """The types that a file may have for a field whose type is `hint`."""
    found: list[Any] = []
    options = _options(hint)
    chooses = any(isinstance(option, EnumType) for option in options)
    for option in options:
        origin = get_origin(option) or option
        if option is ReplaceBoundary:
            found.append(Replace)
        elif dataclasses.is_dataclass(option):
            found.append(section_of(option))  # type: ignore[arg-type]  # a class, as hints are
        elif origin is Callable:
            found.append(str)
        elif origin is Sequence:
            found.append(list[str])
        elif origin is Mapping:
            found.append(dict[str, object])
        elif option is float:
            found += [int, float]  # so that a whole number stays one
        elif origin is os.PathLike or getattr(option, "_is_protocol", False) or (option is str and chooses):
            continue
        else:
            found.append(option)
    return list(dict.fromkeys(found))


def _options(hint: object) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
