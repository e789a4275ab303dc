"""A saved run in another number of lanes.

In:    the state of a loader, with all lanes, and the dataset of the run.
Out:   a state at the same global pack, for the same dataset with that number of lanes.
Never: a pack before that one that would be another now.
"""

import os
from collections.abc import Mapping
from typing import Any

from streampack.dataset.dataset import PackedDataset
from streampack.errors import as_integer
from streampack.loader.agreement import SharedRun
from streampack.ranks.exchange import RankExchanges
from streampack.ranks.topology import Topology
from streampack.state.checkpoint import State, check_versions
from streampack.state.fingerprint import fingerprint_of
from streampack.state.reading import read_state
from streampack.state.relaning import relaned
from streampack.tokenizers.libraries import libraries_of


def relane(
    state: Mapping[str, Any] | str | os.PathLike[str], dataset: PackedDataset, num_lanes: int
) -> State:
    """The state of a run with another number of lanes, so that it goes on with other ranks or with more of them.

    What the lanes have left of the epochs that they have begun is divided among the new lanes: no document is lost or
    comes twice, and what was skipped stays out. The packs from here on are the same on every number of ranks and
    workers that fits the new lanes. Load the state with the same dataset and `num_lanes=` the new number, or "auto".

    Args:
        state: of a loader, with the lanes of all ranks: a dict (of `whole_state=True`, of `merge_state_dicts`, or as
            plain JSON), or the path of a checkpoint or a file that has one.
        dataset: of the run, with all of its sources. Its own `num_lanes` does not count.
        num_lanes: how many lanes the run has from here on, at least 1.

    Returns:
        A state of all lanes, of plain values and new tensors.

    Raises:
        StateError: the state is of another run, lacks lanes, or has a source that the dataset does not name.
        ConfigError: num_lanes is no whole number of at least 1.
    """
    lanes = as_integer(num_lanes, "num_lanes", low=1)
    held = state if isinstance(state, Mapping) else read_state(state)
    check_versions(held)
    if not fingerprint_of(held).get("lookahead", True):
        dataset = dataset.without_lookahead()  # as a loader makes it for formats whose models shift the labels
    alone = SharedRun(dataset, RankExchanges(Topology(by_hand=True), None), {})
    committed = alone.load(held, any_lanes=True)
    made = relaned(committed, alone.run_of(committed), lanes)
    return made.to_state(dataset.fingerprint(lanes), libraries_of(dataset.pipeline.tokenizer))
