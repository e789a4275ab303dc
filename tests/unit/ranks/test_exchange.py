"""Numbers that ranks agree on, and whether they were agreeing on the same thing; two ranks in one process."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from streampack.errors import LoaderError
from streampack.loader.agreement import PassAgreement
from streampack.ranks.exchange import Exchange


class Ranks:
    """All-reduces that meet when the last rank has joined them."""

    def __init__(self, size: int) -> None:
        self.waiting: list[torch.Tensor] = []
        self.groups = [Member(self, rank, size) for rank in range(size)]


class Member:
    """What one rank sees of them."""

    is_out_of_step = False

    def __init__(self, ranks: Ranks, rank: int, size: int) -> None:
        self._ranks, self.rank, self.size = ranks, rank, size

    def all_reduce(self, tensor: torch.Tensor, op: Any) -> Any:
        waiting = self._ranks.waiting
        waiting.append(tensor)
        if len(waiting) == self.size:
            both = torch.stack(waiting)
            result = both.max(0).values if op == dist.ReduceOp.MAX else both.min(0).values
            for each in waiting:
                each.copy_(result)
            waiting.clear()
        return lambda: None


ABOUT = {"run_name": "abc", "first_epoch": 2, "global_pack": 96, "batch_size": 4}


def agree(*calls: tuple[dict[str, Any], int, int], highest: bool = True) -> list[Any]:
    """(what is different on this rank, first round, number) of each rank -> what each of them gets."""
    ranks = Ranks(len(calls))
    waiters = []
    for group, (changes, first_round, number) in zip(ranks.groups, calls, strict=True):
        about = ABOUT | changes
        agreement = PassAgreement(Exchange(group), about.pop("run_name"), **about, highest=highest)
        waiters.append(agreement(first_round, number))
    return [waiter() for waiter in waiters]


@pytest.mark.parametrize("highest", [True, False])
def test_ranks_of_one_pass_and_round_agree(highest: bool) -> None:
    numbers = [5, 2**50 + 7, 6]
    wanted = max(numbers) if highest else min(numbers)
    assert agree(*(({}, 24, number) for number in numbers), highest=highest) == [wanted] * 3


@pytest.mark.parametrize("highest", [True, False])
@pytest.mark.parametrize(
    ("changes", "first_round", "told"),
    [
        ({"first_epoch": 3}, 24, r"first epoch of the pass is \d on rank \d, \d on rank \d"),
        ({"global_pack": 0}, 24, r"global pack with which the pass began is (96|0) on rank \d, (96|0) on rank \d"),
        ({"batch_size": 5}, 24, r"batch size is \d on rank \d, \d on rank \d"),
        ({}, 28, r"round is 2\d on rank \d, 2\d on rank \d"),
        ({"run_name": "other"}, 24, r"rank \d and rank \d are iterating over different loaders"),
    ],
)
def test_ranks_that_are_not_in_the_same_pass_are_told_so_and_get_no_number(
    highest: bool, changes: dict[str, Any], first_round: int, told: str
) -> None:
    ranks = Ranks(3)
    waiters = []
    for rank, group in enumerate(ranks.groups):
        about = ABOUT | (changes if rank == 1 else {})
        agreement = PassAgreement(Exchange(group), about.pop("run_name"), **about, highest=highest)
        waiters.append(agreement(first_round if rank == 1 else 24, 7))
    messages = []
    for waiter in waiters:
        with pytest.raises(LoaderError, match=told) as caught:
            waiter()
        messages.append(str(caught.value))
    assert len(set(messages)) == 1
    assert "on rank 1" in messages[0] or "rank 1 " in messages[0]
    assert all(group.is_out_of_step for group in ranks.groups)
