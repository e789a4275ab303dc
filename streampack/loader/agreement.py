"""What the ranks do together before the first batch, and for one state of all: listing, comparing, joining.

In:    this rank's dataset and arguments; its state.
Out:   the same shard list on every rank; the state of all ranks; or an error on every rank, so that no rank waits for
       one that has failed.
"""

from collections.abc import Mapping, Sequence

from streampack.corpus.partition import check_ranks, rank_lanes
from streampack.corpus.table import ShardTable
from streampack.dataset.dataset import PackedDataset
from streampack.errors import ConfigError, TopologyError
from streampack.ranks.exchange import Exchange, RankExchanges
from streampack.ranks.topology import has_process_group
from streampack.state.checkpoint import State, from_json, merge_state_dicts, to_json
from streampack.state.fingerprint import describe_differences


class SharedRun:
    """The run that the data-parallel ranks share: the same shards and arguments, and to each rank its lanes."""

    def __init__(self, dataset: PackedDataset, exchanges: RankExchanges, in_step: Mapping[str, object]) -> None:
        """`in_step`: arguments that are not in the fingerprint, and without which the ranks would not stay in step."""
        self._dataset = dataset
        self._exchanges = exchanges
        self._in_step = in_step
        self.ranks: Exchange | None = None
        """For the end of finite passes; None where there are no other ranks, or none that this rank can reach."""

    def join(self) -> None:
        """List the shards once for all ranks, and make sure that all were given the same. A collective, once.

        After an error the next call does it again. A rank that can reach no others lists by itself.

        Raises:
            ConfigError: on every rank, where the ranks' arguments differ or rank 0 cannot list the shards.
            TopologyError: a finite run on several ranks that cannot reach each other.
        """
        if self.ranks is not None:
            return
        dataset, topology = self._dataset, self._exchanges.join()
        if topology.size == 1 or self._exchanges.are_unknown:
            dataset.list_shards()
        elif has_process_group():
            ranks = self._exchanges.data_parallel()
            _share_shards(dataset, ranks, rank=topology.rank)
            _check_same(ranks.all_gather({**dataset.fingerprint(), **self._in_step}))
            self.ranks = ranks
        elif dataset.epochs is None:
            dataset.list_shards()
        else:
            raise TopologyError(
                f"a finite run (epochs={dataset.epochs}) on {topology.size} ranks must agree on its end: call "
                "torch.distributed.init_process_group first, or give dp_rank and dp_size by hand (then ranks may end "
                "at different batches)"
            )

    def lanes(self, num_lanes: int) -> range:
        """This rank's lanes out of so many; raises a `TopologyError` where the ranks do not divide them."""
        topology = self._exchanges.topology
        check_ranks(num_lanes=num_lanes, num_ranks=topology.size)
        return rank_lanes(topology.rank, topology.size, num_lanes)

    def arguments(self, num_lanes: int) -> dict[str, object]:
        """All arguments that must be equal on all ranks, by name; plain JSON values."""
        return {**self._dataset.fingerprint(), "num_lanes": num_lanes, **self._in_step}


def _share_shards(dataset: PackedDataset, ranks: Exchange, *, rank: int) -> None:
    """Give every rank the shard list of rank 0. If rank 0 fails, all ranks do."""
    asked = ranks.all_gather(dataset.data_digest())
    odd = [other for other, digest in enumerate(asked) if digest != asked[0]]
    if odd:
        raise ConfigError(
            f"data differs between ranks: ranks {odd} were given other shards than rank 0; give all ranks the same data"
        )
    table, error = b"", None
    if rank == 0:
        try:
            table = dataset.list_shards().to_bytes()
        except Exception as failure:  # noqa: BLE001 (raised below, once the others know)
            error = failure
    table, message = ranks.broadcast((table, None if error is None else str(error)))
    if error is not None:
        raise error
    if message is not None:
        raise ConfigError(f"rank 0 could not list the shards: {message}")
    dataset.adopt_shards(ShardTable.from_bytes(table))


def _check_same(fingerprints: Sequence[Mapping[str, object]]) -> None:
    for other, fingerprint in enumerate(fingerprints):
        differences = describe_differences(
            fingerprints[0], fingerprint, saved_where="on rank 0", now_where=f"on rank {other}", advise=False
        )
        if differences:
            raise ConfigError("the ranks were given different arguments: " + "; ".join(differences))


def join_states(state: State, ranks: Exchange) -> State:
    """The state with the lanes of all ranks, on every rank; a collective.

    Raises:
        StateError: on every rank, if the ranks are at different steps.
    """
    return merge_state_dicts(from_json(text) for text in ranks.all_gather(to_json(state)))
