"""Whether the lanes of a run can continue at their cursors.

In:  the cursors of a state, and the run that loads it. Out: nothing, or a `StateError`.
"""

import operator
from collections.abc import Iterator, Sequence

from streampack.corpus.schedule import StageOfRun
from streampack.errors import StateError
from streampack.lanes.position import NUM_CURSOR
from streampack.lanes.run import Run, RunSource, named
from streampack.records import Cursor
from streampack.state.checkpoint import Committed
from streampack.state.fingerprint import PLACING
from streampack.state.stages import cut_of

_STAGE = Cursor._fields.index("stage")


def check_cursor(cursor: Cursor, source: RunSource, lane: int) -> None:
    """Raise `StateError` where a lane of this run cannot continue at the cursor: the state is damaged."""
    windows = [stage for stage, pipeline in enumerate(source.pipelines) if pipeline.packing.has_windows]
    is_wrong = any(map(operator.lt, cursor, Cursor()))
    if cursor.given:
        is_wrong = is_wrong or cursor.stage not in windows or cursor.until <= cursor.epoch
    else:
        is_wrong = is_wrong or any(cursor[_STAGE:])
    if not is_wrong and cursor.piece:
        is_wrong = cursor.piece > source.corpus.num_pieces(cursor.epoch, lane)
    if is_wrong:
        raise StateError(f"lane {lane} continues at {cursor}, which is no place in this run: the state is damaged")


def _cursors(committed: Committed, run: Run) -> Iterator[tuple[int, RunSource, Cursor]]:
    """(lane, source, cursor) of all lanes and the sources that the run names."""
    of_lanes = committed.rows[:, :NUM_CURSOR].reshape(len(committed.lanes), len(committed.sources), NUM_CURSOR).tolist()
    for lane, of_lane in zip(committed.lanes, of_lanes, strict=True):
        for source, cursor in zip(run.sources, of_lane, strict=False):
            yield lane, source, Cursor(*cursor)


def check_cursors(committed: Committed, run: Run) -> None:
    """Raise `StateError` where a lane cannot continue: the state is damaged."""
    for lane, source, cursor in _cursors(committed, run):
        check_cursor(cursor, source, lane)


def check_windows(committed: Committed, run: Run, saved: Sequence[StageOfRun], now: Sequence[StageOfRun]) -> None:
    """Raise `StateError` where a lane is inside a packing window whose packs would hold other documents now.

    Args:
        committed: where the lanes are.
        run: as it continues from there.
        saved: the stages that have begun, as the state has them.
        now: the same stages in this run, which may differ in what `load_state_dict` was told to allow.
    """
    for lane, source, cursor in _cursors(committed, run):
        later = source.corpus.sections(cursor.epoch, lane) if source.corpus.is_left(cursor.epoch) else ()
        cursors = [cursor, *(section.begin for section in later if section.begin > cursor)]
        for each in cursors:
            if not each.given or each.stage >= len(saved) or source.name not in now[each.stage].described["weights"]:
                continue  # the second is a damaged state, which `check_cursors` tells
            before, after = (cut_of(stages[each.stage].described, source.name) for stages in (saved, now))
            if changed := [field for field in PLACING if before.get(field) != after.get(field)]:
                raise StateError(
                    f"{named(lane, source.name)} is inside a packing window of best_fit, {each.given} packs of which "
                    f"are out, and {', '.join(changed)} of this run would place the window's documents in other packs: "
                    "some would come twice and others never. Continue with the checkpoint's values. From here on they "
                    f"may change by a stage: Stage(at_packs={committed.global_pack}, ...)"
                )
