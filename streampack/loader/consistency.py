"""Every few batches (`verify_every`) the ranks of a running job compare what they are about to hand out.

In:    of each rank a few integers about its batch (a `Claim`), over one all-gather.
Out:   nothing, or the same `LoaderError` on every rank, before the batch is handed out.
Never: a look at tokens; the digests of packs come from the workers, with the packs.

    all ranks                          the same arguments, the same number of batches, the same step
    peers of one data-parallel rank    the same packs, out of lanes with the same history
    data-parallel ranks                none is missing, and none has the packs of another

Arguments that differ between data-parallel ranks are refused before the first batch (`agreement`). What is found only
here: states that differ or were loaded on some ranks only, `skip` on some ranks only, peers with other arguments,
shards of the same names and sizes with other contents, transforms that are not pure functions.
"""

import json
from collections.abc import Mapping

import xxhash

from streampack.errors import LoaderError, as_integer
from streampack.hashing import as_int64
from streampack.loader.claims import Claim, differences, different_arguments
from streampack.loader.rounds import PackBatch
from streampack.ranks.exchange import RankExchanges
from streampack.records import Cursor
from streampack.state.checkpoint import Committed

_POSITION = len(Cursor._fields) + 1  # cursor and packs given


class Verifier:
    """Compares the ranks at the first batch and at every `every`-th after it; a collective each time."""

    def __init__(self, every: int, exchanges: RankExchanges) -> None:
        exchanges.check_known("verify_every")
        self.every = as_integer(every, "verify_every", low=1)
        self._exchanges = exchanges

    def is_due(self, batches: int) -> bool:
        """Whether the next batch, after `batches` that were handed out, is to be compared with other ranks."""
        return batches % self.every == 0 and not self._exchanges.is_alone

    def check(self, batch: PackBatch, committed: Committed, batches: int, arguments: Mapping[str, object]) -> None:
        """Compare a batch that is about to be committed.

        Args:
            batch: what this rank is about to hand out.
            committed: where its lanes stood before.
            batches: how many this loader handed out before.
            arguments: those that must be equal on all ranks; plain JSON values.

        Raises:
            LoaderError: on every rank, where one rank differs from what it should have, or cannot be reached.
        """
        try:
            ranks = self._exchanges.everyone()
            mine = self._claim(batch, committed, batches, arguments, rank=ranks.rank)
            claims = [Claim(*numbers) for numbers in ranks.all_gather_ints(mine)]
            if len({claim.arguments for claim in claims}) == 1:
                found = differences(claims)
            else:  # all ranks know it, so all of them come to this second exchange
                found = different_arguments(claims, ranks.all_gather(arguments))
        except RuntimeError as error:  # what torch raises where a connection breaks or time is up
            raise LoaderError(
                f"verify_every={self.every}: the ranks could not be compared at batch {batches} of this loader: "
                f"{error}. A rank has died, or takes fewer batches than the others (is there a wrapper that prefetches "
                "on some ranks only?), or has no loader, or one with another verify_every: every rank of the device "
                "mesh must make the loader and take as many batches."
            ) from error
        if found:
            step = f"up to global pack {claims[0].global_pack} on rank {claims[0].rank}"
            raise LoaderError(
                f"verify_every={self.every}: the ranks do not match at batch {batches} of this "
                f"loader ({step}), which is not handed out: {'; '.join(found)}"
            )

    def _claim(
        self, batch: PackBatch, committed: Committed, batches: int, arguments: Mapping[str, object], *, rank: int
    ) -> Claim:
        topology = self._exchanges.topology
        first = next((item for item in batch.items if item is not None), None)
        packs = [item.pack for item in batch.items if item is not None and item.pack is not None]
        digests = [int(pack.message.digests[pack.number]) for pack in packs]
        return Claim(
            rank=rank,
            dp_rank=topology.rank,
            dp_size=topology.size,
            arguments=_hash(json.dumps(arguments, sort_keys=True).encode()),
            batches=batches,
            global_pack=batch.global_pack,
            first_epoch=committed.first_epoch,
            first_pack=-1 if first is None else first.round * committed.num_lanes + committed.lanes[first.lane_index],
            num_packs=len(packs),
            packs=as_int64(sum(digests)),
            history=committed.digest(),
            position=_hash(committed.rows[:, :_POSITION].tobytes()),
        )


def _hash(data: bytes) -> int:
    return as_int64(xxhash.xxh3_64(data).intdigest())
