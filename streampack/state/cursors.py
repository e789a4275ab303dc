"""Whether a lane of a run can continue at a cursor.

In: a cursor from a state, and the source that it is of. Out: nothing, or a `StateError`.
"""

import operator

from streampack.errors import StateError
from streampack.lanes.run import RunSource
from streampack.records import Cursor


def check_cursor(cursor: Cursor, source: RunSource, lane: int) -> None:
    """Raise `StateError` where a lane of this run cannot continue at the cursor: the state is damaged."""
    windows = [stage for stage, pipeline in enumerate(source.pipelines) if pipeline.packing.has_windows]
    is_wrong = any(map(operator.lt, cursor, Cursor()))
    if cursor.given:
        is_wrong = is_wrong or cursor.stage not in windows or cursor.until <= cursor.epoch
    else:
        is_wrong = is_wrong or cursor.stage + cursor.rest + cursor.until > 0
    if not is_wrong and cursor.piece:
        is_wrong = cursor.piece > len(source.corpus.pieces(cursor.epoch, lane))
    if is_wrong:
        raise StateError(f"lane {lane} continues at {cursor}, which is no place in this run: the state is damaged")
