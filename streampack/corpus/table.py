"""The shards of a run as a table: a few arrays and blocks of bytes, however many shards there are.

In:    columns of equal length, in listed order; or the bytes of a table of another process.
Out:   `Shard` records by index; digests that differ for different corpora; the table's own bytes.
Never: a Python object for each shard that is kept: a forked worker would copy it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from streampack.errors import ConfigError
from streampack.records import Shard
from streampack.storage.clients import local_path
from streampack.storage.digests import block_bytes_of
from streampack.tar.codecs import COMPRESSED_SUFFIXES, suffix_of

_BLOCKS = 100
_HEAD_BYTES = 20
"""Of a digest: its algorithm and the bytes of its blocks."""
_MOST_RUNS = 100
"""Of neighbouring marked shards, that a fingerprint names."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Texts:
    """Many strings as one block of bytes: no Python object for each, so a forked worker copies none."""

    blob: bytes
    offsets: NDArray[np.int64]
    """int64 [n + 1]."""

    def __getitem__(self, index: int) -> str:
        return self.blob[self.offsets[index] : self.offsets[index + 1]].decode("utf-8", "surrogatepass")

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Texts":
        """The strings laid end to end."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum([len(text) for text in encoded], out=offsets[1:])
        return cls(blob=b"".join(encoded), offsets=offsets)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShardTable:
    """The shards of a run, in listed order; `table[i]` is a `Shard`.

    Names are the URLs without the folders that all of them share (and without a query), so that the corpus can move.
    """

    urls: Texts
    names: Texts
    digests: Texts
    """Empty strings where the manifest gave none."""
    etags: Texts
    """Empty strings where neither a manifest nor the storage gave one."""
    sizes: NDArray[np.int64]
    """int64 [n] bytes; the mean of the known ones where a size is unknown."""
    size_known: NDArray[np.bool_]
    whole: NDArray[np.bool_]
    """bool [n]: cannot be cut (compressed, of unknown size, or the manifest says so)."""
    num_samples: NDArray[np.int64]
    """int64 [n]; -1 where unknown."""
    _remote: list[bool] = field(default_factory=list, init=False, repr=False)
    """`is_remote`, once it is known."""
    derived: dict[object, Any] = field(default_factory=dict, init=False, repr=False)
    """What `spans.Spans.of` has computed of it, which goes to workers with it."""

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Shard:
        index = range(len(self))[index]
        samples = int(self.num_samples[index])
        return Shard(
            url=self.urls[index],
            name=self.names[index],
            size=int(self.sizes[index]),
            size_known=bool(self.size_known[index]),
            digest=self.digests[index] or None,
            etag=self.etags[index] or None,
            num_samples=None if samples < 0 else samples,
            whole=bool(self.whole[index]),
        )

    def __iter__(self) -> Iterator[Shard]:
        return (self[index] for index in range(len(self)))

    @property
    def total_bytes(self) -> int:
        """The sizes added up, estimates included."""
        return int(self.sizes.sum())

    @property
    def is_remote(self) -> bool:
        """Whether some of the shards are not on this machine."""
        if not self._remote:
            urls = self.urls
            self._remote.append(b":" in urls.blob and any(local_path(urls[i]) is None for i in range(len(self))))
        return self._remote[0]

    @property
    def num_unchecked(self) -> int:
        """Number of shards whose digest no reader checks: several lanes read parts of a shard with one digest."""
        with_digest = np.flatnonzero(np.diff(self.digests.offsets) * ~self.whole)
        return sum(not block_bytes_of(self.digests[int(index)]) for index in with_digest)

    @property
    def digest_block_bytes(self) -> int:
        """The largest block that has a digest, of the shards that are read in parts; 0: none has."""
        begins, ends = self.digests.offsets[:-1], self.digests.offsets[1:]
        cut = np.flatnonzero((ends > begins) & ~self.whole)
        heads = {self.digests.blob[begins[i] : min(begins[i] + _HEAD_BYTES, ends[i])] for i in cut.tolist()}
        return max((block_bytes_of(head.decode()) for head in heads), default=0)

    @property
    def digest(self) -> str:
        """32 hex digits, a digest of the names and sizes in their order."""
        blocks = "".join(self.block_digests())
        return hashlib.blake2b(f"{len(self)}:{blocks}".encode(), digest_size=16).hexdigest()

    def block_digests(self, num_blocks: int = _BLOCKS) -> list[str]:
        """16 hex digits for each block of neighbouring shards; block b holds the shards [b*n//B, (b+1)*n//B)."""
        num_blocks = min(num_blocks, len(self))
        names, offsets, lengths = self.names.blob, self.names.offsets, np.diff(self.names.offsets)
        rows = np.stack([lengths, self.sizes], axis=1).astype("<i8")
        digests = []
        for block in range(num_blocks):
            first, stop = block * len(self) // num_blocks, (block + 1) * len(self) // num_blocks
            digest = hashlib.blake2b(rows[first:stop].tobytes(), digest_size=8)
            digest.update(names[offsets[first] : offsets[stop]])
            digests.append(digest.hexdigest())
        return digests

    def block_names(self) -> list[str]:
        """The name of the first shard of each block of `block_digests`, and of the last shard of all."""
        num_blocks = min(_BLOCKS, len(self))
        first = [block * len(self) // num_blocks for block in range(num_blocks)]
        return [self.names[index] for index in (*first, len(self) - 1)]

    def marked_whole(self) -> str:
        """The indexes of the plain shards that a manifest marks as `whole`, such as "3-5,9"; "" where none is marked.

        Of more than 100 runs of neighbours: how many shards they are, and a digest of their indexes.
        """
        uncut = np.flatnonzero(self.whole & self.size_known)
        marked = np.array([i for i in uncut.tolist() if suffix_of(self.urls[i]) not in COMPRESSED_SUFFIXES], np.int64)
        if not marked.size:
            return ""
        ends = np.flatnonzero(np.diff(marked) > 1)
        first, last = marked[np.append(0, ends + 1)].tolist(), marked[np.append(ends, -1)].tolist()
        if len(first) > _MOST_RUNS:
            return f"{marked.size} shards, {hashlib.blake2b(marked.astype('<i8').tobytes(), digest_size=8).hexdigest()}"
        return ",".join(f"{low}-{high}" if low < high else str(low) for low, high in zip(first, last, strict=True))

    def to_bytes(self) -> bytes:
        """The table for another process, whatever its version of Python."""
        texts, integers, flags = _PARTS
        return msgspec.msgpack.encode(
            _Wire(
                texts=[(getattr(self, name).blob, _bytes(getattr(self, name).offsets)) for name in texts],
                integers=[_bytes(getattr(self, name)) for name in integers],
                flags=[getattr(self, name).tobytes() for name in flags],
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "ShardTable":
        """The table that `to_bytes` wrote.

        Raises:
            ConfigError: it is not a table of this version.
        """
        try:
            wire = msgspec.msgpack.decode(data, type=_Wire)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"not a shard table of this version ({error}); run one version on all ranks") from error
        urls, names, digests, etags = (Texts(blob=blob, offsets=np.frombuffer(at, "<i8")) for blob, at in wire.texts)
        sizes, num_samples = (np.frombuffer(values, "<i8") for values in wire.integers)
        size_known, whole = (np.frombuffer(values, np.bool_) for values in wire.flags)
        return cls(
            urls=urls,
            names=names,
            digests=digests,
            etags=etags,
            sizes=sizes,
            size_known=size_known,
            whole=whole,
            num_samples=num_samples,
        )


_PARTS = ("urls", "names", "digests", "etags"), ("sizes", "num_samples"), ("size_known", "whole")


class _Wire(msgspec.Struct, tag="streampack.shards.2"):
    texts: list[tuple[bytes, bytes]]
    integers: list[bytes]
    flags: list[bytes]


def _bytes(values: NDArray[np.int64]) -> bytes:
    return values.astype("<i8").tobytes()


def differing_block(then: Sequence[str], now: Sequence[str], *, num_shards: int) -> tuple[int, range] | None:
    """The first block whose digest differs and its shards, or None; both lists are of tables of `num_shards`."""
    for block, (before, after) in enumerate(zip(then, now, strict=False)):
        if before != after:
            return block, range(block * num_shards // len(now), (block + 1) * num_shards // len(now))
    return None
