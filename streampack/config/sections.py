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
    a sequence of records         a list of these
    a mapping of names            a mapping, whose values are as here
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
def section_of(
    record: type, *, required: tuple[str, ...] | None = None, besides: tuple[tuple[str, Any], ...] = ()
) -> type[Section]:
    """The section with a dataclass's fields.

    Args:
        record: the dataclass.
        required: those that a file must set; None: those without a default.
        besides: other keys, and what may be under each.
    """
    hints = get_type_hints(record)
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for field in dataclasses.fields(record):
        kind = _union(hints[field.name])
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if (not has_default) if required is None else field.name in required:
            fields.append((field.name, kind))
        else:
            fields.append((field.name, kind | UnsetType, UNSET))
    fields += [(name, kind | UnsetType, UNSET) for name, kind in besides]
    section: Any = msgspec.defstruct(
        record.__name__, fields, bases=(Section,), frozen=True, kw_only=True, forbid_unknown_fields=True
    )
    _RECORDS[section] = record
    made: type[Section] = section
    return made


def record_of(kind: type[Section], values: dict[str, Any]) -> object:
    """The record that a section of this kind with these values stands for; the record's own errors pass."""
    return ReplaceBoundary(values["replace"]) if kind is Replace else _RECORDS[kind](**values)


def hint_of(kind: type[Section], key: str) -> Any:
    """What may be under a key of a section of this kind: a type, or a union of types."""
    return get_type_hints(kind)[key]


def section_in(hint: object) -> type[Section] | None:
    """The section that may be where `hint` says what may be; None: no mapping with known keys."""
    return next((option for option in _options(hint) if isinstance(option, type) and issubclass(option, Section)), None)


def inner_hint(hint: object, key: str, value: object) -> Any:
    """What may be under a key, a name or an index of `value`, which may be what `hint` says; None: it is not known.

    An empty `key`: under any name.
    """
    for option in _options(hint):
        if isinstance(value, list):
            if get_origin(option) is list:
                return get_args(option)[0]
        elif isinstance(option, type) and issubclass(option, Section) and key in option.__struct_fields__:
            return hint_of(option, key)
        elif get_origin(option) is dict and (inner := get_args(option)[1]) is not object:
            return inner
    return None


def has_shorthand(hint: object) -> bool:
    """Whether there may be a value that is not a mapping."""
    return len([option for option in _options(hint) if option is not UnsetType]) > 1


def described(hint: object) -> str:
    """In words, what may be where `hint` says so."""
    words: list[str] = []
    options = _options(hint)
    for option in options:
        if get_origin(option) is Literal:
            words += get_args(option)
        elif isinstance(option, EnumType):
            words += option
        elif option in _RECORDS:
            words.append(f"a mapping of {_RECORDS[option].__name__}'s fields")
        elif option in _WORDS:
            if not (option is int and float in options):
                words.append(_WORDS[option])
        elif get_origin(option) is dict:
            words.append(f"a mapping of names to {described(get_args(option)[1])}")
        elif get_origin(option) is list:
            words.append(f"a list, each item {described(get_args(option)[0])}")
        elif option is not UnsetType:
            words.append(str(option))
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
    # One kind of mapping: of names to records, else the fields of a record, else anything.
    names_records = any(dataclasses.is_dataclass(each) for each in map(_value_of, options) for each in _options(each))
    is_record = any(map(dataclasses.is_dataclass, options)) and not names_records
    for option in options:
        origin = get_origin(option) or option
        if option is ReplaceBoundary:
            found.append(Replace)
        elif dataclasses.is_dataclass(option):
            if is_record:
                found.append(section_of(option))  # type: ignore[arg-type]  # a class, as hints are
        elif origin is Callable:
            found.append(str)
        elif origin is Sequence:
            found.append(list[_union(get_args(option)[0])])  # type: ignore[misc]  # a union made here
        elif origin is Mapping:
            if not is_record:
                found.append(dict[str, _union(_value_of(option))])  # type: ignore[misc]  # the same
        elif option is float:
            found += [int, float]  # so that a whole number stays one
        elif origin is os.PathLike or getattr(option, "_is_protocol", False) or (option is str and chooses):
            continue
        else:
            found.append(option)
    return list(dict.fromkeys(found))


def _union(hint: object) -> Any:
    return functools.reduce(operator.or_, _in_a_file(hint))


def _value_of(option: object) -> object:
    """Of a mapping, what its values are."""
    return get_args(option)[1] if get_origin(option) is Mapping else None


def _options(hint: object) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
