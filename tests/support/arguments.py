"""The arguments of a dataset, flat: a field of an option record may stand beside the constructor's own arguments.

Tests compare the same choices in many places (`streampack.pack`, a job in JSON, a state), where records would be in the
way: `packed_dataset(shards, packing="next_fit", overflow="drop", buffer_bytes=2**20, rank=0, size=2)`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import streampack
from streampack.testing import ByteTokenizer

BYTES = ByteTokenizer()
_RECORDS = {
    "packing": streampack.Packing,
    "chat": streampack.Chat,
    "hold_out": streampack.HoldOut,
    "limits": streampack.Limits,
    "storage": streampack.Storage,
}
_SHORTHANDS = {"packing": "kind", "chat": "template"}
"""The field that a record's shorthand stands for."""


def grouped(**flat: Any) -> dict[str, Any]:
    """The constructor's arguments, where `flat` names fields of records."""
    arguments = dict(flat)
    for name, record in _RECORDS.items():
        fields = {field.name for field in dataclasses.fields(record)} & set(arguments)
        given = {field: arguments.pop(field) for field in fields}
        if "retry" in given and isinstance(given["retry"], dict):
            given["retry"] = streampack.RetryPolicy(**given["retry"])
        if not given:
            continue
        if name in _SHORTHANDS:
            given[_SHORTHANDS[name]] = arguments.pop(name, "wrap" if name == "packing" else None)
        arguments[name] = record(**given)
    return arguments


def packed_dataset(
    data: Any, *, tokenizer: Any = BYTES, rank: int | None = None, size: int | None = None, **flat: Any
) -> streampack.PackedDataset:
    """A dataset of flat arguments, with bytes as tokens; with `rank` and `size` that of a rank."""
    dataset = streampack.PackedDataset(data, tokenizer, **grouped(**flat))
    return dataset if rank is None or size is None else dataset.for_rank(rank, size)


def of_job(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as a job in JSON has them: its sources and stages are mappings."""
    found = dict(arguments)
    if isinstance(found["data"], Mapping):
        found["data"] = {name: _record(streampack.Source, each) for name, each in found["data"].items()}
    if "stages" in found:
        found["stages"] = [_record(streampack.Stage, each) for each in found["stages"]]
    return found


def _record(kind: type, given: Any) -> Any:
    return kind(**given) if isinstance(given, Mapping) else given
