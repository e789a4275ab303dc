"""The stages of a run in its state: those that have begun stay as they were, all others may be edited.

In:    the stages that a state has; those of the run that loads it.
Out:   the begun stages as the run goes on with them.
Never: a pack that was handed out and has another place or length now: `StateError` names the stage and the field.
"""

import json
from collections.abc import Sequence
from typing import Any

from streampack.corpus.schedule import StageOfRun
from streampack.corpus.shares import Shares
from streampack.errors import StateError


def begun(stages: Sequence[StageOfRun], global_pack: int) -> tuple[StageOfRun, ...]:
    """Those stages of which packs have been handed out, where the packs below `global_pack` have been."""
    return tuple(stage for stage in stages if stage.first_pack < global_pack)


def stages_to_json(stages: Sequence[StageOfRun]) -> str:
    """A JSON list of stages."""
    plain = [stage._asdict() for stage in stages]
    return json.dumps([{name: each[name] for name in each if name != "shares"} for each in plain], sort_keys=True)


def stages_from_json(value: Any, sources: Sequence[str]) -> tuple[StageOfRun, ...]:
    """The stages that `stages_to_json` wrote; `sources`: the names behind the indexes of their shares.

    Raises:
        StateError: the value is not what it wrote.
    """
    try:
        return tuple(_from_plain(plain, sources) for plain in json.loads(value))
    except (TypeError, ValueError, KeyError, IndexError, ZeroDivisionError) as error:
        raise StateError(f"stages is {value!r:.80}, not a JSON list of stages: the state is damaged") from error


def _from_plain(plain: dict[str, Any], sources: Sequence[str]) -> StageOfRun:
    weights = plain["described"]["weights"]
    shares = Shares.of([weights.get(name, 0) for name in sources])
    return StageOfRun(**{**plain, "shares": shares})
