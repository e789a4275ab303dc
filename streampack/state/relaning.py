"""Another number of lanes for a run that has begun.

In:    the committed rows of all lanes, and the run as it continues from them.
Out:   rows of so many other lanes at the same global pack, with what the lanes have left of the epochs they have begun.
Never: a row of a document that is lost or comes twice; a count of the whole run that changes.

    old lanes stand at      epoch 2, 3, 2           so 3 is the last epoch that one has begun
    left                    rest of 2, rest of 3, rest of 2, and all of 3 that the lanes in epoch 2 have not begun
    new lanes               read that as their epoch 3, then their shares of the epochs from 4 on

What was counted is the run's, and no lane's: it goes to lane 0. Packs are dealt out so that each lane has given as many
as global packs below this one are its own.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack.corpus.epochs import Corpus
from streampack.corpus.leftovers import Leftover, Leftovers
from streampack.corpus.partition import packs_before
from streampack.errors import StateError
from streampack.lanes.position import NUM_CURSOR, REST_OF_PIECE, SkippedRange
from streampack.lanes.run import Run
from streampack.records import Cursor
from streampack.state.checkpoint import FIELDS, PACKS, Committed

_FILLERS = FIELDS.index("fillers")
_PLAIN = Cursor()[2:]
_SAMPLE = Leftover._fields.index("sample")


class _Found(NamedTuple):
    """A leftover, and what was skipped in it."""

    leftover: Leftover
    skipped: tuple[tuple[int, SkippedRange], ...]
    """(the offset of each, as it was skipped)."""


def relaned(committed: Committed, run: Run, num_lanes: int) -> Committed:
    """The same run at the same global pack in `num_lanes` lanes.

    Args:
        committed: the rows of all lanes.
        run: as it continues from them.
        num_lanes: at least 1.

    Raises:
        StateError: the state has a source that the run does not name.
    """
    if unnamed := [name for name in committed.sources if name not in run.names]:
        raise StateError(
            f"the state has the source {', '.join(map(repr, unnamed))}, which the dataset does not name: what its "
            "lanes have left can be divided only where its shards are known. Name it; a weight of 0 is enough"
        )
    assert len(committed.lanes) == committed.num_lanes, "the lanes of all ranks"
    lanes = range(num_lanes)
    made = Committed.fresh(lanes, num_lanes, committed.sources, committed.begun)
    made.global_pack = made.since = committed.global_pack
    made.first_epoch = committed.first_epoch
    rows = made.rows.reshape(num_lanes, len(made.sources), len(FIELDS))
    rows[..., NUM_CURSOR:] = _numbers(committed, num_lanes)[..., NUM_CURSOR:]
    left: dict[str, Leftovers] = {}
    for index, source in enumerate(run.sources):
        epoch = int(committed.epochs_begun(index).max()) - 1
        found = list(_left_of(committed, index, source.corpus, epoch))
        corpus = source.corpus.of_lanes(num_lanes)
        if found:
            left[source.name] = Leftovers.of(epoch, (each.leftover for each in found))
            corpus = corpus.with_left(left[source.name], lanes)
        for lane in lanes:
            sections = corpus.sections(epoch, lane) if found else []
            rows[lane, index, :NUM_CURSOR] = sections[0].begin if sections else Cursor(epoch + 1)
        for lane, skipped in _skipped(found, corpus, epoch):
            made.skipped_ranges[made.row(lane, index)] += (skipped,)
    made.left = left
    return made


def _left_of(committed: Committed, index: int, corpus: Corpus, last_epoch: int) -> Iterator[_Found]:
    """What all lanes have left of a source, of the epochs up to the last one that was begun; by epoch."""
    by_epoch: dict[int, list[_Found]] = {}
    for lane_index, lane in enumerate(committed.lanes):
        of_lane: list[_Found] = []
        for each in _of_lane(committed, lane_index, lane, index, corpus, last_epoch):
            if each.leftover.joins:
                of_lane.append(each)  # after the one that it joins, which may be of an epoch before
            else:
                of_lane = by_epoch.setdefault(each.leftover.epoch, [])
                of_lane.append(each)
    for epoch in sorted(by_epoch):
        yield from by_epoch[epoch]


def _of_lane(
    committed: Committed, lane_index: int, lane: int, index: int, corpus: Corpus, last_epoch: int
) -> Iterator[_Found]:
    """What one lane has left, in its order."""
    position = committed.position(lane_index, index)
    cursor = position.cursor
    window_end = (cursor.until - 1, cursor.last) if cursor.given else None
    reaches_on = is_chain = False
    for epoch in range(cursor.epoch, last_epoch + 1):
        for section in corpus.sections(epoch, lane):
            if cursor[:2] >= (epoch, section.end):
                continue
            is_here = cursor[:2] >= (epoch, section.base)
            start = cursor if is_here else section.begin
            begin = section.offset(*start[1:3])
            head = max(begin, 0 if is_here else section.head)
            if is_here and start[2:] != _PLAIN:
                head = section.after(*start[1:3])
            joins, reaches_on = reaches_on or (is_chain and section.joins), False
            is_chain = not is_here and (section.begin.given > 0 or (is_chain and section.joins))
            if window_end is not None:
                reaches_on = window_end >= (epoch, section.end)
                head = max(head, section.stop if reaches_on else section.after(cursor.last, cursor.last_sample))
            skipped = []
            for each in position.skipped_ranges:
                if (epoch, section.base) <= each[:2] < (epoch, section.end):
                    is_rest = each.record == REST_OF_PIECE
                    head = max(head, section.after(each.last_piece, -1 if is_rest else each.first))
                    skipped.append((section.offset(each.last_piece, each.first), each))
            if begin < section.stop:
                yield _Found(
                    Leftover(
                        section.num_lanes,
                        section.lane,
                        section.epoch,
                        int(joins),
                        begin,
                        head,
                        section.stop,
                        *start[2 : 2 + len(Leftover._fields) - _SAMPLE],
                    ),
                    tuple(skipped),
                )
            window_end = window_end if reaches_on else None


def _skipped(found: list[_Found], corpus: Corpus, epoch: int) -> Iterator[tuple[int, SkippedRange]]:
    """(new lane, what was skipped) of what the leftovers hold, as the new lanes call it."""
    wanted = {number: each.skipped for number, each in enumerate(found) if each.skipped}
    if not wanted:
        return
    assert corpus.left is not None, "what was skipped is in a leftover"
    for lane in sorted(set(corpus.left.lanes_of(wanted))):
        for section in corpus.sections(epoch, lane):
            for offset, each in wanted.get(section.number, ()):
                if section.offsets[0] <= offset < section.stop:
                    piece, _ = section.at(offset)
                    yield lane, each._replace(epoch=epoch, last_piece=section.last_together(piece))


def _numbers(committed: Committed, num_lanes: int) -> NDArray[np.int64]:
    """int64 [num_lanes, sources, len(FIELDS)]: what was counted."""
    num_sources = len(committed.sources)
    totals = committed.rows.reshape(-1, num_sources, len(FIELDS)).sum(axis=0)
    numbers = np.zeros((num_lanes, num_sources, len(FIELDS)), np.int64)
    numbers[0] = totals
    # Fillers and packs of each source, laid end to end, are dealt out to the lanes in turn.
    due = np.array([packs_before(committed.global_pack, lane, num_lanes) for lane in range(num_lanes)])
    kinds = np.stack([totals[:, _FILLERS], totals[:, PACKS] - totals[:, _FILLERS]], axis=1).ravel()
    ends, lane_ends = np.cumsum(kinds), np.cumsum(due)
    high = np.minimum(lane_ends[:, None], ends[None, :])
    low = np.maximum((lane_ends - due)[:, None], (ends - kinds)[None, :])
    dealt = np.maximum(high - low, 0).reshape(num_lanes, num_sources, 2)
    numbers[..., _FILLERS], numbers[..., PACKS] = dealt[..., 0], dealt.sum(axis=2)
    return numbers
