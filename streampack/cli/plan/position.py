"""Where a run is, by one of its checkpoints.

In:  the replay of a run from a state. Out: a record for the terminal, for JSON and for the page.
"""

from dataclasses import dataclass

from streampack.cli.plan.stages import step_of
from streampack.cli.replay import Replay


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPosition:
    """What has been handed out when the state was saved."""

    packs: int
    """All global packs below this one."""
    step: int
    """The batch of each rank that comes next, with the global batch of the plan."""
    tokens: int
    """As packs x seq_len."""
    stage: int
    share: float | None
    """Of the budget, in tokens; None: there is none."""
    epochs: dict[str, float]
    """Of each source."""


def position_of(replay: Replay, *, global_batch: int) -> RunPosition | None:
    """Where the replay begins; None: it begins with the run."""
    found = replay.progress()
    if found is None:
        return None
    return RunPosition(
        packs=found["packs"],
        step=step_of(replay.run.schedule, found["packs"], global_batch=global_batch),
        tokens=found["tokens"],
        stage=found["stage"],
        share=found["share"],
        epochs=found["epochs"],
    )
