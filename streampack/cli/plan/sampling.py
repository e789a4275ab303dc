"""A seeded sample of the corpus: some blocks of the shards, read and tokenized by the run's own pipeline.

In:  a source's pipeline and shards, and the size of a block. Out: for each sampled block its samples' bytes
and tokens; how they pack.
Invariants: at most about 8 MiB of shards, and no block begins after 15 s; the same places for the same shards. What
cannot be read of a block is counted, and the rest of that block is left out.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack.cli.packings import Packed, PackingTrial
from streampack.cli.whole_shard import documents_of
from streampack.corpus.epochs import Corpus
from streampack.corpus.partition import Piece
from streampack.corpus.spans import Spans
from streampack.corpus.table import ShardTable
from streampack.errors import CorruptShardError, RecordError, TruncatedShardError
from streampack.hashing import hash_range, permutation
from streampack.lanes.fetching import Fetched
from streampack.lanes.pipeline import Pipeline
from streampack.packing.options import PackingKind
from streampack.packing.policies import BoundaryPolicy
from streampack.records import BadRecord, Sample, Shard
from streampack.tar.codecs import is_compressed
from streampack.tar.headers import BLOCK
from streampack.tar.reader import read_shard

SAMPLE_BYTES = 8 * 2**20
MOST_PLACES = 256
MOST_SECONDS = 15.0
_BLOCK_BYTES = 256 * 2**10
_WHOLE_BYTES = 512 * 2**10
"""Stored bytes that are read of a shard that cannot be cut."""
_AT_ONCE = 16
"""Blocks whose bytes are asked for together."""
_STEP_BYTES = 8 * 2**10
"""Stored bytes that a decompressor gets at a time."""
_SEED = 0x706C616E


class Place(NamedTuple):
    """What begins in one sampled block, or in the first bytes of a shard that is read whole."""

    shard: int
    begin: int
    """Byte of the shard."""
    whole: bool
    size: int
    """Bytes of the block; of a shard that is read whole, all of it."""
    bytes: NDArray[np.float64]
    """Of the shard, headers and padding included, for each sample: [samples]."""
    tokens: NDArray[np.float64]
    """For each sample, those that are rows of packs, over its documents: [samples].

    Not what `overflow` takes away, nor a document's last token under boundary="trim"."""


@dataclass(slots=True)
class Sampled:
    """What the sample holds."""

    block_bytes: int
    places: list[Place] = field(default_factory=list)
    document_tokens: list[int] = field(default_factory=list)
    """Tokens of each document, BOS and EOS included."""
    full_packs: int = 0
    """Packs that the documents fill, in the order of the sample."""
    rows_in_full_packs: int = 0
    rows: int = 0
    """Of all packs."""
    is_complete: bool = False
    """Whether it is all of the corpus."""
    cut_documents: int = 0
    """Those that `overflow` truncates or drops."""
    cut_tokens: int = 0
    """What it takes away of them."""
    bad: int = 0
    first_bad: str = ""
    packed: dict[PackingKind, Packed] = field(default_factory=dict)
    """What each packing makes of the documents."""

    @property
    def bytes(self) -> float:
        """Bytes of shards that the samples take."""
        return float(sum(place.bytes.sum() for place in self.places))

    @property
    def tokens(self) -> int:
        """Of all documents."""
        return sum(self.document_tokens)

    @property
    def kept_tokens(self) -> int:
        """Those that are rows of packs."""
        return round(sum(float(place.tokens.sum()) for place in self.places))


def block_bytes_of(corpus: Corpus) -> int:
    """The size of the blocks that the sample consists of: the run's, where it has blocks."""
    return corpus.block_bytes or _BLOCK_BYTES


def take_sample(pipeline: Pipeline, corpus: Corpus, block_bytes: int) -> Sampled:
    """Read and tokenize a sample.

    Raises:
        ShardNotFoundError: a shard is missing.
        StorageError: the storage fails.
    """
    begin = monotonic()
    found, table = Sampled(block_bytes), corpus.table
    packer, trial = pipeline.packer(), PackingTrial(pipeline.seq_len, pipeline.boundary)
    labels_only = int(pipeline.boundary is BoundaryPolicy.TRIM)
    taken = 0.0
    for piece, fetched in _fetched(pipeline, table, choose_places(corpus.parts, block_bytes)):
        if taken >= SAMPLE_BYTES or monotonic() - begin > MOST_SECONDS:
            break
        shard = table[piece.shard]
        sizes: list[float] = []
        tokens: list[float] = []
        try:
            for sample, size in _samples(pipeline, shard, piece, fetched):
                sizes.append(size)
                tokens.append(0)
                for document in documents_of(pipeline, piece.shard, shard, sample):
                    try:
                        if isinstance(document, BadRecord):
                            raise document.error
                        ids, mask = pipeline.encode(document)
                        packer.feed(ids, mask)
                    except RecordError as error:
                        _note_bad(found, error)
                        continue
                    rows = max(len(ids) - labels_only, 0)
                    kept = pipeline.packing.rows_kept(rows, pipeline.seq_len)
                    tokens[-1] += kept
                    found.cut_documents += kept < rows
                    found.cut_tokens += rows - kept
                    found.document_tokens.append(len(ids))
                    trial.feed(ids)
                while (pack := packer.pop()) is not None:
                    found.full_packs += 1
                    found.rows_in_full_packs += len(pack.tokens)
        except (CorruptShardError, TruncatedShardError) as error:
            _note_bad(found, error)
        size = piece.end - piece.begin
        columns = np.array(sizes, float), np.array(tokens, float)
        found.places.append(Place(piece.shard, piece.begin, piece.whole, size, *columns))
        taken += max(sum(sizes), min(block_bytes, size))
    packer.finish()
    rest = [len(pack.tokens) for pack in iter(packer.pop, None)]
    found.packed = trial.finish()
    found.rows = found.rows_in_full_packs + sum(rest)
    if not found.full_packs and len(rest) > 1:  # one packing window holds all of it
        found.full_packs, found.rows_in_full_packs = len(rest) - 1, sum(rest[:-1])
    found.is_complete = sum(place.size for place in found.places) == corpus.total_bytes and all(
        place.size <= _WHOLE_BYTES for place in found.places if place.whole
    )
    return found


def choose_places(parts: Spans, block_bytes: int) -> list[Piece]:
    """The places to read, in an order of which each beginning is spread over the corpus, too.

    Blocks of `block_bytes` of the shards that can be cut, one in each of as many equal parts of their line; shards that
    are read whole have as many places as their share of the bytes. Where cells are held out, only of what is read.
    """
    blocks = np.where(parts.whole, 0, -(-parts.sizes // block_bytes))
    starts = np.concatenate([[0], np.cumsum(blocks)])
    total, num_blocks, num_whole = max(parts.total_bytes, 1), int(starts[-1]), int(parts.whole.sum())
    most = min(max(SAMPLE_BYTES // block_bytes, 1), MOST_PLACES)
    if total <= SAMPLE_BYTES:
        most = num_blocks + num_whole
    whole_bytes = int(parts.sizes[parts.whole].sum())
    of_whole = min(max(round(most * whole_bytes / total), 1), num_whole)
    of_cut = min(max(most - of_whole, 1), num_blocks)
    pieces = []
    for number in _one_in_each(num_blocks, of_cut):
        part = int(np.searchsorted(starts, number, side="right")) - 1
        first = (number - int(starts[part])) * block_bytes
        pieces.append(Piece(part, first, min(first + block_bytes, int(parts.sizes[part])), whole=False))
    uncut = np.flatnonzero(parts.whole)
    for number in _one_in_each(num_whole, of_whole):
        part = int(uncut[number])
        pieces.append(Piece(part, 0, int(parts.sizes[part]), whole=True))
    pieces = parts.placed(pieces)
    return [pieces[index] for index in permutation(_SEED, len(pieces), count=len(pieces)).tolist()]


def _one_in_each(count: int, parts: int) -> list[int]:
    """A number in each of `parts` equal parts of 0 .. count - 1, chosen by a hash."""
    if not parts:
        return []
    share = hash_range(_SEED, count, count=parts).astype(np.float64) / 2.0**64
    edges = np.arange(parts + 1) * count // parts
    chosen: list[int] = (edges[:-1] + (share * np.diff(edges)).astype(np.int64)).tolist()
    return chosen


def _fetched(
    pipeline: Pipeline, table: ShardTable, pieces: Sequence[Piece]
) -> Iterator[tuple[Piece, Fetched]]:
    """Each piece with what holds its bytes; some are asked for at once."""
    for first in range(0, len(pieces), _AT_ONCE):
        group = pieces[first : first + _AT_ONCE]
        fetched = pipeline.fetch([(table[piece.shard], piece, -1) for piece in group])
        try:
            for piece in group:
                yield piece, fetched
        finally:
            fetched.close()


def _samples(pipeline: Pipeline, shard: Shard, piece: Piece, fetched: Fetched) -> Iterable[tuple[Sample, float]]:
    """The samples that begin in the piece, or in the first bytes of a whole shard, each with its bytes of the shard."""
    if not piece.whole:
        samples = pipeline.samples(shard, piece, resume=-1, max_range_bytes=_WHOLE_BYTES, fetched=fetched)
        return list(_by_position(samples))  # an error may tell at the end that they are none
    stored = 0

    def chunks() -> Iterator[bytes]:
        nonlocal stored
        stop, size = min(_WHOLE_BYTES, shard.size), shard.size if shard.size_known else None
        for chunk in pipeline.storage.chunks(shard.url, 0, stop, size=size, etag=shard.etag or "", max_bytes=stop):
            for begin in range(0, len(chunk), _STEP_BYTES):
                part = chunk[begin : begin + _STEP_BYTES]
                stored += len(part)
                yield part

    wanted, limit = pipeline.documents.field.wanted, pipeline.documents.member_bytes
    samples = _until_cut(read_shard(chunks(), url=shard.url, wanted=wanted, max_member_bytes=limit), shard)
    if not is_compressed(shard.url):
        return _by_position(samples)
    sized = [(sample, _tar_bytes(sample), stored) for sample in samples]
    if stored == shard.size:
        sized = [(sample, size, stored) for sample, size, _ in sized]
    scale = _stored_for_each([size for _, size, _ in sized], [reached for *_, reached in sized])
    return [(sample, size * scale) for sample, size, _ in sized]


def _stored_for_each(sizes: list[float], stored: list[int]) -> float:
    """Stored bytes for each byte of the samples, of which each came out when so many stored bytes had gone in.

    A decompressor takes and gives whole blocks, so it is the slope between its first and its last one.
    """
    steps = np.flatnonzero(np.diff(stored))
    given = np.cumsum(sizes)
    if not len(steps):
        return stored[-1] / float(given[-1]) if sizes else 0.0
    first = int(steps[0])
    return (stored[-1] - stored[first]) / float(given[-1] - given[first])


def _until_cut(samples: Iterator[Sample], shard: Shard) -> Iterator[Sample]:
    """The samples up to where a shard's first bytes end."""
    try:
        yield from samples
    except TruncatedShardError:
        if shard.size_known and shard.size <= _WHOLE_BYTES:
            raise


def _by_position(samples: Iterator[Sample]) -> Iterator[tuple[Sample, float]]:
    """Samples of a plain tar with the bytes from each to the next."""
    before: Sample | None = None
    for sample in samples:
        if before is not None:
            yield before, sample.position - before.position
        before = sample
    if before is not None:
        yield before, _tar_bytes(before)


def _tar_bytes(sample: Sample) -> float:
    """Bytes of the sample in its tar: for each member a header, and its content in full blocks."""
    return float(sum(BLOCK * (1 + -(-size // BLOCK)) for size in sample.sizes.values()))


def _note_bad(found: Sampled, error: Exception) -> None:
    found.bad += 1
    found.first_bad = found.first_bad or str(error)
