"""How far a run has come, and each of its sources: arithmetic on what is committed.

In:    the committed rows of a rank's lanes, and the run.
Out:   the numbers of `loader.progress()`; the epochs of a source; the length of a run that has a budget.
Never: a wait for other ranks or for the storage. What is said of epochs is of this rank's lanes.
"""

from typing import Any

import numpy as np

from streampack.corpus.epochs import Corpus
from streampack.corpus.partition import lane_share
from streampack.corpus.schedule import Schedule
from streampack.dataset.dataset import PackedDataset
from streampack.lanes.position import NUM_CURSOR
from streampack.lanes.run import Run
from streampack.loader.passes import PassSettings
from streampack.records import Cursor
from streampack.state.checkpoint import Committed


def progress_of(committed: Committed, run: Run) -> dict[str, Any]:
    """See `PackedDataLoader.progress`."""
    schedule, packs = run.schedule, committed.global_pack
    return {
        "tokens": schedule.tokens_at(packs),
        "packs": packs,
        "stage": schedule.index_of(packs),
        "epochs": {source.name: epochs_of(committed, index, source.corpus) for index, source in enumerate(run.sources)},
        "share": _share(schedule, packs),
    }


def no_progress(dataset: PackedDataset) -> dict[str, Any]:
    """The same before the run has begun."""
    epochs, has_budget = dict.fromkeys(dataset.sources, 0.0), _has_budget(dataset)
    return {"tokens": 0, "packs": 0, "stage": 0, "epochs": epochs, "share": 0.0 if has_budget else None}


def length(dataset: PackedDataset, settings: PassSettings, schedule: Schedule | None = None) -> int:
    """How many batches each rank has in the whole run; a `TypeError` says why that is not known.

    `schedule`: of a run that has begun.
    """
    if dataset.is_validation:
        raise TypeError("the length of a validation set is known once its first iteration has begun and counted")
    if not _has_budget(dataset):
        why = "its end is found as it is read" if dataset.epochs is not None else "it has no end"
        raise TypeError(
            f"a loader has a length where the run has a budget, and this one has none ({why}): give the dataset "
            "num_tokens or num_packs, or the trainer a number of steps"
        )
    schedule = dataset.schedule() if schedule is None else schedule
    if schedule is None:
        raise TypeError(
            'the length depends on num_lanes="auto", as stages have several seq_len, and is known once the ranks have '
            "listed the shards together: ask for it after iter(loader), which all ranks call, or give num_lanes"
        )
    assert schedule.end is not None, "a budget has an end"
    if (stage := _ends_before(dataset, schedule)) is not None:
        raise TypeError(
            f"the run may end before its budget, as all sources of stage {stage} have max_epochs: leave it out for one "
            'of them, or give exhausted="error", under which the run ends at its budget or with an error'
        )
    return settings.steps(schedule).count(schedule.end)


def _has_budget(dataset: PackedDataset) -> bool:
    arguments = dataset.in_step()
    return arguments["num_tokens"] is not None or arguments["num_packs"] is not None


def _ends_before(dataset: PackedDataset, schedule: Schedule) -> int | None:
    """The last stage of the run, if all its sources may be exhausted before its end."""
    if dataset.in_step()["exhausted"] == "error":
        return None
    ends = {index for index, source in enumerate(dataset.sources.values()) if source.max_epochs is not None}
    stages = schedule.reached()
    return len(stages) - 1 if ends.issuperset(dict(stages[-1].shares.weights)) else None


def _share(schedule: Schedule, packs: int) -> float | None:
    """Of the budget, in tokens."""
    if schedule.end is None:
        return None
    return min(schedule.tokens_at(packs) / max(schedule.tokens_at(schedule.end), 1), 1.0)


def epochs_of(committed: Committed, source: int, corpus: Corpus) -> float:
    """How many epochs of a source the lanes have read, as a mean."""
    cursors = committed.rows[source :: len(committed.sources), :NUM_CURSOR]
    num_lanes, lanes, left = len(committed.lanes), np.array(committed.lanes), 0.0
    if corpus.left is not None and (is_left := cursors[:, 0] <= corpus.left.epoch).any():
        there = zip(lanes[is_left].tolist(), cursors[is_left].tolist(), strict=True)
        left = sum(corpus.left.epoch + 1 - _unread(Cursor(*cursor), corpus, lane) for lane, cursor in there)
        lanes, cursors = lanes[~is_left], cursors[~is_left]
    if corpus.num_blocks is not None:
        begins, ends = lane_share(lanes, corpus.num_lanes, corpus.num_blocks)
        read = float((cursors[:, 0] + np.minimum(cursors[:, 1] / np.maximum(ends - begins, 1), 1)).sum())
    else:
        of_lanes = zip(lanes.tolist(), cursors.tolist(), strict=True)
        read = sum(_read(Cursor(*cursor), corpus, lane) for lane, cursor in of_lanes)
    return max((left + read) / num_lanes, 0.0)


def _unread(cursor: Cursor, corpus: Corpus, lane: int) -> float:
    """What a lane has left of the leftovers of earlier lanes, in epochs of a lane."""
    left = 0.0
    for section in corpus.sections(cursor.epoch, lane):
        if cursor.piece < section.end:
            begin = section.offset(*cursor[1:3]) if cursor.piece >= section.base else section.offsets[0]
            left += (section.stop - begin) / max(corpus.of_lanes(section.num_lanes).num_offsets, 1)
    return left * corpus.num_lanes


def exhausted_lanes(committed: Committed, source: int, max_epochs: int | None) -> int:
    """In how many lanes a source is exhausted."""
    epochs = committed.rows[source :: len(committed.sources), 0]
    return 0 if max_epochs is None else int((epochs >= max_epochs).sum())


def _read(cursor: Cursor, corpus: Corpus, lane: int) -> float:
    """How many epochs one lane has read: whole ones, and of the present one the bytes that are done."""
    if cursor == Cursor(epoch=cursor.epoch):
        return cursor.epoch
    pieces = corpus.pieces(cursor.epoch, lane)
    sizes = [piece.end - piece.begin for piece in pieces]
    done = sum(sizes[: cursor.piece])
    if cursor.piece < len(pieces) and not pieces[cursor.piece].whole:
        done += min(max(cursor.sample - pieces[cursor.piece].begin, 0), sizes[cursor.piece])
    return cursor.epoch + done / max(sum(sizes), 1)
