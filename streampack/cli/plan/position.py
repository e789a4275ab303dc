"""Where a run is, by one of its checkpoints.

In:  the replay of a run from a state, and what samples say of the sources.
Out: a record for the terminal, for JSON and for the page.
"""

from collections.abc import Mapping
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
    """Of each source: its tokens that were handed out over those of an epoch, estimated."""


def position_of(replay: Replay, epoch_tokens: Mapping[str, int], *, global_batch: int) -> RunPosition | None:
    """Where the replay begins; None: it begins with the run. `epoch_tokens`: by source, estimated."""
    found = replay.progress()
    if found is None:
        return None
    return RunPosition(
        packs=found["packs"],
        step=step_of(replay.run.schedule, found["packs"], global_batch=global_batch),
        tokens=found["tokens"],
        stage=found["stage"],
        share=found["share"],
        epochs={name: tokens / max(epoch_tokens[name], 1) for name, tokens in replay.tokens().items()},
    )
