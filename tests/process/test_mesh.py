"""Four real processes in meshes of every kind: peers have the same packs, context-parallel ones their part of them.

Where there is no mesh: test_ranks.py.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch.distributed.checkpoint as dcp
from support.ranks import Finite, Ran, References, check_sum, run_job
from support.reference import assert_batches, endless_batches
from support.thorough import THOROUGH, some

COUNT = 4
ALL_MESHES: dict[str, tuple[dict[str, int], list[int], dict[str, Any]]] = {
    # Name -> (dimensions, data-parallel rank of each of the four, more keys of the case)
    "dp x tp": ({"dp": 2, "tp": 2}, [0, 0, 1, 1], {}),
    "tp x dp": ({"tp": 2, "dp": 2}, [0, 1, 0, 1], {}),
    "dp_replicate x dp_shard": ({"dp_replicate": 2, "dp_shard": 2}, [0, 1, 2, 3], {}),
    "pp x dp": ({"pp": 2, "dp": 2}, [0, 1, 0, 1], {}),
    "pp x dp, its dp": ({"pp": 2, "dp": 2}, [0, 1, 0, 1], {"sub_mesh": ["dp"]}),
    "dp x cp": ({"dp": 2, "cp": 2}, [0, 0, 1, 1], {"slices": True}),
    "dp of one x cp x tp": ({"dp": 1, "cp": 2, "tp": 2}, [0, 0, 0, 0], {"slices": True}),
    "dp of one x cp": ({"dp": 1, "cp": 4}, [0, 0, 0, 0], {"slices": True}),
    "pp x dp_shard x tp of one": ({"pp": 2, "dp_shard": 2, "tp": 1}, [0, 1, 0, 1], {}),
    "dp_replicate x dp_shard x cp": ({"dp_replicate": 2, "dp_shard": 1, "cp": 2}, [0, 0, 1, 1], {"slices": True}),
}
SIBLINGS = {"pp x dp, its dp", "dp of one x cp", "pp x dp_shard x tp of one"}
"""Each is much as another one; the nightly run has them, too."""
MESHES = {name: mesh for name, mesh in ALL_MESHES.items() if THOROUGH or name not in SIBLINGS}
BOTH = ("tp x dp", "dp_replicate x dp_shard")
FINITE = [*BOTH, *some([name for name in MESHES if name not in BOTH], 4)]
SAVED = ["dp x tp", "pp x dp", "dp of one x cp x tp"]
"""Their loaders go into a distributed checkpoint behind the last batch."""
REFUSED: dict[str, tuple[str, str]] = {
    # Name -> (what some ranks of dp x tp are given, what the error says on all four)
    "another seed on the ranks 1 and 3": ("dataset seed", "seed: 0 on ranks 0, 2, 7 on ranks 1, 3"),
    **(
        {"another state on rank 3": ("one state", "packs after the batch: 4 on ranks 0, 1, 2, 12 on rank 3")}
        if THOROUGH
        else {}
    ),
    "another state on the ranks 2 and 3": ("states", "packs after the batch: 4 on ranks 0, 1, 12 on ranks 2, 3"),
}

UNSEEN = list(REFUSED) if THOROUGH else list(REFUSED)[:1]
"""Those that are tried without verify_every, too."""
NUM_LOADERS = 3 if THOROUGH else 2
"""Closed one after the other."""


@pytest.fixture(scope="module")
def job(references: References, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    loader = {"batch_size": 2, "num_workers": 0, "verify_every": 3}
    even = {"dataset": references.corpora["even"], "loader": loader, "batches": COUNT}
    uneven = {"dataset": {**references.corpora["uneven"], "epochs": 1}, "loader": loader, "passes": 2}
    later = {"state": references.state_after(8)}
    odd = {
        "dataset seed": {rank: {"dataset": {"seed": 7}} for rank in "13"},
        "one state": {"3": later},
        "states": dict.fromkeys("23", later),
    }

    folder = tmp_path_factory.mktemp("meshes")

    def cases() -> Iterator[dict[str, Any]]:
        for name, (mesh, _, extra) in MESHES.items():
            save = {"save": str(folder / name)} if name in SAVED else {}
            yield {**even, "name": name, "mesh": mesh, **extra, **save}
            if name in FINITE:
                yield {**uneven, "name": f"{name}, finite", "mesh": mesh, **extra}
        yield {**even, "name": "resumed", "mesh": {"pp": 2, "dp": 2}, **later, "loader": {**loader, "num_workers": 1}}
        for name, (given, _) in REFUSED.items():
            yield {**even, "name": name, "mesh": {"dp": 2, "tp": 2}, "per_rank": odd[given]}
            unseen = {"loader": {"batch_size": 2, "num_workers": 0}}
            if name in UNSEEN:
                yield {**even, "name": f"{name}, unseen", "mesh": {"dp": 2, "tp": 2}, "per_rank": odd[given], **unseen}
        fork = {"loader": {"batch_size": 2, "num_workers": 1, "multiprocessing_context": "fork"}}
        for number in range(NUM_LOADERS):
            yield {**even, "name": f"loader {number}", "mesh": {"dp": 2, "tp": 2}, **fork}
        yield {**uneven, "name": "group of rank 0", "mesh": {"dp": 2, "tp": 2}, "group_of": [0], "passes": 1, **fork}

    return run_job(cases(), 4, folder)


@pytest.mark.parametrize("name", [*MESHES, "resumed"])
def test_peers_have_the_same_packs_and_data_parallel_ranks_different_ones(
    job: Ran,
    references: References,
    name: str,
) -> None:
    dp_ranks = MESHES["pp x dp" if name == "resumed" else name][1]
    lanes = references.lanes("even", 0, None, 4)
    split = {"num_ranks": max(dp_ranks) + 1, "batch_size": 2, "count": COUNT}
    for outcome, rank in zip(job[name], dp_ranks, strict=True):
        expected = endless_batches(lanes, 8 if name == "resumed" else 0, rank=rank, **split)
        assert_batches(outcome["passes"][0], expected, f"{name}, dp rank {rank}")


@pytest.mark.parametrize("name", FINITE)
def test_peers_end_finite_passes_together(job: Ran, references: References, name: str) -> None:
    dp_ranks, start = MESHES[name][1], 0
    for number in range(2):
        current = references.one_pass(Finite(), number, start)
        for outcome, rank in zip(job[f"{name}, finite"], dp_ranks, strict=True):
            expected = current.batches(start, rank=rank, num_ranks=max(dp_ranks) + 1, batch_size=2)
            assert_batches(outcome["passes"][number], expected, f"{name}, pass {number}, dp rank {rank}")
        start = current.end


@pytest.mark.parametrize("name", [name for name, (_, _, extra) in MESHES.items() if extra.get("slices")])
def test_the_slices_of_context_parallel_ranks_make_up_each_pack(job: Ran, name: str) -> None:
    mesh, dp_ranks, _ = MESHES[name]
    places = np.moveaxis(np.arange(4).reshape(list(mesh.values())), list(mesh).index("cp"), -1).reshape(-1, mesh["cp"])
    for ranks in places.tolist():
        assert len({dp_ranks[rank] for rank in ranks}) == 1
        whole = job[name][ranks[0]]["passes"][0]
        slices = [job[name][rank]["slices"] for rank in ranks]
        for key in ("tokens", "labels", "position_ids", "segment_ids"):
            heads = [part[key][..., : part[key].shape[-1] // 2] for part in slices]
            tails = [part[key][..., part[key].shape[-1] // 2 :] for part in slices[::-1]]
            np.testing.assert_array_equal(np.concatenate([*heads, *tails], axis=-1), whole[key])
        for part in slices:
            np.testing.assert_array_equal(part["num_targets"], whole["num_targets"])
        trained = sum((part["labels"] != -100).sum() for part in slices)
        assert trained == whole["num_targets"].sum() > 0


@pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable):UserWarning")
@pytest.mark.parametrize("name", SAVED)
def test_what_peers_save_together_goes_on_in_one_process(job: Ran, references: References, name: str) -> None:
    """Each lane is saved by all ranks that hold it, under one key."""
    begin = (max(MESHES[name][1]) + 1) * COUNT * 2
    with references.loader("even", 4) as alone:
        state = {"loader": alone.state_dict()}
        dcp.load(state, checkpoint_id=job.folder / name)
        alone.load_state_dict(state["loader"])
        check_sum([job[name][rank]["digests"][0] for rank in _one_of_each(MESHES[name][1])], alone.digest())
        batch = next(iter(alone))
    expected = endless_batches(references.lanes("even", 0, None, 4), begin, rank=0, num_ranks=1, batch_size=4, count=1)
    assert_batches({key: tensor[None].numpy() for key, tensor in batch.items()}, expected, name)


def test_loaders_of_a_mesh_can_be_closed_and_others_made(job: Ran, references: References) -> None:
    lanes = references.lanes("even", 0, None, 4)
    for number in range(NUM_LOADERS):
        for rank, outcome in enumerate(job[f"loader {number}"]):
            expected = endless_batches(lanes, 0, rank=rank // 2, num_ranks=2, batch_size=2, count=COUNT)
            assert_batches(outcome["passes"][0], expected, f"loader {number}, rank {rank}")


def test_a_group_of_the_trainer_that_only_one_rank_of_a_mesh_belongs_to_does_not_hinder(
    job: Ran, references: References
) -> None:
    current = references.one_pass(Finite(), 0, 0)
    for rank, outcome in enumerate(job["group of rank 0"]):
        expected = current.batches(0, rank=rank // 2, num_ranks=2, batch_size=2)
        assert_batches(outcome["passes"][0], expected, f"rank {rank}")


def _one_of_each(dp_ranks: list[int]) -> list[int]:
    return [dp_ranks.index(rank) for rank in range(max(dp_ranks) + 1)]


@pytest.mark.parametrize("name", REFUSED)
def test_peers_with_other_packs_are_told_so_on_all_ranks_and_only_by_verify_every(job: Ran, name: str) -> None:
    messages = job.errors(name)
    assert messages[0] == messages[1] == messages[2] == messages[3]
    [message] = messages[0]
    assert message.startswith("LoaderError: verify_every=3: the ranks do not match at batch 0 ")
    assert REFUSED[name][1] in message
    if name in UNSEEN:
        assert job.errors(f"{name}, unseen") == [[]] * 4
