"""What a command does with shards, so that it can be divided: its shards, its job, and what it finds as plain values.

In:  tables of shards, a part. Out: the shards of the part; records as JSON has them, and back.
Invariants: what is found does not depend on how the shards were divided, nor on the machines.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

import streampack
from streampack.cli.console import printable
from streampack.corpus.parts import Part, PartsJob, shards_of
from streampack.corpus.processes import Advance
from streampack.corpus.shares import DEFAULT
from streampack.corpus.table import ShardTable
from streampack.dataset.dataset import PackedDataset
from streampack.errors import ConfigError
from streampack.lanes.run import RunSource
from streampack.storage.clients import local_path

ShardRanges: TypeAlias = Mapping[str, range]
"""Of each source, the indexes of the shards that are read."""
_Result = TypeVar("_Result")


class Work(Protocol):
    """What a command does with shards; it can be pickled."""

    command: ClassVar[str]

    @property
    def tables(self) -> Mapping[str, ShardTable]:
        """The shards of each source, by its name."""

    @property
    def about(self) -> dict[str, Any]:  # Any: JSON
        """What else decides the result, by names that a user knows from the command line."""

    def run(self, shards: ShardRanges, *, workers: int | None, advance: Advance) -> Any:  # Any: a record
        """What is found in some shards of each source: a record that `plain` takes."""

    def is_good(self, result: Any) -> bool:  # Any: JSON
        """Whether nothing that may be repaired was found; else the part is read again when it is run again."""


class Kept(msgspec.Struct, kw_only=True):
    """What a part leaves in its folder."""

    files: str
    """`files_of` its shards, before they were read."""
    found: Any  # Any: JSON


def of_source(name: str) -> str:
    """" of source NAME", to be put after a word; "" where the data have no names."""
    return "" if name == DEFAULT else f" of source {name}"


def about_run(dataset: PackedDataset, sources: Iterable[RunSource]) -> dict[str, Any]:
    """What decides which documents there are, and how they are tokenized and packed; JSON."""
    about = {name: value for name, value in dataset.fingerprint().items() if name != "shards"}
    of_each = about.pop("sources", {})
    for source in sources:
        own = {name: value for name, value in of_each.get(source.name, {}).items() if name != "shards"}
        about |= {f"{name}{of_source(source.name)}": value for name, value in own.items()}
    return about


def job_of(work: Work, num_parts: int) -> PartsJob:
    """What the parts of this work have in common."""
    about = {"streampack": streampack.__version__, **work.about}
    for name, table in work.tables.items():
        about[f"shards{of_source(name)}"] = {
            "number": len(table),
            "bytes": table.total_bytes,
            "first": printable(table.names[0]),
            "last": printable(table.names[len(table) - 1]),
            "digest of URLs, sizes, ETags and digests": hashlib.blake2b(table.to_bytes(), digest_size=8).hexdigest(),
        }
    return PartsJob(command=work.command, num_parts=num_parts, about=about)


def shards_of_part(tables: Mapping[str, ShardTable], part: Part) -> dict[str, range]:
    """The shards of a part: those of all sources are laid end to end."""
    mine = shards_of(np.concatenate([table.sizes for table in tables.values()]), part)
    found, begin = {}, 0
    for name, table in tables.items():
        low, high = (min(max(edge - begin, 0), len(table)) for edge in (mine.start, mine.stop))
        found[name] = range(low, high)
        begin += len(table)
    return found


def files_of(tables: Mapping[str, ShardTable], shards: ShardRanges) -> str:
    """16 hex digits that change when a local shard is changed; the ETags of remote ones are in the job.

    Without the inode, which differs from node to node where a bucket is mounted.
    """
    found = hashlib.blake2b(digest_size=8)
    for name, mine in shards.items():
        for index in mine:
            path = local_path(tables[name][index].url)
            if path is not None:
                with contextlib.suppress(OSError):  # a shard that is missing is an error where it is read
                    status = Path(path).stat()
                    found.update(f"{index} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n".encode())
    return found.hexdigest()


def size_of(tables: Mapping[str, ShardTable], shards: ShardRanges) -> tuple[int, int]:
    """How many shards these are, and their bytes."""
    num_bytes = sum(int(tables[name].sizes[mine.start : mine.stop].sum()) for name, mine in shards.items())
    return sum(map(len, shards.values())), num_bytes


def plain(result: Any) -> Any:  # Any: a record, and JSON
    """A record as plain values, as JSON has them."""
    return msgspec.to_builtins(result, enc_hook=_as_list)


def record(values: Any, kind: type[_Result]) -> _Result:  # Any: JSON
    """The record that `plain` was given.

    Raises:
        ConfigError: it is of another release.
    """
    try:
        return msgspec.convert(values, kind, dec_hook=_as_array)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"what a part has found cannot be read: {error}; remove its file, and run the part again"
        ) from error


def _as_list(value: Any) -> list[int]:
    assert isinstance(value, np.ndarray), type(value)
    found: list[int] = value.tolist()
    return found


def _as_array(kind: type, value: Any) -> NDArray[np.int64]:
    return np.array(value, dtype=np.int64)
