"""What each stage of a run gives: its first pack and step, and of each source packs, tokens and epochs.

In:  the run, a topology, and what samples say of the sources.
Out: records for the terminal and for JSON.
Invariants: packs, steps and tokens (as packs x seq_len) are those of the run; rows that hold a token and epochs are
estimated. An endless last stage has a share of each source, and no numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from streampack.cli.plan.deviations import Deviations, deviations
from streampack.cli.plan.measured import Density
from streampack.corpus.schedule import Schedule
from streampack.lanes.run import Run

_LOOKED_AT = 1 << 20
"""Packs, over all stages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOfStage:
    """What a stage gives of a source."""

    share: float
    """Of the packs."""
    packs: int | None
    """None, here and below: the stage has no end."""
    tokens: int | None
    """Rows of these packs that hold a token, estimated."""
    epochs: float | None
    """Estimated."""
    epochs_by_end: float | None
    """From the begin of the run to the end of the stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage."""

    first_pack: int
    first_step: int
    """The batch of each rank that the first pack comes in; it may begin with packs of the stage before."""
    first_tokens: int
    """Tokens of the run before it, as packs x seq_len."""
    seq_len: int
    packs: int | None
    """None: the stage has no end."""
    steps: int | None
    tokens: int | None
    """As packs x seq_len."""
    sources: dict[str, SourceOfStage]
    deviations: Deviations | None
    """From the shares, in its first packs; None with one source."""


def stage_plans(
    run: Run, densities: Mapping[str, Density], epoch_tokens: Mapping[str, int], *, global_batch: int
) -> list[StagePlan]:
    """The stages of a run, in order.

    Args:
        run: what is planned.
        densities: by source; how full its packs are, in the first stage.
        epoch_tokens: by source; tokens of an epoch, estimated.
        global_batch: packs of all ranks' batches.
    """
    schedule = run.schedule
    ends = [stage.first_pack for stage in schedule.stages[1:]]
    fill = {name: density.tokens_per_pack / schedule.stages[0].seq_len for name, density in densities.items()}
    done = dict.fromkeys(densities, 0.0)
    plans = []
    for stage, until in zip(schedule.stages, [*ends, None], strict=True):
        end = schedule.end if until is None else until if schedule.end is None else min(until, schedule.end)
        packs = None if end is None else max(end - stage.first_pack, 0)
        sources = {}
        for index, _ in stage.shares.weights:
            name, share = run.sources[index].name, stage.shares.share(index)
            tokens = epochs = None
            if packs is not None:
                tokens = round(packs * share * stage.seq_len * fill[name])
                epochs = tokens / max(epoch_tokens[name], 1)
                done[name] += epochs
            sources[name] = SourceOfStage(
                share=share,
                packs=None if packs is None else round(packs * share),
                tokens=tokens,
                epochs=epochs,
                epochs_by_end=None if packs is None else done[name],
            )
        most = _LOOKED_AT // len(schedule.stages)
        looked_at = most if packs is None else min(packs, most)
        is_mix = len(stage.shares.weights) > 1 and looked_at >= schedule.num_lanes
        first_step = step_of(schedule, stage.first_pack, global_batch=global_batch)
        plans.append(
            StagePlan(
                first_pack=stage.first_pack,
                first_step=first_step,
                first_tokens=stage.first_tokens,
                seq_len=stage.seq_len,
                packs=packs,
                steps=None if end is None else step_of(schedule, end, global_batch=global_batch) - first_step,
                tokens=None if packs is None else packs * stage.seq_len,
                sources=sources,
                deviations=deviations(stage.shares, schedule.num_lanes, looked_at) if is_mix else None,
            )
        )
    return plans


def step_of(schedule: Schedule, pack: int, *, global_batch: int) -> int:
    """The batch of each rank that a pack comes in; of the end of the run the number of batches."""
    steps = begin = 0
    while (cut := schedule.next_length(begin)) is not None and cut <= pack:
        steps, begin = steps - (begin - cut) // global_batch, cut  # the last one may be short
    left = pack - begin
    return steps + (-(-left // global_batch) if pack == schedule.end else left // global_batch)
