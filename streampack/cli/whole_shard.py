"""One whole shard, sample by sample, by the code that a run reads with.

In:  a pipeline, a shard with its index, and `tell`: called now and then with how many more of the shard's bytes are
done; it may raise to stop.
Out: for each sample where it is and what it holds: documents and bad records.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from streampack.corpus.partition import Piece
from streampack.errors import ShardError
from streampack.lanes.pipeline import Pipeline
from streampack.records import BadRecord, Document, Shard
from streampack.tar.codecs import is_compressed
from streampack.tar.grouping import PassOver, pass_over_silently

_RANGE_BYTES = 4 * 2**20
"""The largest request to the storage."""
_STEP_BYTES = 2**20
"""Bytes of members between two calls of `tell`."""


class ShardSample(NamedTuple):
    """A sample of a shard."""

    position: int
    """Its byte offset in a plain tar, its ordinal in a compressed one."""
    key: str
    documents: Iterable[Document | BadRecord]


def read_whole_shard(
    pipeline: Pipeline,
    index: int,
    shard: Shard,
    *,
    tell: Callable[[int], None],
    pass_over: PassOver = pass_over_silently,
) -> Iterator[ShardSample]:
    """The samples of a shard from its first byte to its last.

    `pass_over` is told the names of files that belong to no sample.

    Raises:
        ShardError: the shard cannot be read, from here on.
    """
    told = since = 0
    compressed = is_compressed(shard.url)
    piece = Piece(index, 0, shard.size, whole=True)
    try:
        for sample in pipeline.samples(
            shard, piece, resume=-1, max_range_bytes=_RANGE_BYTES, pass_over=pass_over
        ):
            since += sum(sample.sizes.values())
            if since >= _STEP_BYTES:
                # How far a compressed shard is read is not known; the call still may stop the work.
                reached = told if compressed else sample.position
                tell(reached - told)
                told, since = reached, 0
            documents = pipeline.documents.read(
                sample, url=shard.url, shard_name=shard.name, shard_index=index, epoch=0
            )
            yield ShardSample(sample.position, sample.key, documents)
    except ShardError:
        tell(shard.size - told)
        raise
    tell(shard.size - told)
