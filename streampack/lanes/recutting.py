"""Windows of best fit that are half out where a later stage cuts rows in another way.

In:    the pipelines of the stage that a window was begun in and of the present one, and where the lane continues.
Out:   a packer that goes on there, and how what it is fed with is read.
"""

import dataclasses

from streampack.documents.excluded import Excluded
from streampack.lanes.pipeline import Pipeline
from streampack.packing.half_out import HalfOut
from streampack.packing.making import AnyPacker
from streampack.packing.options import DEFAULT_WINDOW, PackingKind
from streampack.packing.rest import RestPacker
from streampack.records import Cursor


def is_recut(before: Pipeline, now: Pipeline, cursor: Cursor) -> bool:
    """Whether a lane continues in a window of the pipeline `before` that is cut in another way now."""
    return cursor.given > 0 and (cursor.rest > 0 or _placing(before) != _placing(now))


def packer_at(cursor: Cursor, pipeline: Pipeline, before: Pipeline, *, at_once: int) -> AnyPacker:
    """The packer with which a lane continues at a cursor.

    `before`: the pipeline of the stage `cursor.stage`, where the cursor is in a window.

    The rest of a window is packed by next_fit where best fit is asked for: a window of it could be half out when rows
    are cut in yet another way, and this one would have to be known then, too, and so on.
    """
    if not is_recut(before, pipeline, cursor):
        return pipeline.packer(at_once=at_once, given=cursor.given)
    packing = pipeline.packing
    if packing.has_windows:
        packing = dataclasses.replace(packing, kind=PackingKind.NEXT_FIT, window=DEFAULT_WINDOW)
    return RestPacker(
        HalfOut(before.seq_len, before.boundary, before.packing, cursor.given, cursor.rest),
        seq_len=pipeline.seq_len,
        boundary=pipeline.boundary,
        packing=packing,
        drops=pipeline.on_error == "skip",
        pad_id=pipeline.pad_id,
        bos_id=pipeline.token_ids[0],
        eos_id=pipeline.token_ids[1],
        at_once=at_once,
    )


def as_begun(before: Pipeline, now: Pipeline) -> Pipeline:
    """How the documents of a window are read again: without what was left out when it was begun, and nothing else.

    What is left out only now is placed as it was, and then left out of the rest; where it is bad it is no error.
    """
    if before.excluded is now.excluded or now.excluded is None:
        return now
    then = {} if before.excluded is None else before.excluded.by_shard
    return dataclasses.replace(now, excluded=Excluded(then, "", excused=now.excluded.by_shard))


def _placing(pipeline: Pipeline) -> tuple[object, ...]:
    """What decides which documents are in which pack of a window."""
    packing, excluded = pipeline.packing, pipeline.excluded
    left_out = None if excluded is None else excluded.described
    return pipeline.seq_len, pipeline.boundary, packing.kind, packing.overflow, packing.window, left_out
