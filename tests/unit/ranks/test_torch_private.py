"""What torch does not document and streampack uses: a release of torch that changes it is named here."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from streampack.ranks.torch_private import TRIED, add_to_store, new_gloo_group


@pytest.fixture
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_group_on_the_default_store_has_the_collectives_that_are_used(group_of_one: None) -> None:
    where = f"torch {torch.__version__} changed its gloo groups; tried with {TRIED}"
    try:
        group = new_gloo_group("one", rank=0, size=1)
        number = torch.tensor([7])
        boxes = [torch.zeros_like(number)]
        group.allgather([boxes], [number]).wait()
        group.broadcast(number, 0).wait()
        group.allreduce(number, dist.ReduceOp.MAX).wait()
    except (AttributeError, TypeError, RuntimeError) as error:
        pytest.fail(f"{where}: {error!r}")
    assert (group.rank(), group.size(), boxes[0].item(), number.item()) == (0, 1, 7, 7), where


def test_ranks_add_to_a_number_in_the_default_store(group_of_one: None) -> None:
    assert [add_to_store("a", amount) for amount in (3, 0, 4, -2)] == [3, 3, 7, 5]
    assert add_to_store("b", 1) == 1
