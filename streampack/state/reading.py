"""The state of a loader in a checkpoint of torch.distributed.checkpoint, with whatever lanes and ranks wrote it.

In:    a checkpoint, and which lanes this rank has; or any file or folder that has a state of all lanes.
Out:   a state of these lanes.
Never: a collective: each rank reads what it needs; a key that is not the loader's.
"""

import copy
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streampack.errors import ConfigError, StateError
from streampack.state.box import shape_of
from streampack.state.forms import COMMON, may_have_more
from streampack.state.sharded import to_table

_MARK = "order_version"
"""The key by which a loader's state is found."""
_FORMS = (
    "Give the folder of a checkpoint of torch.distributed.checkpoint, or a file of torch.save or JSON, with the state "
    "of a loader"
)


def read_state(path: str | os.PathLike[str], named: str = "the state") -> Mapping[str, Any]:
    """The state with all its lanes in a folder of torch.distributed.checkpoint, or in a file of torch.save or JSON.

    `named`: what messages call it.

    Raises:
        StateError: it cannot be read, or has no state of a loader, or several.
    """
    path = Path(path)
    if path.is_dir():
        return read_checkpoint(path, range, key=None)
    try:
        is_zip = zipfile.is_zipfile(path)
        found = torch.load(path, weights_only=True, mmap=True) if is_zip else json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, pickle.UnpicklingError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else str(error).split("\n")[0]
        raise StateError(f"{named} {path} cannot be read: {reason}. {_FORMS}") from error
    inside = list(found.values()) if isinstance(found, dict) else []
    states = [each for each in (found, *inside) if isinstance(each, dict) and _MARK in each]
    if len(states) != 1:
        raise StateError(f"{named} {path} has {len(states) or 'no'} states of a loader, not one. {_FORMS}")
    return states[0]


def read_checkpoint(source: Any, lanes_of: Callable[[int], range], *, key: str | None) -> dict[str, Any]:
    """The state of a loader in a checkpoint.

    Args:
        source: the checkpoint's path, or a StorageReader.
        lanes_of: number of lanes -> this rank's lanes; called with what the checkpoint has.
        key: where the state is in what was saved, as in "train.loader"; None where there is only one.

    Raises:
        ConfigError: the source is neither.
        StateError: no checkpoint is there, or no state of a loader, or several.
    """
    reader, metadata, where = _open(source)
    entries: dict[str, Any] = metadata.state_dict_metadata
    prefix = _prefix_of(entries, key, where)
    size = getattr(entries.get(f"{prefix}rows"), "size", ())
    num_lanes = int(np.prod(size[:-2], dtype=np.int64))
    if len(size) < 2 or (*size[:-2],) != shape_of(num_lanes):
        raise StateError(f"{where} has no table of lanes under {prefix}rows: the state is damaged")
    lanes = lanes_of(num_lanes)
    template: dict[str, Any] = {}
    for name, entry in entries.items():
        short = name.removeprefix(prefix)
        if name != prefix + short:
            continue
        if short in COMMON or may_have_more(short, lanes):
            template[name] = ""
        elif short in ("rows", "skipped_ranges"):
            template[name] = to_table(np.zeros((len(lanes), *entry.size[-2:]), dtype=np.int64), lanes, num_lanes)
    _read(reader, metadata, template)
    return {name.removeprefix(prefix): value for name, value in template.items()}


def _open(source: Any) -> tuple[Any, Any, str]:
    """The reader, the metadata, and how messages name them."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.storage import StorageReader

    if isinstance(source, StorageReader):
        return source, source.read_metadata(), "the checkpoint"
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(
            f"a checkpoint is given by its path or by a torch.distributed.checkpoint.StorageReader, not {source!r:.80}"
        )
    reader, where = FileSystemReader(source), f"the checkpoint {os.fspath(source)}"
    try:
        return reader, reader.read_metadata(), where
    except OSError as error:
        raise StateError(
            f"{where} cannot be read: {error}. It must be the checkpoint_id of a torch.distributed.checkpoint.save; of "
            "another storage than files, give a StorageReader"
        ) from error


def _prefix_of(entries: dict[str, Any], key: str | None, where: str) -> str:
    """What the names of the state's entries begin with."""
    found = sorted(name.removesuffix(_MARK) for name in entries if name.split(".")[-1] == _MARK)
    prefix = f"{key}." if key else ""
    if key is None and len(found) == 1:
        [prefix] = found
    if prefix not in found:
        held = ", ".join(name.rstrip(".") or "(top)" for name in found) or "none"
        if key is None and found:
            raise StateError(f"{where} has the states of several loaders: {held}. Name one with key=")
        raise StateError(f"{where} has no state of a loader{f' under {key!r}' if key else ''}; found: {held}")
    return prefix


def _read(reader: Any, metadata: Any, template: dict[str, Any]) -> None:
    """Fill in the values."""
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

    planner = DefaultLoadPlanner()
    planner.set_up_planner(template, copy.copy(metadata), True)
    reader.set_up_storage_reader(metadata, True)
    plan = reader.prepare_local_plan(planner.create_local_plan())
    [plan] = reader.prepare_global_plan(planner.create_global_plan([plan]))
    reader.read_data(planner.finish_plan(plan), planner).wait()
