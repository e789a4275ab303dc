"""A pack of a run as records: where it stands in the run, and of each segment the document and where that is stored.

In:  a lane's pack with its provenance, and the run. Out: a `TracedPack`, for the terminal and for JSON.
"""

from dataclasses import dataclass

from streampack.cli.peek.pieces import Pieces
from streampack.lanes.position import LaneFiller, LanePack
from streampack.lanes.provenance import Provenance
from streampack.lanes.run import Run, RunSource
from streampack.packing.blocks import spell_out
from streampack.records import IGNORE_INDEX, Shard
from streampack.storage.digests import parse_digest
from streampack.storage.redaction import redacted
from streampack.tar.codecs import is_compressed


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A global pack, and how it was asked for."""

    global_pack: int
    step: int | None = None
    """The batch that it is in; None: it was not asked for by a step."""
    row: int | None = None
    """Which pack of the global batch it is; None: a single pack was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedSegment:
    """Rows of one document in a pack, and where the document is stored."""

    source: str
    epoch: int
    """Of the source in the lane, counted from 0."""
    url: str
    shard: str
    """Its name: the part of the URL that stays when the corpus moves."""
    etag: str | None
    """What the storage, or the manifest, calls this version of the shard."""
    digest: str | None
    """Of the shard, as a manifest has it; where that has digests of blocks, of the block that `byte_offset` is in."""
    key: str
    """Of the sample."""
    byte_offset: int | None
    """Of the sample's first header; None: the shard is compressed."""
    ordinal: int | None
    """Of the sample in a compressed shard, counted from 0; None: see `byte_offset`."""
    record: int
    """Index of the record in its member; 0 where a member is one record."""
    part: int
    """Index in what the transform made of the record."""
    first_row: int
    """Of the pack."""
    num_rows: int
    document_row: int
    """Which of the document's rows is the first one here."""
    targets: int
    """Rows here that are trained."""
    text: str | None
    """What the rows' tokens say; None where it was not asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedPack:
    """One pack and its documents."""

    global_pack: int
    step: int | None
    row: int | None
    lane: int
    lane_pack: int
    stage: int
    source: str | None
    """None: a filler, which is all padding."""
    lane_ended_after: int | None
    """Of a filler after the lane's end: the lane has no more packs than this; else None."""
    seq_len: int
    num_tokens: int
    num_targets: int
    segments: list[TracedSegment]


def traced(
    run: Run, place: Place, pack: LanePack | LaneFiller, pieces: Pieces | None, *, ended_after: int | None
) -> TracedPack:
    """What a lane gave at a global pack.

    `pieces`: makes the text of rows, None: it is not wanted. `ended_after`: see `TracedPack.lane_ended_after`.
    """
    number, num_lanes = place.global_pack, run.num_lanes
    stage = run.schedule.index_of(number)
    segments: list[TracedSegment] = []
    source, num_tokens, num_targets = None, 0, 0
    if isinstance(pack, LanePack):
        source = run.sources[pack.source]
        segments = _segments(source, stage, pack, pieces)
        num_tokens, num_targets = pack.rows.tokens.size, pack.rows.num_targets
    return TracedPack(
        global_pack=number,
        step=place.step,
        row=place.row,
        lane=number % num_lanes,
        lane_pack=number // num_lanes,
        stage=stage,
        source=None if source is None else source.name,
        lane_ended_after=ended_after,
        seq_len=run.schedule.stages[stage].seq_len,
        num_tokens=num_tokens,
        num_targets=num_targets,
        segments=segments,
    )


def _segments(source: RunSource, stage: int, pack: LanePack, pieces: Pieces | None) -> list[TracedSegment]:
    pipeline = source.pipelines[stage]
    arrays = spell_out(pack.rows, seq_len=pipeline.seq_len, pad_id=pipeline.pad_id)
    found = []
    first_row = 0
    for origin in pack.provenance:
        rows = slice(first_row, first_row + origin.length)
        shard = source.corpus.table[origin.shard]
        is_offset = not is_compressed(shard.url)
        found.append(
            TracedSegment(
                source=source.name,
                epoch=origin.epoch,
                url=redacted(shard.url),
                shard=shard.name,
                etag=shard.etag,
                digest=_digest(shard, origin),
                key=origin.key,
                byte_offset=origin.sample if is_offset else None,
                ordinal=None if is_offset else origin.sample,
                record=origin.record,
                part=origin.part,
                first_row=first_row,
                num_rows=origin.length,
                document_row=origin.row,
                targets=int((arrays.labels[rows] != IGNORE_INDEX).sum()),
                text=None if pieces is None else "".join(pieces.texts(arrays.tokens[rows].tolist())),
            )
        )
        first_row = rows.stop
    return found


def _digest(shard: Shard, origin: Provenance) -> str | None:
    if shard.digest is None:
        return None
    digest = parse_digest(shard.digest, size=shard.size)
    if digest.block_bytes is None:
        return shard.digest
    if is_compressed(shard.url):
        return None
    expected = digest.expected(origin.sample // digest.block_bytes)
    return f"{digest.algorithm}/{digest.block_bytes}:{expected}"
