"""What the ranks of a job do together: one listing of the shards, the same arguments everywhere, one state of all."""

from collections.abc import Mapping

from streampack.corpus.table import ShardTable
from streampack.dataset.dataset import PackedDataset
from streampack.errors import ConfigError
from streampack.ranks.topology import Peers
from streampack.state.checkpoint import State, from_json, merge_state_dicts, to_json
from streampack.state.fingerprint import describe_differences


def share_dataset(dataset: PackedDataset, peers: Peers, *, rank: int, in_step: Mapping[str, object]) -> None:
    """Give every rank the shard list of rank 0, and make sure that all were asked for the same; a collective.

    `in_step`: arguments that are no part of the fingerprint, and without which the ranks would not end together.

    Raises:
        ConfigError: on every rank, where the ranks' arguments differ or rank 0 cannot list the shards.
    """
    asked = peers.all_gather(dataset.data_digest())
    odd = [other for other, digest in enumerate(asked) if digest != asked[0]]
    if odd:
        raise ConfigError(f"data differs between ranks: ranks {odd} were given other shards than rank 0")
    dataset.adopt_shards(_list_once(dataset, peers, rank=rank))
    fingerprints = peers.all_gather({**dataset.fingerprint(), **in_step})
    for other, fingerprint in enumerate(fingerprints):
        differences = describe_differences(
            fingerprints[0], fingerprint, saved_where="on rank 0", now_where=f"on rank {other}", advise=False
        )
        if differences:
            raise ConfigError("the ranks were given different arguments: " + "; ".join(differences))


def join_states(state: State, peers: Peers) -> State:
    """The state with the lanes of all ranks, on every rank; a collective.

    Raises:
        StateError: on every rank, where they stand at different steps.
    """
    return merge_state_dicts(from_json(text) for text in peers.all_gather(to_json(state)))


def _list_once(dataset: PackedDataset, peers: Peers, *, rank: int) -> ShardTable:
    """Rank 0's shard list. Its failure is every rank's: nobody may wait for a list that never comes."""
    table, error = b"", None
    if rank == 0:
        try:
            table = dataset.list_shards().to_bytes()
        except Exception as failure:  # noqa: BLE001 (raised below, once the others know)
            error = failure
    table, message = peers.broadcast((table, None if error is None else str(error)))
    if error is not None:
        raise error
    if message is not None:
        raise ConfigError(f"rank 0 could not list the shards: {message}")
    return ShardTable.from_bytes(table)
