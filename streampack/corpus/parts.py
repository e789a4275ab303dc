"""Work on many shards in parts: which shards a part has, and a folder that keeps what each part has found.

    shards, end to end     |-- 0 --|--- 1 ---|---- 2 ----|-- 3 --|- 4 -|-- 5 --|    T bytes
    parts                  |===== 0/3 ======|===== 1/3 ======|===== 2/3 =======|    a third of T each
    begins in them           0, 1             2, 3             4, 5

    00001-of-00003.5be1c9a2.json     what part 1/3 has found; 8 hex digits are of the job that it is a part of

In:  "I/N"; sizes; the job of a part, and what the part has found as plain JSON values.
Out: the part's shards; the results of all parts in order, once all are there.
Never: a shard in two parts or in none; parts of two jobs in one folder; a part's file before it is complete.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from streampack.errors import ConfigError
from streampack.storage.access import StorageReader
from streampack.storage.clients import local_path
from streampack.storage.options import Storage
from streampack.storage.redaction import named
from streampack.storage.threads import side_by_side
from streampack.storage.writing import StorageWriter

MOST_PARTS = 99_999
_AT_ONCE = 16
"""Files that are read side by side."""
_NAME = re.compile(r"(\d{5})-of-(\d{5})\.([0-9a-f]{8})\.json")


@dataclass(frozen=True, slots=True)
class Part:
    """Part `index` of `num_parts`; the first one is 0."""

    index: int
    num_parts: int

    def __str__(self) -> str:
        return f"{self.index}/{self.num_parts}"


WHOLE: Final = Part(0, 1)
"""The only part of work that is not divided."""


class PartsJob(msgspec.Struct, frozen=True, kw_only=True):
    """What all parts must have in common."""

    command: str
    """Its name on the command line."""
    num_parts: int
    about: dict[str, Any]
    """JSON: all that decides the result, by names that a user understands."""

    @property
    def digest(self) -> str:
        """8 hex digits, of all of it."""
        text = json.dumps(msgspec.to_builtins(self), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


class _File(msgspec.Struct, kw_only=True):
    """What is in the file of a part."""

    part: str
    job: PartsJob
    result: Any  # Any: JSON


def as_part(text: str, option: str = "--part") -> Part:
    """The part that "I/N" stands for.

    Raises:
        ConfigError: it is not one; the message names the option.
    """
    found = re.fullmatch(r"(\d{1,18})/(\d{1,18})", text)
    if found is None:
        raise ConfigError(
            f"{option} {text}: give I/N, the number of this part and how many there are, as 0/32 for the first of 32 "
            "(in a Slurm array $SLURM_ARRAY_TASK_ID/32)"
        )
    part = Part(int(found[1]), int(found[2]))
    if not 1 <= part.num_parts <= MOST_PARTS:
        raise ConfigError(f"{option} {text}: there are 1 to {MOST_PARTS:,} parts, and not {part.num_parts:,}")
    if part.index >= part.num_parts:
        last = part.num_parts - 1
        raise ConfigError(
            f"{option} {text}: the parts of {part.num_parts:,} have the numbers 0 to {last} (Slurm: --array=0-{last})"
        )
    return part


def shards_of(sizes: NDArray[np.int64], part: Part) -> range:
    """The indexes of the shards, or of other things that have these sizes, that a part has: neighbours.

    Args:
        sizes: int64 [n] bytes, in the order of the shards.
        part: which part.

    >>> [shards_of(np.array([8, 10, 12, 8, 6, 8]), Part(index, 3)) for index in range(3)]
    [range(0, 2), range(2, 4), range(4, 6)]
    """
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    # Rounded up, in Python's integers: the product may have more than 64 bits.
    cuts = [-(-index * total // part.num_parts) for index in (part.index, part.index + 1)]
    first, stop = np.searchsorted(ends - sizes, cuts).tolist()
    return range(first, len(sizes) if part.index == part.num_parts - 1 else stop)


def as_runs(numbers: Collection[int]) -> str:
    """Numbers as Slurm's `--array` takes them.

    >>> as_runs([3, 7, 8, 9])
    '3,7-9'
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


class PartsFolder:
    """A folder, local or remote, in which each part of one job leaves a file."""

    def __init__(self, url: str, storage: Storage | None = None) -> None:
        self.url = url.rstrip("/")
        self._reader = StorageReader.of(storage or Storage())
        self._writer = StorageWriter(storage or Storage())

    def done(self, job: PartsJob) -> set[int]:
        """The numbers of the parts that are done.

        Raises:
            ConfigError: the folder has parts of another job.
        """
        found = self._files()
        for name in sorted(found):
            if found[name][1:] != (job.num_parts, job.digest):
                differs = difference(self._read(name).job, job)
                raise ConfigError(
                    f"{named(self.url)} has parts of another job: {differs}. Give all parts the same arguments and the "
                    "same list of shards (a manifest is one that does not change), or name a new folder"
                )
        return {index for index, _, _ in found.values()}

    def keep(self, job: PartsJob, index: int, result: Any) -> None:  # Any: JSON
        """Note what a part has found: the part is done."""
        part = Part(index, job.num_parts)
        file = {"part": str(part), "job": msgspec.to_builtins(job), "result": result}
        # ASCII: names of files that are not UTF-8 are escapes.
        self._writer.write(self._at(_name(job, index)), json.dumps(file).encode() + b"\n")

    def names(self) -> list[str]:
        """The names of the files of parts, of whatever job."""
        return sorted(self._files())

    def job(self) -> PartsJob:
        """The job of which all parts are here.

        Raises:
            ConfigError: there are none, some are missing, or they are of several jobs.
        """
        found = self._files()
        if not found:
            raise ConfigError(
                f"{named(self.url)} has no parts: they are files such as 00003-of-00032.5be1c9a2.json, which "
                "`streampack verify`, `count` and `manifest` write there with --part I/N"
            )
        first = min(found)
        job = self._read(first).job
        num_done = len(self.done(job))
        if num_done < job.num_parts:
            missing = set(range(job.num_parts)) - {index for index, _, _ in found.values()}
            raise ConfigError(
                f"{named(self.url)} has {num_done:,} of {job.num_parts:,} parts; missing are {as_runs(missing)}. Run "
                f"`streampack {job.command} ... --part {min(missing)}/{job.num_parts}` and so on (Slurm: "
                f"--array={as_runs(missing)}), then merge again"
            )
        return job

    def results(self, job: PartsJob, indexes: Iterable[int] | None = None) -> Iterator[Any]:  # Any: JSON
        """What each part (None: of all) has found, in order; a few are in memory at a time."""
        asked = list(range(job.num_parts) if indexes is None else indexes)
        for first in range(0, len(asked), _AT_ONCE):
            some = [_name(job, index) for index in asked[first : first + _AT_ONCE]]
            with contextlib.closing(side_by_side(self._read, some, num_threads=_AT_ONCE)) as files:
                yield from (file.result for file in files)

    def _files(self) -> dict[str, tuple[int, int, str]]:
        """Number of the part, number of parts and digest of the job, by the names of files."""
        path = local_path(self.url)
        if path is None:
            prefix = f"{self.url}/"
            names = [url.removeprefix(prefix) for url, _ in self._reader.listing(prefix)]
        elif Path(path).is_dir():
            names = [file.name for file in Path(path).iterdir()]
        elif Path(path).exists():
            raise ConfigError(f"{named(self.url)} is a file; name a folder")
        else:
            names = []
        found = {name: match for name in names if (match := _NAME.fullmatch(name))}
        return {name: (int(match[1]), int(match[2]), match[3]) for name, match in found.items()}

    def _read(self, name: str) -> _File:
        match = _NAME.fullmatch(name)
        assert match is not None, name
        part = Part(int(match[1]), int(match[2]))
        try:
            file = msgspec.convert(json.loads(self._reader.read(self._at(name))), _File)
        except (ValueError, msgspec.ValidationError) as error:
            raise ConfigError(
                f"{error}: this is not what a part writes; remove the file and run --part {part} again",
                url=named(self._at(name)),
            ) from error
        if file.part != str(part) or file.job.digest != match[3]:
            raise ConfigError(
                f"the file has part {file.part} of job {file.job.digest}, not what its name says; remove it, and run "
                f"--part {part} again",
                url=named(self._at(name)),
            )
        return file

    def _at(self, name: str) -> str:
        return f"{self.url}/{name}"


def _name(job: PartsJob, index: int) -> str:
    return f"{index:05d}-of-{job.num_parts:05d}.{job.digest}.json"


def difference(there: PartsJob, here: PartsJob) -> str:
    """The first thing in which two jobs differ, with both values."""
    if there.command != here.command:
        return f"they are of `{there.command}`, and this is `{here.command}`"
    if there.num_parts != here.num_parts:
        return f"they are parts of {there.num_parts}, and this is one of {here.num_parts}"
    name, then, now = _first_difference("", there.about, here.about)
    return f"{name} is {_shown(then)} there, and {_shown(now)} here"


def _first_difference(name: str, then: Any, now: Any) -> tuple[str, Any, Any]:  # Any: JSON
    if isinstance(then, dict) and isinstance(now, dict):
        for key in [*then, *(key for key in now if key not in then)]:
            if then.get(key) != now.get(key):
                return _first_difference(f"{name}, {key}" if name else key, then.get(key), now.get(key))
    return name, then, now


def _shown(value: Any) -> str:  # Any: JSON
    text = "nothing" if value is None else f"{value:,}" if type(value) is int else json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
