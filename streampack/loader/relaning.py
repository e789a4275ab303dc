"""A saved run in another number of lanes.

In:    the state of a loader, with all lanes, and the dataset of the run.
Out:   a state at the same global pack, for the same dataset with that number of lanes.
Never: a pack before that one that would be another now; a state that no loader can go on from.
"""

import os
from collections.abc import Mapping
from typing import Any

from streampack.corpus.epochs import Corpus
from streampack.dataset.dataset import PackedDataset
from streampack.dataset.shardlist import most_lanes
from streampack.errors import ConfigError, StateError, as_integer
from streampack.lanes.budget import worker_bytes
from streampack.lanes.run import Continued, Run
from streampack.loader.agreement import SharedRun
from streampack.ranks.exchange import RankExchanges
from streampack.ranks.topology import Topology
from streampack.state.checkpoint import Committed, State, check_versions
from streampack.state.fingerprint import fingerprint_of
from streampack.state.reading import read_state
from streampack.state.relaning import relaned
from streampack.state.stages import check_future
from streampack.tokenizers.libraries import libraries_of


def relane(state: Mapping[str, Any] | str | os.PathLike[str], dataset: PackedDataset, num_lanes: int) -> State:
    """The state of a run with another number of lanes, so that it goes on with other ranks or with more of them.

    What the lanes have left of the epochs that they have begun is divided among the new lanes: no document is lost or
    comes twice, and what was skipped stays out. The packs from here on are the same on every number of ranks and
    workers that fits the new lanes. Load the state with the same dataset and `num_lanes=` the new number, or "auto".

    Args:
        state: of a loader, with the lanes of all ranks: a dict (of `whole_state=True`, of `merge_state_dicts`, or as
            plain JSON), or the path of a checkpoint or a file that has one.
        dataset: of the run, with all of its sources. Its own `num_lanes` does not count.
        num_lanes: how many lanes the run has from here on, at least 1, and another number than before.

    Returns:
        A state of all lanes, of plain values and new tensors.

    Raises:
        StateError: the state is of another run, lacks lanes, or has a source that the dataset does not name.
        ConfigError: num_lanes is no whole number of at least 1, or the run cannot go on with so many: it has them
            already, some would never give a pack or have too little memory, or two stages would begin with one round.
    """
    lanes = as_integer(num_lanes, "num_lanes", low=1)
    if not isinstance(dataset, PackedDataset):
        raise ConfigError(f"dataset must be the run's PackedDataset, not {type(dataset).__name__}")
    held = state if isinstance(state, Mapping) else read_state(state)
    check_versions(held)
    if not fingerprint_of(held).get("lookahead", True):
        dataset = dataset.without_lookahead()  # as a loader makes it for formats whose models shift the labels
    alone = SharedRun(dataset, RankExchanges(Topology(by_hand=True), None), {})
    committed = alone.load(held, any_lanes=True)
    if lanes == committed.num_lanes:
        raise ConfigError(f"the state has {lanes:,} lanes already: load it as it is, there is nothing to divide")
    before = alone.run_of(committed)
    _check_fed(before, len(committed.begun), lanes)
    worker_bytes(dataset.limits.buffer_bytes, _continued(dataset, committed, before, lanes), num_lanes=1)
    made = relaned(committed, before, lanes)
    return made.to_state(dataset.fingerprint(lanes), libraries_of(dataset.pipeline.tokenizer))


def _continued(dataset: PackedDataset, committed: Committed, before: Run, num_lanes: int) -> Run:
    """The run from here on, without what earlier lanes have left.

    Raises:
        ConfigError: two stages would begin with one round of so many lanes; it names the nearest numbers that fit.
    """
    num_begun = len(committed.begun)

    def in_lanes(number: int) -> Run:
        dataset.run(number)  # as the dataset that loads the state is made before it knows of one
        run = dataset.run(number, Continued(committed.begun, committed.first_epoch, committed.global_pack))
        check_future(run.schedule, num_begun, committed.global_pack)
        return run

    def fits(number: int) -> bool:
        try:
            in_lanes(number)
            _check_fed(before, num_begun, number)
        except (ConfigError, StateError):
            return False
        return True

    try:
        return in_lanes(num_lanes)
    except (ConfigError, StateError) as error:
        below = next((number for number in range(num_lanes - 1, 0, -1) if fits(number)), None)
        above = next((number for number in range(num_lanes + 1, 2 * num_lanes) if fits(number)), None)
        nearest = " or ".join(f"{number:,}" for number in (below, above) if number is not None)
        raise ConfigError(
            f"the run cannot go on in {num_lanes:,} lanes from global pack {committed.global_pack:,}: {error.message}. "
            f"The nearest numbers of lanes that fit: {nearest or 'none'}"
        ) from error


def _check_fed(run: Run, num_begun: int, num_lanes: int) -> None:
    """Raise `ConfigError` where some lanes would never give a pack: of an endless source, or of any source."""
    stages = run.schedule.stages[max(num_begun - 1, 0) :]
    still = sorted({source for stage in stages for source, _ in stage.shares.weights})
    fed = {index: _most(run.sources[index].corpus.of_lanes(num_lanes)) for index in still}
    endless = [index for index in still if run.sources[index].end_epoch is None]
    which = min(endless, key=fed.__getitem__) if endless else max(still, key=fed.__getitem__)
    if fed[which] < num_lanes:
        named = f"source {run.sources[which].name!r}" if len(run.sources) > 1 else "the data"
        raise ConfigError(
            f"num_lanes={num_lanes:,} is more than {named} can feed: it has {fed[which]:,} of the smallest blocks (a "
            "shard that is read whole is one), and the other lanes would never give a pack. Use at most so many lanes"
        )


def _most(corpus: Corpus) -> int:
    """How many lanes each have a block."""
    return most_lanes(corpus.parts) if corpus.num_blocks is None else corpus.num_blocks
