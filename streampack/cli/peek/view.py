"""A pack spelled out: its arrays, its segments, and for each the label of its last row and why it is that.

In:  a lane's pack and the pipeline that made it. Out: a `View`, for the terminal and for JSON.
"""

from dataclasses import dataclass

from streampack.cli.peek.pieces import Pieces
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.position import LanePack
from streampack.lanes.provenance import Provenance
from streampack.packing.blocks import spell_out
from streampack.packing.options import Overflow
from streampack.packing.policies import BoundaryPolicy, ReplaceBoundary
from streampack.records import IGNORE_INDEX

_NEXT = "its next token, in the next pack"
_LAST = "the document's last token"
_CUT_OFF = "its next token, which overflow cut off"
_OWN = (_NEXT, _LAST, _CUT_OFF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """The last row of a segment: where two documents meet, or a pack cuts one."""

    row: int
    input: int
    input_text: str
    label: int
    label_text: str
    masked: bool
    reason: str
    """Why the label is what it is."""
    is_own: bool
    """Whether the label is the document's next token, which is no input of this pack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Rows of one document in a pack."""

    document: int
    """Counted from 1 in the pack: the segment id of its rows."""
    url: str
    key: str
    sample: int
    """The sample's position in its shard: byte offset in a plain tar, ordinal in a compressed one."""
    record: int
    part: int
    first_row: int
    num_rows: int
    document_row: int
    """Which of the document's rows is the first one here."""
    goes_on: bool
    """Whether the next pack has more of the document."""
    edge: Edge


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One pack with all that is to be shown of it."""

    global_pack: int
    lane: int
    lane_pack: int
    source: str
    """Its name."""
    num_tokens: int
    num_targets: int
    num_masked: int
    """Rows that are neither padding nor have a target."""
    num_padding: int
    tokens: list[int]
    labels: list[int]
    position_ids: list[int]
    segment_ids: list[int]
    pieces: list[str] | None
    """The tokenizer's pieces of `tokens`; None where it does not tell them."""
    segments: list[Segment]
    roles: list[str] | None = None
    """Of each row of a conversation, whose message it is of; "" elsewhere. None: the pack has no conversation."""


def make_view(
    pipeline: Pipeline, pieces: Pieces, number: int, num_lanes: int, pack: LanePack, *, source: str
) -> View:
    """A pack of a lane, spelled out; `pipeline` is its source's, in the stage that it is in."""
    arrays = spell_out(pack.rows, seq_len=pipeline.seq_len, pad_id=pipeline.pad_id)
    tokens, labels = arrays.tokens.tolist(), arrays.labels.tolist()
    segments: list[Segment] = []
    first_row = 0
    for index, origin in enumerate(pack.provenance):
        is_last = index == len(pack.provenance) - 1
        goes_on = is_last and _goes_on(pipeline, pack, origin)
        row = first_row + origin.length - 1
        following = None if is_last else tokens[row + 1]
        label = labels[row]
        edge = Edge(
            row=row,
            input=tokens[row],
            input_text=pieces.name(tokens[row]),
            label=label,
            label_text="" if label == IGNORE_INDEX else pieces.name(label),
            masked=label == IGNORE_INDEX,
            reason=(reason := _reason(pipeline, label, following, goes_on=goes_on)),
            is_own=reason in _OWN,
        )
        segments.append(_segment(index + 1, origin, first_row, goes_on, edge))
        first_row = row + 1
    return View(
        global_pack=number,
        lane=number % num_lanes,
        lane_pack=number // num_lanes,
        source=source,
        num_tokens=arrays.num_tokens,
        num_targets=arrays.num_targets,
        num_masked=arrays.num_tokens - arrays.num_targets,
        num_padding=pipeline.seq_len - arrays.num_tokens,
        tokens=tokens,
        labels=labels,
        position_ids=arrays.position_ids.tolist(),
        segment_ids=arrays.segment_ids.tolist(),
        pieces=pieces.of(tokens),
        segments=segments,
    )


def _goes_on(pipeline: Pipeline, pack: LanePack, last: Provenance) -> bool:
    """Whether the document of a pack's last segment goes on in another pack."""
    if not pipeline.packing.has_windows:
        return pack.rows.next_row > 0
    # A piece that is cut off a document is a pack of its own. Not all rows may be targets, so this may miss one.
    num_rows = last.targets + (pipeline.boundary is BoundaryPolicy.MASK)
    is_split = pipeline.packing.overflow is Overflow.SPLIT and last.length == pipeline.seq_len
    return is_split and last.row + last.length < num_rows


def _segment(document: int, source: Provenance, first_row: int, goes_on: bool, edge: Edge) -> Segment:
    return Segment(
        document=document,
        url=source.url,
        key=source.key,
        sample=source.sample,
        record=source.record,
        part=source.part,
        first_row=first_row,
        num_rows=source.length,
        document_row=source.row,
        goes_on=goes_on,
        edge=edge,
    )


def _reason(pipeline: Pipeline, label: int, following: int | None, *, goes_on: bool) -> str:
    """Why a segment's last row has its label; `following` is the first token of the next segment."""
    if label == IGNORE_INDEX:
        return "masked: no lookahead" if goes_on and not pipeline.packing.lookahead else "masked"
    if goes_on:
        return _NEXT
    if pipeline.boundary is BoundaryPolicy.TRIM:
        return _LAST
    if isinstance(pipeline.boundary, ReplaceBoundary) and label == pipeline.boundary.token_id:
        return "replaced"
    if pipeline.boundary is not BoundaryPolicy.MASK and following in (None, label):
        return "the next document's first token"
    return _CUT_OFF
