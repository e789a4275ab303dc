"""The shards of a dataset: listed once, or taken from the rank that has listed them.

In:    what names shards, and how the storage is read.
Out:   the `ShardTable`, and the part of it that must be equal for two runs to have the same packs.
Never: a second listing; what is listed travels with a pickle, so that workers ask for nothing.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from streampack.corpus.epochs import Corpus
from streampack.corpus.options import MIN_BLOCK_BYTES, Shuffle
from streampack.corpus.resolve import resolve_shards
from streampack.corpus.shares import DEFAULT
from streampack.corpus.spans import Spans
from streampack.corpus.table import ShardTable
from streampack.dataset.sources import Source, errors_of, names_of
from streampack.errors import ConfigError, warn
from streampack.storage.access import StorageReader
from streampack.storage.digests import BLOCK_BYTES
from streampack.storage.identity import identities
from streampack.storage.redaction import named


class ShardList:
    """The shards that some names stand for."""

    def __init__(self, names: Sequence[str], storage: StorageReader) -> None:
        self._names = tuple(names)
        self._storage = storage
        self._table: ShardTable | None = None
        self._fingerprint: dict[str, Any] | None = None

    @property
    def is_listed(self) -> bool:
        """Whether the table is known, so that no storage will be asked."""
        return self._table is not None

    @property
    def digest(self) -> str:
        """A digest of the names as they were given, before anything is listed."""
        return hashlib.blake2b("\n".join(self._names).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()

    def table(self) -> ShardTable:
        """The shards with their sizes; the first call lists them, with a warning where digests cannot be checked."""
        if self._table is None:
            self._table = resolve_shards(self._names, self._storage)
            if unchecked := self._table.num_unchecked:
                warn(
                    f"the digests of {unchecked} of {len(self._table)} shards are of whole shards, and lanes read "
                    "these in parts: they are checked by `streampack verify` only. `streampack manifest --digests` "
                    "writes digests of blocks, which are checked while reading.",
                )
        return self._table

    def adopt(self, table: ShardTable) -> None:
        """Take the table that another rank has made."""
        self._table = table
        self._fingerprint = None

    def fingerprint(self) -> dict[str, Any]:
        """Names and sizes of all shards, in digests, and the manifest's marks `whole`; plain JSON values.

        `marked_whole` is there only with marks, as in the states of runs without any. `block_names` are for messages.
        """
        if self._fingerprint is None:
            table = self.table()
            self._fingerprint = {
                "num_shards": len(table),
                "total_bytes": table.total_bytes,
                "num_estimated_sizes": int((~table.size_known).sum()),
                "digest": table.digest,
                "blocks": table.block_digests(),
                "block_names": table.block_names(),
            }
            if marked := table.marked_whole():
                self._fingerprint["marked_whole"] = marked
        return self._fingerprint


class ShardLists:
    """The shards of the sources of a run."""

    def __init__(self, sources: Mapping[str, Source], storages: Mapping[str, StorageReader]) -> None:
        self._sources = sources
        self._lists = {name: ShardList(names_of(source.data), storages[name]) for name, source in sources.items()}

    @property
    def is_listed(self) -> bool:
        """Whether all tables are known, so that no storage will be asked."""
        return all(each.is_listed for each in self._lists.values())

    def describe(self) -> str:
        """The sources in words, as far as they are known without a look at the storage."""
        said = []
        for name, each in self._lists.items():
            what = "not listed yet"
            if each.is_listed:
                what = f"{len(each.table())} shard{'s' if len(each.table()) != 1 else ''}"
            said.append(what if name == DEFAULT else f"{name}: {what}")
        return ", ".join(said)

    @property
    def digest(self) -> str:
        """A digest of what was given, names of sources too, before anything is listed."""
        if list(self._lists) == [DEFAULT]:
            return self._lists[DEFAULT].digest
        given = [(name, each.digest) for name, each in self._lists.items()]
        return hashlib.blake2b(repr(given).encode(), digest_size=8).hexdigest()

    def table(self, name: str) -> ShardTable:
        """The shards of a source; the first call lists them."""
        with errors_of(name):
            return self._lists[name].table()

    def tables(self) -> tuple[ShardTable, ...]:
        """Those of each source, in order."""
        return tuple(self.table(name) for name in self._lists)

    def adopt(self, tables: Sequence[ShardTable]) -> None:
        """Take the tables that another rank has made, in the order of the sources."""
        for each, table in zip(self._lists.values(), tables, strict=True):
            each.adopt(table)

    def fingerprint(self, name: str) -> dict[str, Any]:
        """Of the shards of a source."""
        return self._lists[name].fingerprint()

    def check_disjoint(self, together: Iterable[Collection[str]]) -> None:
        """Refuse a shard that is in two sources of which one of `together` has both: its documents would come twice."""
        groups = [set(group) for group in together if len(group) > 1]
        if not groups:
            return
        owners: dict[str, list[tuple[str, int]]] = {}
        for name in self._lists:
            if not any(name in group for group in groups):
                continue
            table = self.table(name)
            for index, shard in enumerate(identities(table.urls[index] for index in range(len(table)))):
                for other, its_index in owners.setdefault(shard, []):
                    if any({name, other} <= group for group in groups):
                        first, second = self.table(other).urls[its_index], table.urls[index]
                        also = "" if first == second else f", there as {named(second)}"
                        raise ConfigError(
                            f"{named(first)} is in two sources, {other!r} and {name!r}{also}, and both have a weight "
                            "in one stage: its documents would come twice as often. Leave it out of one of them"
                        )
                owners[shard].append((name, index))


def most_lanes(shards: ShardTable | Spans) -> int:
    """How many lanes these shards, or parts of them, can feed: of their smallest blocks each lane has one."""
    cut = int(shards.sizes[~shards.whole].sum())
    return max(int(shards.whole.sum()) + cut // MIN_BLOCK_BYTES, 1)


_MOST_MORE = 4
"""A block of a digest that is larger than this part of a shuffled block makes its reading cost noticeably more."""


def check_corpus(corpus: Corpus) -> None:
    """Refuse a part of the corpus that is empty; warn where digests have much more read than what is used.

    Their blocks are then much larger than the shuffled ones, and something can be done.

    A corpus of some MB has small blocks, whatever was asked for; digests as `streampack manifest` writes them are good
    for it.
    """
    corpus.check_not_empty()
    if not isinstance(corpus.shuffle, Shuffle):
        return
    digest_bytes, block_bytes = corpus.table.digest_block_bytes, corpus.block_bytes
    if digest_bytes <= BLOCK_BYTES and block_bytes < corpus.shuffle.block_bytes:
        return
    if digest_bytes * _MOST_MORE > block_bytes:
        times = 1 + digest_bytes / block_bytes
        warn(
            f"the manifest has digests of blocks of {digest_bytes:,} bytes, which are read whole to be checked, and "
            f"shuffle reads blocks of {block_bytes:,} bytes: about {times:.1f} times the bytes of the shards are read. "
            "Write digests of smaller blocks (`streampack manifest --digests`), leave them out, or use larger blocks "
            '(streampack.Shuffle(block_bytes=...)) or shuffle="shards".',
        )
