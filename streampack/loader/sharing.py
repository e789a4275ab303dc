"""The same shards and arguments on all ranks: rank 0 lists for all, and each compares.

In:    this rank's dataset, and the exchange with the others.
Out:   the same shard tables on every rank, in the order of the sources; or an error on every rank.
Never: a rank that waits for one that has failed.
"""

import hashlib
import secrets
from collections.abc import Mapping

import msgspec

from streampack.corpus.table import ShardTable
from streampack.dataset.dataset import PackedDataset
from streampack.errors import ConfigError, TopologyError
from streampack.ranks.exchange import Exchange
from streampack.state.fingerprint import describe_differences


def share_shards(dataset: PackedDataset, ranks: Exchange, *, rank: int, size: int) -> str:
    """Give every rank the shard list of rank 0, and a name of their run. If rank 0 fails, all ranks do."""
    asked = ranks.all_gather((dataset.data_digest(), rank, size))
    wrong = [
        f"rank {other} of the group was given dp_rank={its_rank}, dp_size={its_size}"
        for other, (_, its_rank, its_size) in enumerate(asked)
        if (its_rank, its_size) != (other, len(asked))
    ]
    if wrong:
        raise TopologyError(
            f"dp_rank must be the rank in the group of the {len(asked)} data-parallel ranks, and dp_size its size: "
            f"{'; '.join(wrong[:8])}. Leave dp_rank and dp_size out, or give the ranks of the group in its order."
        )
    odd = [other for other, (digest, *_) in enumerate(asked) if digest != asked[0][0]]
    if odd:
        raise ConfigError(
            f"data differs between ranks: ranks {odd} were given other shards than rank 0; give all ranks the same data"
        )
    tables, error = [b""], None
    if rank == 0:
        try:
            tables = [table.to_bytes() for table in dataset.tables()]
        except Exception as failure:  # noqa: BLE001 (raised below, once the others know)
            error = failure
    name: str
    tables, message, name = ranks.broadcast((tables, None if error is None else str(error), secrets.token_hex(8)))
    if error is not None:
        raise error
    if message is not None:
        raise ConfigError(f"rank 0 could not list the shards: {message}")
    dataset.adopt_tables([ShardTable.from_bytes(table) for table in tables])
    return name


def compare_arguments(arguments: Mapping[str, object], ranks: Exchange) -> None:
    """Raise a `ConfigError` on every rank that names what differs between their arguments; a collective.

    The arguments themselves, some kilobytes of each rank, are exchanged only where their digests differ.
    """
    digest = hashlib.blake2b(msgspec.msgpack.encode(arguments), digest_size=8).digest()
    digests = ranks.all_gather_ints([int.from_bytes(digest, signed=True)])
    if digests.count(digests[0]) == len(digests):
        return
    first, *others = ranks.all_gather(arguments)
    for other, its_arguments in enumerate(others, 1):
        differences = describe_differences(
            first, its_arguments, saved_where="on rank 0", now_where=f"on rank {other}", advise=False
        )
        if differences:
            raise ConfigError("the ranks were given different arguments: " + "; ".join(differences))
