"""One whole shard, sample by sample, by the code that a run reads with.

In:  a pipeline, a shard with its index, and `tell`: called now and then with how many more of the shard's bytes are
done; it may raise to stop.
Out: for each sample where it is and what it holds: documents and bad records.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from streampack.corpus.options import MIN_BLOCK_BYTES, Shuffle
from streampack.corpus.partition import Piece
from streampack.corpus.spans import Spans
from streampack.errors import CorruptShardError, ShardError, TruncatedShardError, WrongCutError
from streampack.lanes.pipeline import Pipeline
from streampack.records import BadRecord, Document, Sample, Shard
from streampack.storage.digests import block_bytes_of
from streampack.tar.codecs import is_compressed
from streampack.tar.grouping import PassOver, pass_over_silently

_RANGE_BYTES = 4 * 2**20
"""The largest request to the storage."""
_BLOCKS = 64
"""Of a shard at least, where it has 4 KiB for each. A large shard has blocks of the usual size, which are those of most
runs; a small one may be of a small corpus, whose blocks are small."""
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
    in_blocks: bool = False,
    spans: Spans | None = None,
) -> Iterator[ShardSample]:
    """The samples of a shard, in order; documents that the pipeline leaves out (`exclude`) are not in them.

    `pass_over` is told the names of files that belong to no sample. `in_blocks`: a shard that can be cut is read
    in blocks, as in a run, so that a tar inside the tar is found. Their size depends on the shard alone. `spans`: of a
    shard that can be cut only what these have of it.

    Raises:
        ShardError: the shard cannot be read, from here on.
    """
    told = since = 0
    compressed = is_compressed(shard.url)
    try:
        if spans is None:
            samples = _samples(pipeline, index, shard, pass_over, in_blocks=in_blocks and not shard.whole)
        else:
            samples = _of_spans(pipeline, index, shard, pass_over, spans)
        for sample in samples:
            since += sum(sample.sizes.values())
            if since >= _STEP_BYTES:
                # How far a compressed shard is read is not known; the call still may stop the work.
                reached = told if compressed else sample.position
                tell(reached - told)
                told, since = reached, 0
            yield ShardSample(sample.position, sample.key, documents_of(pipeline, index, shard, sample))
    except ShardError:
        tell(shard.size - told)
        raise
    tell(shard.size - told)


def documents_of(
    pipeline: Pipeline, index: int, shard: Shard, sample: Sample
) -> Iterator[Document | BadRecord]:
    """The documents and bad records of a sample, without those that the pipeline leaves out."""
    excluded = pipeline.excluded
    for each in pipeline.documents.read(
        sample, url=shard.url, shard_name=shard.name, shard_index=index, epoch=0
    ):
        if excluded is None or not excluded.has(shard.name, sample.key, each.record):
            yield each


def _samples(
    pipeline: Pipeline, index: int, shard: Shard, pass_over: PassOver, *, in_blocks: bool
) -> Iterator[Sample]:
    """The samples in order, read in blocks, as a whole from where those break."""
    failure, last = None, -1
    if in_blocks and shard.size:
        try:
            for sample in _in_blocks(pipeline, index, shard, pass_over):
                last = sample.position
                yield sample
        except WrongCutError:
            raise
        except (CorruptShardError, TruncatedShardError) as error:
            failure = error
        else:
            _check_whole_digest(pipeline, shard)
            return
    piece = Piece(index, 0, shard.size, whole=True)
    for sample in pipeline.samples(shard, piece, resume=last, max_range_bytes=_RANGE_BYTES, pass_over=pass_over):
        if sample.position > last:
            yield sample
    if failure is not None:  # the shard is good, but cannot be cut
        raise failure


def _of_spans(
    pipeline: Pipeline, index: int, shard: Shard, pass_over: PassOver, spans: Spans
) -> Iterator[Sample]:
    """The samples that begin in these parts of the shard."""
    mine = np.flatnonzero(spans.shards == index)
    for span, size, whole in zip(mine.tolist(), spans.sizes[mine].tolist(), spans.whole[mine].tolist(), strict=True):
        [piece] = spans.placed([Piece(span, 0, size, whole=whole)])
        yield from pipeline.samples(shard, piece, resume=-1, max_range_bytes=_RANGE_BYTES, pass_over=pass_over)


def _check_whole_digest(pipeline: Pipeline, shard: Shard) -> None:
    """Read the shard once more where its digest is of all bytes in one, which a reading in blocks does not check."""
    if shard.digest and not block_bytes_of(shard.digest):
        stored = pipeline.storage.chunks(
            shard.url, size=shard.size, digest=shard.digest, etag=shard.etag or "", max_bytes=_RANGE_BYTES
        )
        for _ in stored:
            pass


def _in_blocks(pipeline: Pipeline, index: int, shard: Shard, pass_over: PassOver) -> Iterator[Sample]:
    share = shard.size // _BLOCKS
    block_bytes = min(max(1 << share.bit_length() >> 1, MIN_BLOCK_BYTES), Shuffle().block_bytes)
    begins = range(0, shard.size, block_bytes)
    pieces = [Piece(index, begin, min(begin + block_bytes, shard.size), whole=False) for begin in begins]
    at_once = max(_RANGE_BYTES // block_bytes, 1)
    for first in range(0, len(pieces), at_once):
        group = pieces[first : first + at_once]
        fetched = pipeline.fetch([(shard, piece, -1) for piece in group])
        try:
            for piece in group:
                yield from pipeline.samples(
                    shard, piece, resume=-1, max_range_bytes=_RANGE_BYTES, pass_over=pass_over, fetched=fetched
                )
        finally:
            fetched.close()
