"""The rank that a dataset was made for: errors where it is read as another one.

In:    the rank that was known when the dataset was made, and the one of now.
Out:   nothing, or an error that says what to do.
"""

from streampack.errors import TopologyError
from streampack.ranks import topology


def check_same(mine: topology.Topology, other: topology.Topology) -> None:
    """Refuse a loader of another rank than the dataset was made for by hand."""
    if mine.by_hand and (other.rank, other.size) != (mine.rank, mine.size):
        raise TopologyError(
            f"the dataset was made by for_rank({mine.rank}, {mine.size}), the loader is rank {other.rank} of "
            f"{other.size}: give the loader the dataset itself"
        )


def check_unchanged(mine: topology.Topology) -> None:
    """Refuse ranks that were resolved before torch.distributed knew them."""
    if mine.by_hand or not topology.has_process_group():
        return
    now = topology.resolve()
    if (now.rank, now.size) != (mine.rank, mine.size):
        raise TopologyError(
            f"the dataset was made as rank {mine.rank} of {mine.size}, and torch.distributed now says rank {now.rank} "
            f"of {now.size}: make the dataset after init_process_group, or iterate over dataset.for_rank(rank, size)"
        )
