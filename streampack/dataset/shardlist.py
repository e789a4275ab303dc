"""The shards of a dataset: listed once, or taken from the rank that has listed them.

In:    what names shards, and how the storage is read.
Out:   the `ShardTable`, and the part of it that must be equal for two runs to have the same packs.
Never: a second listing; what is listed travels with a pickle, so that workers ask for nothing.
"""

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

from streampack.corpus.epochs import Corpus
from streampack.corpus.options import Shuffle
from streampack.corpus.resolve import resolve_shards
from streampack.corpus.table import ShardTable
from streampack.storage.access import StorageReader
from streampack.storage.digests import BLOCK_BYTES


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
                warnings.warn(
                    f"the digests of {unchecked} of {len(self._table)} shards are of whole shards, and lanes read "
                    "these in parts: they are checked by `streampack verify` only. `streampack manifest --digests` "
                    "writes digests of blocks, which are checked while reading.",
                    UserWarning,
                    stacklevel=3,
                )
        return self._table

    def adopt(self, table: ShardTable) -> None:
        """Take the table that another rank has made."""
        self._table = table
        self._fingerprint = None

    def fingerprint(self) -> dict[str, Any]:
        """Names and sizes of all shards, in digests, and the manifest's marks `whole`; plain JSON values.

        `marked_whole` is there only with marks, as in the states of runs without any.
        """
        if self._fingerprint is None:
            table = self.table()
            self._fingerprint = {
                "num_shards": len(table),
                "total_bytes": table.total_bytes,
                "num_estimated_sizes": int((~table.size_known).sum()),
                "digest": table.digest,
                "blocks": table.block_digests(),
            }
            if marked := table.marked_whole():
                self._fingerprint["marked_whole"] = marked
        return self._fingerprint


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
        warnings.warn(
            f"the manifest has digests of blocks of {digest_bytes:,} bytes, which are read whole to be checked, and "
            f"shuffle reads blocks of {block_bytes:,} bytes: about {times:.1f} times the bytes of the shards are read. "
            "Write digests of smaller blocks (`streampack manifest --digests`), leave them out, or use larger blocks "
            '(streampack.Shuffle(block_bytes=...)) or shuffle="shards".',
            UserWarning,
            stacklevel=3,
        )
