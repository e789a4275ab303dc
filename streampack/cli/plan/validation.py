"""What a validation set comes to: packs and batches of one iteration over it.

In:  the run of a dataset with HoldOut("val", ...), what samples say of its sources, and a topology.
Out: a record for the terminal and for JSON.
Invariants: it has no stages and no state, and any number of ranks fits. Its packs are estimated.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from streampack.cli.plan.measured import Density
from streampack.lanes.run import Run
from streampack.loader.counting import active_sources
from streampack.loader.parts import held_out_bytes, parts
from streampack.loader.steps import num_batches


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationPlan:
    """What each iteration over a validation set gives; all numbers of packs and batches are estimated."""

    ranks: int
    batch_size: int
    packs_of_set: int
    packs: int
    """At most those of a budget."""
    packs_of_sources: dict[str, int]
    """What each source gives of them."""
    batches: int
    """Of each rank."""


def validation_plan(
    run: Run,
    densities: Mapping[str, Density],
    epoch_tokens: Mapping[str, int],
    *,
    ranks: int,
    batch_size: int,
    drop_last: bool,
) -> ValidationPlan:
    """What each iteration gives on so many ranks; densities and tokens of an epoch are by source, as for stages."""
    sources = [run.sources[index] for index in active_sources(run)]
    found = [math.ceil(epoch_tokens[each.name] / densities[each.name].tokens_per_pack) for each in sources]
    most = sum(found) if run.schedule.end is None else run.schedule.end
    given = parts(most, [held_out_bytes(each) for each in sources], found)
    return ValidationPlan(
        ranks=ranks,
        batch_size=batch_size,
        packs_of_set=sum(found),
        packs=sum(given),
        packs_of_sources={each.name: packs for each, packs in zip(sources, given, strict=True)},
        batches=num_batches(sum(given), num_ranks=ranks, batch_size=batch_size, drop_last=drop_last),
    )
