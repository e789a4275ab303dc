"""Records that a run leaves out: where they stand, and whether a record is one of them.

In:  lines of JSON, each an object with source, shard, key, and record where a member of the sample has many.
Out: for each source the records of its shards, with a digest of what they are.
Never: a choice by anything but the names in the lines; a record that is parsed before it is left out.

    {"source": "web", "shard": "a/00017.tar", "key": "page-3"}                   all records of the sample
    {"source": "code", "shard": "00002.tar", "key": "repo-9", "record": 41}      one line of its JSON lines, from 0 on
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from streampack.errors import ConfigError

MOST_LINES = 1_000_000
"""Of a file, blank ones not counted: they are in the memory of every worker."""
_KEYS = {"source": str, "shard": str, "key": str, "record": int}


_FORM = (
    'A line is {"source": "web", "shard": "00017.tar", "key": "page-3"}, and has "record": 41 for one record of many; '
    "`streampack trace --exclude-lines` prints such lines"
)


class ExcludedLine(NamedTuple):
    """A line of a file."""

    number: int
    """From 1 on."""
    source: str
    shard: str
    """The name of the shard: its URL without the folders that all shards of the source share."""
    key: str
    record: int | None
    """None: all records of the sample."""


def excluded_lines(data: bytes, *, url: str) -> Iterator[ExcludedLine]:
    """The lines of a file; blank ones are passed over.

    Raises:
        ConfigError: a line is something else, or there are too many; it names the file and the line.
    """
    count = 0
    for number, text in enumerate(data.split(b"\n"), 1):
        if not text.strip():
            continue
        count += 1
        if count > MOST_LINES:
            raise ConfigError(
                f"more than {MOST_LINES:,} lines, which every worker would hold: leave so many records out with a "
                "transform that returns None for them, or write the shards again without them",
                url=url,
            )
        try:
            line = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"line {number}: not JSON: {error}. {_FORM}", url=url) from error
        except RecursionError as error:
            raise ConfigError(f"line {number}: JSON that is nested too deeply. {_FORM}", url=url) from error
        if not isinstance(line, dict):
            raise ConfigError(f"line {number}: {text[:80]!r} is not a JSON object. {_FORM}", url=url)
        if unknown := sorted(line.keys() - _KEYS.keys()):
            raise ConfigError(f"line {number}: unknown key {unknown[0]!r}. {_FORM}", url=url)
        for name, kind in _KEYS.items():
            value = line.get(name)
            if value is None and name == "record":
                continue
            if type(value) is not kind or (isinstance(value, int) and value < 0):
                raise ConfigError(f"line {number}: {name} is {value!r:.80}. {_FORM}", url=url)
        yield ExcludedLine(number, line["source"], line["shard"], line["key"], line.get("record"))


@dataclass(frozen=True, slots=True)
class Excluded:
    """Records of one source that are left out."""

    by_shard: Mapping[str, Mapping[str, frozenset[int] | None]]
    """Name of the shard -> key of the sample -> which of its records; None: all."""
    described: str
    """How many entries there are, and a digest of them: what a state keeps."""
    excused: Mapping[str, Mapping[str, frozenset[int] | None]] | None = None
    """As `by_shard`, the records that are no error where they are bad; None: those that are left out."""

    @classmethod
    def of(cls, lines: Iterable[ExcludedLine], before: "Excluded | None" = None) -> "Excluded":
        """Those of some lines of one source, and those that are left out already."""
        more: dict[str, dict[str, set[int] | None]] = {}
        for line in lines:
            keys = more.setdefault(line.shard, {})
            if line.record is None:
                keys[line.key] = None
            elif (records := keys.setdefault(line.key, set())) is not None:
                records.add(line.record)
        by_shard = {} if before is None else dict(before.by_shard)
        for shard, keys in more.items():
            known = by_shard.get(shard, _NOTHING)
            by_shard[shard] = {**known, **{key: _both(known.get(key, _NO_RECORDS), keys[key]) for key in keys}}
        return cls(by_shard, _described(by_shard))

    @property
    def num_entries(self) -> int:
        """A sample of which all records are left out counts once."""
        return _num_entries(self.by_shard)

    def has(self, shard: str, key: str, record: int) -> bool:
        """Whether a record of the shard of this name is left out."""
        return _has(self.by_shard, shard, key, record)

    def excuses(self, shard: str, key: str, record: int) -> bool:
        """Whether a bad record is no error; -1: the sample as a whole."""
        return _has(self.by_shard if self.excused is None else self.excused, shard, key, record)


_NO_RECORDS: frozenset[int] = frozenset()
_NOTHING: Mapping[str, frozenset[int] | None] = {}


def _has(
    by_shard: Mapping[str, Mapping[str, frozenset[int] | None]], shard: str, key: str, record: int
) -> bool:
    records = by_shard.get(shard, _NOTHING).get(key, _NO_RECORDS)
    return records is None or record in records


def _both(one: frozenset[int] | None, other: set[int] | None) -> frozenset[int] | None:
    return None if one is None or other is None else one | other


def _num_entries(by_shard: Mapping[str, Mapping[str, frozenset[int] | None]]) -> int:
    return sum(1 if records is None else len(records) for keys in by_shard.values() for records in keys.values())


def _described(by_shard: Mapping[str, Mapping[str, frozenset[int] | None]]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for shard in sorted(by_shard):
        for key in sorted(by_shard[shard]):
            records = by_shard[shard][key]
            entry = [shard, key, None if records is None else sorted(records)]
            digest.update(json.dumps(entry).encode() + b"\n")
    return f"{_num_entries(by_shard)} records, digest {digest.hexdigest()}"
