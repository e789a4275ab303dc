"""Lightning, the real one: a fit that goes on from a checkpoint has every batch once, wherever it was saved."""

import importlib
import importlib.util
import itertools
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import PROGRAMS, run_program
from support.thorough import nightly

import streampack
from streampack.errors import ConfigError, LoaderError
from streampack.integrations import LightningLoader
from streampack.testing import ByteTokenizer, write_shards

if importlib.util.find_spec("pytorch_lightning") is None:
    pytest.skip("the extra `trainers` has Lightning", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning has much advice to give


@cache
def program() -> Any:
    """programs/lightninged.py; it imports Lightning, which takes seconds, so not where tests are only collected."""
    sys.path.insert(0, str(PROGRAMS))
    return importlib.import_module("lightninged")


def fit(*arguments: Any, **options: Any) -> Any:
    return program().fit(*arguments, **options)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    texts = [f"document number {i} " * 3 for i in range(40)]
    return write_shards(tmp_path_factory.mktemp("shards"), texts, documents_per_shard=10)


def loader_of(shards: list[str], workers: int = 0, **options: Any) -> streampack.PackedDataLoader:
    dataset = streampack.PackedDataset(shards, ByteTokenizer(), 32, num_lanes=4, **options)
    return streampack.PackedDataLoader(dataset, 2, num_workers=workers, provenance=True)


def batches(first: int, count: int) -> list[list[int]]:
    return [[2 * number, 2 * number + 1] for number in range(first, first + count)]


def saved(place: Path) -> dict[int, str]:
    """The checkpoints by their step."""
    return {int(path.stem.partition("=")[2]): str(path) for path in sorted(place.glob("step=*.ckpt"))}


@pytest.mark.parametrize("workers", [2, *nightly([0])])
def test_an_endless_run_goes_on_after_the_last_batch_that_was_trained_on(
    shards: list[str], tmp_path: Path, workers: int
) -> None:
    """Lightning has one more in its hands when it saves."""
    with loader_of(shards, workers) as loader:
        _, seen = fit(loader, place=tmp_path, max_steps=5)
    assert seen == batches(0, 5)
    assert set(saved(tmp_path)) == {2, 4}
    for step, checkpoint in saved(tmp_path).items():
        with loader_of(shards, workers) as loader:
            assert fit(loader, checkpoint=checkpoint, max_steps=7)[1] == batches(step, 7 - step)


def test_a_checkpoint_after_the_fit_and_resumes_in_a_row(shards: list[str], tmp_path: Path) -> None:
    seen: list[list[int]] = []
    checkpoint = None
    for number in range(3):
        with loader_of(shards) as loader:
            trainer, part = fit(loader, checkpoint=checkpoint, max_steps=3 * number + 3)
            checkpoint = str(tmp_path / f"{number}.ckpt")
            trainer.save_checkpoint(checkpoint)
        seen += part
    assert seen == batches(0, 9)


def test_a_second_fit_with_the_same_loader_has_the_batch_that_the_first_one_held(shards: list[str]) -> None:
    with loader_of(shards) as loader:
        first, second = fit(loader, max_steps=3)[1], fit(loader, max_steps=3)[1]
        assert first + second == batches(0, 6)
        assert loader.state_dict()["global_pack"] == 12
        assert loader.state_dict(batches_back=2)["global_pack"] == 8
        assert next(iter(loader))["pack_numbers"].tolist() == [12, 13]


@pytest.mark.parametrize("accumulated", [2, *nightly([1])])
def test_a_finite_run_goes_on_from_any_step_and_from_the_end_of_an_epoch(
    shards: list[str], tmp_path: Path, accumulated: int
) -> None:
    with loader_of(shards, epochs=1, shuffle="shards") as loader:
        _, whole = fit(loader, max_epochs=3, accumulate_grad_batches=accumulated)
    with loader_of(shards, epochs=1, shuffle="shards") as loader:
        options = {"max_epochs": 1, "accumulate_grad_batches": accumulated}
        trainer, first = fit(loader, place=tmp_path, **options)
        trainer.save_checkpoint(tmp_path / "end.ckpt")
    assert first == whole[: len(first)]
    assert 3 * len(first) == len(whole)
    chosen = dict(itertools.islice(saved(tmp_path).items(), 3)) | {
        len(first) // accumulated: str(tmp_path / "end.ckpt")
    }
    for step, checkpoint in chosen.items():
        with loader_of(shards, epochs=1, shuffle="shards") as loader:
            _, rest = fit(loader, checkpoint=checkpoint, max_epochs=3, accumulate_grad_batches=accumulated)
        assert rest == whole[step * accumulated :], f"from step {step}"


def test_one_epoch_is_the_run_where_it_has_a_budget(shards: list[str], tmp_path: Path) -> None:
    """11 packs of 32 tokens in batches of 2: 6 steps, which Lightning knows before it begins."""
    with loader_of(shards, num_tokens=350) as loader:
        assert len(LightningLoader(loader, fit(loader, max_steps=0)[0])) == 6
        trainer, seen = fit(loader, place=tmp_path, max_epochs=1)
        assert (trainer.num_training_batches, trainer.estimated_stepping_batches) == (6, 6)
    assert seen == [*batches(0, 5), [10, -1]]
    for step, checkpoint in saved(tmp_path).items():
        with loader_of(shards, num_tokens=350) as loader:
            _, rest = fit(loader, checkpoint=checkpoint, max_epochs=1)
        assert rest == seen[step:], f"from step {step}"


def test_epochs_of_so_many_batches_lose_none_and_go_on(shards: list[str], tmp_path: Path) -> None:
    with loader_of(shards) as loader:
        _, seen = fit(loader, place=tmp_path, limit_train_batches=4, max_epochs=2)
    assert seen == batches(0, 8)
    assert set(saved(tmp_path)) == {2, 4, 6, 8}
    for step, checkpoint in saved(tmp_path).items():
        with loader_of(shards) as loader:
            _, rest = fit(loader, checkpoint=checkpoint, limit_train_batches=4, max_epochs=3)
            assert rest == batches(step, 12 - step), f"from step {step}"


@pytest.fixture(scope="module")
def two(shards: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    place = tmp_path_factory.mktemp("ddp")
    run_program("lightninged.py", Path(shards[0]).parent, place, ranks=2, log=place / "log")
    return place, [json.loads((place / f"rank{rank}.json").read_text()) for rank in range(2)]


def own(rank: int, first: int, count: int) -> list[list[int]]:
    return [[4 * number + rank, 4 * number + 2 + rank] for number in range(first, first + count)]


def test_two_ranks_go_on_from_the_one_state_that_lightning_saves(two: tuple[Path, list[dict[str, Any]]]) -> None:
    for rank, outcome in enumerate(two[1]):
        assert outcome["first"] == own(rank, 0, 5)
        for name, step in (("saved/step=2.ckpt", 2), ("end.ckpt", 5)):
            assert outcome[name] == own(rank, step, 7 - step), name


def test_one_process_goes_on_from_the_checkpoint_of_two_ranks(
    two: tuple[Path, list[dict[str, Any]]], shards: list[str]
) -> None:
    with loader_of(shards) as loader:
        assert fit(loader, checkpoint=str(two[0] / "end.ckpt"), max_steps=8)[1] == batches(10, 3)


def test_lightning_may_not_save_the_state_of_one_rank_for_all(two: tuple[Path, list[dict[str, Any]]]) -> None:
    for outcome in two[1]:
        assert outcome["refused"].startswith("StateError: Lightning saves the state of rank 0 only")
        assert "PackedDataLoader(whole_state=True)" in outcome["refused"]


def test_a_fit_without_the_adapter_is_refused(shards: list[str], tmp_path: Path) -> None:
    with loader_of(shards) as loader:
        with pytest.raises(LoaderError, match=r"give it streampack.integrations.LightningLoader\(loader, trainer\)"):
            fit(loader, place=tmp_path, bare=True, max_steps=5)
        assert next(iter(loader))["pack_numbers"].tolist() == [0, 1], "nothing was taken"


def test_a_step_that_takes_its_batches_itself_has_none_ahead(shards: list[str], tmp_path: Path) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    seen: list[list[int]] = []
    checkpoint = None
    for number in range(2):
        trainer = program().lightning.Trainer(
            accelerator="cpu", enable_checkpointing=False, max_steps=2 * number + 2, **quiet
        )
        model = program().TakingItself()
        with loader_of(shards) as loader:
            trainer.fit(model, LightningLoader(loader, trainer), ckpt_path=checkpoint)
            checkpoint = str(tmp_path / f"{number}.ckpt")
            trainer.save_checkpoint(checkpoint)
        seen += model.seen
    assert seen == batches(0, 8)


def test_a_loader_itself_may_be_validated_on_and_the_adapter_may_not(shards: list[str]) -> None:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    model = program().Validating()
    with loader_of(shards) as loader, loader_of(shards) as other:
        trainer = program().lightning.Trainer(
            accelerator="cpu", limit_val_batches=2, max_steps=3, val_check_interval=2, **quiet
        )
        trainer.fit(model, LightningLoader(loader, trainer), other)
        assert model.seen == batches(0, 3)
        assert model.validated
        with pytest.raises(LoaderError, match="To validate or test, give Lightning the PackedDataLoader itself"):
            trainer.validate(model, LightningLoader(other, trainer), verbose=False)


def test_a_release_that_does_not_tell_what_it_took_is_refused_before_the_first_batch(
    shards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytorch_lightning.loops import fetchers

    class Unknown(fetchers._PrefetchDataFetcher):
        @property
        def batches(self) -> None:
            return None

        @batches.setter
        def batches(self, value: Any) -> None:
            self.held = value

    from pytorch_lightning.loops import fit_loop

    monkeypatch.setattr(fit_loop, "_select_data_fetcher", lambda *_: Unknown())
    with loader_of(shards) as loader, pytest.raises(LoaderError, match="Unknown does not have batches as streampack"):
        fit(loader, max_steps=2)


def test_only_a_trainer_of_lightning_has_the_loops(shards: list[str]) -> None:
    with loader_of(shards) as loader, pytest.raises(ConfigError, match="must be Lightning's Trainer, not Linear"):
        LightningLoader(loader, torch.nn.Linear(1, 1))
