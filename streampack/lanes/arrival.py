"""Whether lanes that a pass leaves before their end would have arrived at the cuts where their ranges end.

In:    where a lane stands when its pass is over.
Out:   nothing, or a `WrongCutError`: the lane to the right of a cut has read what is no sample.
Never: a pass that ends quietly though a cut of it fell into a tar inside a tar.

A lane that reads to its end sees this by itself. With `epoch_end="stop"` the pass ends with the first lane, and what
the others have left is followed here, header by header, from where they stand to the last cut of each.
"""

from streampack.corpus.epochs import Corpus
from streampack.lanes.pieces import by_shard, rest_of
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.position import LanePosition

_RANGE_BYTES = 8 * 2**20


def check_arrival(pipeline: Pipeline, corpus: Corpus, lane: int, position: LanePosition, *, end_epoch: int) -> None:
    """Raise unless the lane arrives, in each epoch before `end_epoch` that it has not ended, where the next one begins.

    Raises:
        WrongCutError: it does not. Damage on the way is not reported: the pass has not come to it.
    """
    cursor = position.cursor
    skipped = by_shard(position.skipped_ranges)
    for epoch in range(cursor.epoch, end_epoch):
        is_here = epoch == cursor.epoch
        sections = corpus.sections(epoch, lane)
        for section, index in [(each, index) for each in sections for index in range(each.base, each.end)]:
            piece = section.pieces[index - section.base]
            known = skipped.get((epoch, piece.shard), ())
            is_followed = bool(known) and rest_of(piece, section.last_together(index), known) is not None
            if is_followed or (is_here and index < cursor.piece):
                continue
            resume = cursor.sample if is_here and index == cursor.piece else -1
            pipeline.check_end(corpus.table[piece.shard], piece, resume=resume, max_range_bytes=_RANGE_BYTES)
