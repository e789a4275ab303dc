"""What the ranks of a running job do together every so many batches: make sure that each has what it should have.

In:    of each rank a few integers about the batch that it is about to hand out (a `Claim`), over one all-gather.
Out:   nothing, or the same `LoaderError` on every rank, before the batch is handed out.
Never: a look at tokens; digests of packs have come along from the workers.

    all ranks                          the same arguments, the same number of batches, the same step
    peers of one data-parallel rank    the same packs, out of lanes with the same history
    data-parallel ranks                each is there, and none has the packs of another

Arguments that differ between data-parallel ranks are refused before the first batch (`agreement`). What only shows
here: states that differ or were loaded on some ranks only, `skip` on some ranks only, peers with other arguments,
shards of the same names and sizes with other contents, transforms that are no pure functions.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import xxhash

from streampack.errors import LoaderError
from streampack.loader.rounds import Batch
from streampack.ranks.topology import Peers, Topology
from streampack.records import Cursor
from streampack.state.checkpoint import Committed
from streampack.state.fingerprint import describe_differences

_POSITION = len(Cursor._fields) + 1  # cursor and packs given
_SHOWN_RANKS = 8


class Claim(NamedTuple):
    """What one rank is about to hand out; all of it fits an int64."""

    rank: int
    """Among all ranks of the job."""
    dp_rank: int
    dp_size: int
    arguments: int
    """A hash of what all ranks must have been given alike."""
    batches: int
    """Handed out by this loader before this one."""
    global_pack: int
    """All packs below this number have been handed out with this batch, over all ranks."""
    first_epoch: int
    first_pack: int
    """The global number of the batch's first pack; -1: it has none."""
    num_packs: int
    """Those that are no fillers."""
    packs: int
    """The digests of the batch's packs, added up."""
    history: int
    """The digests of all packs before the batch, added up over the rank's lanes."""
    position: int
    """A hash of where the rank's lanes stood before the batch."""


class Verifier:
    """Compares the ranks at the first batch and at every `every`-th behind it; a collective each time."""

    def __init__(self, every: int, topology: Topology, connect: Callable[[], Peers] | None) -> None:
        """`connect`: gives the exchange between all ranks, asked at the first comparison; None: there is no other."""
        self.every = every
        self._topology = topology
        self._connect = connect
        self._peers: Peers | None = None

    def is_due(self, batches: int) -> bool:
        """Whether the batch behind so many is one to compare."""
        return batches % self.every == 0

    def check(
        self, batch: Batch, committed: Committed, batches: int, arguments: Callable[[], Mapping[str, object]]
    ) -> None:
        """Compare a batch that is about to be committed.

        `arguments`: what all ranks must have been given alike; plain JSON values.

        Raises:
            LoaderError: on every rank, where one has what it should not have; or where a rank did not come.
        """
        if self._connect is None:
            return
        given = arguments()
        try:
            if self._peers is None:
                self._peers = self._connect()
            mine = self._claim(batch, committed, batches, given, rank=self._peers.rank)
            claims = [Claim(*numbers) for numbers in self._peers.all_gather_ints(mine)]
            if len({claim.arguments for claim in claims}) == 1:
                found = differences(claims)
            else:  # all ranks know it, so all of them come to this second exchange
                found = different_arguments(claims, self._peers.all_gather(given))
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
                f"verify_every={self.every}: the ranks do not have what they should have at batch {batches} of this "
                f"loader ({step}), which is not handed out: {'; '.join(found)}"
            )

    def _claim(
        self, batch: Batch, committed: Committed, batches: int, arguments: Mapping[str, object], *, rank: int
    ) -> Claim:
        first = next((item for item in batch.items if item is not None), None)
        packs = [item.pack for item in batch.items if item is not None and item.pack is not None]
        digests = [int(pack.message.digests[pack.number]) for pack in packs]
        return Claim(
            rank=rank,
            dp_rank=self._topology.rank,
            dp_size=self._topology.size,
            arguments=_hash(json.dumps(arguments, sort_keys=True).encode()),
            batches=batches,
            global_pack=batch.global_pack,
            first_epoch=committed.first_epoch,
            first_pack=-1 if first is None else first.round * committed.num_lanes + committed.lanes[first.lane_index],
            num_packs=len(packs),
            packs=_signed(sum(digests)),
            history=_signed(committed.digest()),
            position=_hash(committed.rows[:, :_POSITION].tobytes()),
        )


_SAME_HISTORY = "load the same state on all ranks or on none, and call skip on all or on none"
_SAME_DATA = "give every machine shards with the same bytes, and use a transform that draws from its rng only"


def different_arguments(claims: Sequence[Claim], arguments: Sequence[Mapping[str, object]]) -> list[str]:
    """What differs in the arguments of the ranks, compared with the first one's; what to do."""
    groups = _by(claims, lambda claim: claim.arguments)
    given = {claim.arguments: each for claim, each in zip(claims, arguments, strict=True)}
    first, *others = groups
    lines = [
        line
        for other in others
        for line in describe_differences(
            given[first],
            given[other],
            saved_where=f"on {_ranks(groups[first])}",
            now_where=f"on {_ranks(groups[other])}",
            advise=False,
        )
    ]
    return [*lines, "give the loaders of all ranks the same arguments"]


def differences(claims: Sequence[Claim]) -> list[str]:
    """What does not fit together in the claims of all ranks, and what to do; only what is nearest to the cause."""
    return (
        _of_steps(claims)
        or [line for peers in _by(claims, lambda claim: claim.dp_rank).values() for line in _of_peers(peers)]
        or _of_data_parallel(claims)
    )


def _of_steps(claims: Sequence[Claim]) -> list[str]:
    names = {
        "dp_size": "data-parallel ranks",
        "batches": "batches handed out before by this loader",
        "global_pack": "global packs behind the batch",
        "first_epoch": "first epoch of the pass",
    }
    found = _unequal(claims, names)
    return [*found, _SAME_HISTORY] if found else []


def _of_peers(claims: Sequence[Claim]) -> list[str]:
    """Of ranks that must have the same batch."""
    of_whom = f"of data-parallel rank {claims[0].dp_rank}"
    names = {"position": f"position of the lanes {of_whom}", "history": f"digest of all packs so far {of_whom}"}
    if found := _unequal(claims, names):
        return [*found, f"{_SAME_HISTORY}; or, {_SAME_DATA}"]
    names = {
        "first_pack": f"first pack {of_whom}",
        "num_packs": f"number of packs {of_whom}",
        "packs": f"digest of the batch's packs {of_whom}",
    }
    found = _unequal(claims, names)
    return [*found, _SAME_DATA] if found else []


def _of_data_parallel(claims: Sequence[Claim]) -> list[str]:
    """Ranks that must have different packs."""
    by_dp_rank = _by(claims, lambda claim: claim.dp_rank)
    missing = [rank for rank in range(claims[0].dp_size) if rank not in by_dp_rank]
    if missing:
        given = ", ".join(f"{rank} on {_ranks(peers)}" for rank, peers in list(by_dp_rank.items())[:_SHOWN_RANKS])
        nobody = f"no rank is data-parallel rank {', '.join(map(str, missing[:_SHOWN_RANKS]))} of {claims[0].dp_size}"
        return [f"{nobody}, and dp_rank is {given}", "give each rank its own dp_rank, or a device_mesh"]
    one_of_each = [peers[0] for peers in by_dp_rank.values()]
    for packs, same in _by((claim for claim in one_of_each if claim.num_packs), lambda claim: claim.packs).items():
        if len(same) > 1:
            return [f"{_ranks(same)} have the same packs (digest {packs:#x}) though their dp_rank differs"]
    return []


def _unequal(claims: Sequence[Claim], names: dict[str, str]) -> list[str]:
    """A line for each named field that is not the same in all claims: its values, and which ranks have them."""
    lines = []
    for name, what in names.items():
        groups = _by(claims, lambda claim, name=name: getattr(claim, name))  # type: ignore[misc]
        if len(groups) > 1:
            is_hash = name in {"packs", "history", "position"}
            shown = [
                f"{f'{value & 0xFFFFFFFFFFFFFFFF:#018x}' if is_hash else value} on {_ranks(group)}"
                for value, group in list(groups.items())[:_SHOWN_RANKS]
            ]
            lines.append(f"{what}: {', '.join(shown)}")
    return lines


def _by(claims: Iterable[Claim], key: Callable[[Claim], int]) -> dict[int, list[Claim]]:
    groups: dict[int, list[Claim]] = {}
    for claim in claims:
        groups.setdefault(key(claim), []).append(claim)
    return groups


def _ranks(claims: Sequence[Claim]) -> str:
    ranks = [claim.rank for claim in claims]
    more = f" and {len(ranks) - _SHOWN_RANKS} more" if len(ranks) > _SHOWN_RANKS else ""
    return f"{'ranks' if len(ranks) > 1 else 'rank'} {', '.join(map(str, ranks[:_SHOWN_RANKS]))}{more}"


def _hash(data: bytes) -> int:
    return _signed(xxhash.xxh3_64(data).intdigest())


def _signed(word: int) -> int:
    """The 64 bits as an int64."""
    word &= 0xFFFFFFFFFFFFFFFF
    return word - 2**64 if word >= 2**63 else word
