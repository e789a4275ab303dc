"""What a rank says of the batch that it is about to hand out, and what does not fit together in what all ranks say.

In:    one `Claim` of each rank, in rank order.
Out:   lines of text: the differences that are nearest to the cause, and what to do. No lines: nothing is wrong.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from streampack.state.fingerprint import describe_differences

_SHOWN_RANKS = 8
_SAME_HISTORY = "load the same state on all ranks or on none, and call skip on all or on none"
_SAME_DATA = "give every machine shards with the same bytes, and use a transform that draws from its rng only"


class Claim(NamedTuple):
    """What one rank is about to hand out; every field fits an int64."""

    rank: int
    """Among all ranks of the job."""
    dp_rank: int
    dp_size: int
    arguments: int
    """A hash of the arguments that must be equal on all ranks."""
    batches: int
    """Batches that this loader handed out before this one."""
    global_pack: int
    """With this batch all global packs below this one have been handed out, over all ranks."""
    first_epoch: int
    first_pack: int
    """The global number of the batch's first pack; -1: it has only fillers without a number."""
    num_packs: int
    """Packs of the batch that are not fillers."""
    packs: int
    """The digests of the batch's packs, added up."""
    history: int
    """The digests of all packs before the batch, added up over the rank's lanes."""
    position: int
    """A hash of where the rank's lanes stood before the batch."""


def different_arguments(claims: Sequence[Claim], arguments: Sequence[Mapping[str, object]]) -> list[str]:
    """How the arguments of the ranks differ from those of the first one, and what to do."""
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
    """What does not fit together in the claims of all ranks, and what to do."""
    return (
        _of_steps(claims)
        or [line for peers in _by(claims, lambda claim: claim.dp_rank).values() for line in _of_peers(peers)]
        or _of_data_parallel(claims)
    )


def _of_steps(claims: Sequence[Claim]) -> list[str]:
    names = {
        "dp_size": "data-parallel ranks",
        "batches": "batches handed out before by this loader",
        "global_pack": "global packs after the batch",
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
            return [f"{_ranks(same)} have the same packs (digest {_hash(packs)}) though their dp_rank differs"]
    return []


def _hash(value: int) -> str:
    """The 64 bits of a hash, whether it has a sign or not."""
    return f"{value & 0xFFFFFFFFFFFFFFFF:#018x}"


def _unequal(claims: Sequence[Claim], names: dict[str, str]) -> list[str]:
    """A line for each named field that is not the same in all claims: its values, and which ranks have them."""
    lines = []
    for name, what in names.items():
        groups = _by(claims, lambda claim, name=name: getattr(claim, name))  # type: ignore[misc]  # of a loop
        if len(groups) > 1:
            is_hash = name in {"packs", "history", "position"}
            shown = [
                f"{_hash(value) if is_hash else value} on {_ranks(group)}"
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
