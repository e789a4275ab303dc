"""Accelerate and Transformers' Trainer, the real ones: their own ways to resume are exact with a loader, or refused."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import run_program
from support.thorough import nightly

import streampack
from streampack.errors import ConfigError, LoaderError, StateError
from streampack.integrations import PackedTrainerMixin, register_for_checkpointing
from streampack.testing import ByteTokenizer, write_shards

accelerate = pytest.importorskip("accelerate", reason="the extra `trainers` has it")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _no_state_of_accelerate_is_left() -> Iterator[None]:
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    texts = [f"document number {i} " * 3 for i in range(40)]
    return write_shards(tmp_path_factory.mktemp("shards"), texts, documents_per_shard=10)


def loader_of(shards: list[str], *, num_packs: int | None = None, **options: Any) -> streampack.PackedDataLoader:
    dataset = streampack.PackedDataset(shards, ByteTokenizer(), 32, num_lanes=4, num_packs=num_packs)
    return streampack.PackedDataLoader(dataset, 2, **{"num_workers": 0, "provenance": True, **options})


def take(loader: Any, count: int) -> list[list[int]]:
    return [batch["pack_numbers"].tolist() for batch in itertools.islice(loader, count)]


def own(rank: int, first: int, count: int) -> list[list[int]]:
    return [[4 * number + rank, 4 * number + 2 + rank] for number in range(first, first + count)]


@pytest.fixture(scope="module")
def two(shards: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    place = tmp_path_factory.mktemp("accelerate")
    run_program("accelerate_resume.py", Path(shards[0]).parent, place, ranks=2, log=place / "log")
    return place, [json.loads((place / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_a_registered_loader_goes_on_from_what_accelerate_saved(two: tuple[Path, list[dict[str, Any]]]) -> None:
    for rank, outcome in enumerate(two[1]):
        assert outcome["model"] is True
        assert outcome["first"] == own(rank, 0, 3)
        assert outcome["lost"] == outcome["second"] == own(rank, 3, 2)
        assert outcome["third"] == own(rank, 5, 2)


def test_one_process_goes_on_from_what_two_ranks_saved(
    two: tuple[Path, list[dict[str, Any]]], shards: list[str]
) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.prepare(torch.nn.Linear(2, 2))
    with loader_of(shards) as loader:
        register_for_checkpointing(accelerator, accelerator.prepare(loader))
        accelerator.load_state(two[0] / "saved again")
        assert take(loader, 2) == [[20, 21], [22, 23]]


def test_accelerate_may_not_save_the_state_of_one_rank_for_all(two: tuple[Path, list[dict[str, Any]]]) -> None:
    for outcome in two[1]:
        for name, saver in (("refused", "Accelerate"), ("refused without the adapter", "accelerate.checkpointing")):
            assert outcome[name].startswith(f"StateError: {saver} saves the state of rank 0 only")
            assert "PackedDataLoader(whole_state=True)" in outcome[name]


def test_accelerates_stateful_dataloader_around_what_it_deals_out_is_refused(
    two: tuple[Path, list[dict[str, Any]]],
) -> None:
    """Without that its second resume is at the wrong place: torchdata counts the batches that it reads again."""
    for outcome in two[1]:
        for workers in (0, 1):
            message = outcome[f"stateful, {workers} workers"]
            assert "accelerate.data_loader.IterableDatasetShard on 2 processes resume at the wrong place" in message
            assert "PackedDataLoader(whole_state=True)" in message


def test_accelerate_leaves_the_loader_as_it_is_and_cannot_deal_a_ranks_packs_again(
    two: tuple[Path, list[dict[str, Any]]], shards: list[str]
) -> None:
    first, second = (outcome["wrapped"] for outcome in two[1])
    alone = streampack.PackedDataset(shards, ByteTokenizer(), 16, num_lanes=2, epochs=1, shuffle=False).for_rank(0, 1)
    everything = [pack["tokens"].tolist() for pack in alone]
    for results in (first, second):
        assert results.pop("left as it is False") is results.pop("left as it is True") is True
        assert results["own False"] == results["own True"]
    real = [pack for results in (first, second) for pack in results["own False"] if any(pack)]
    assert sorted(real) == sorted(everything)
    refused = {name: value for results in (first, second) for name, value in results.items() if "refused" in name}
    names = ["refused False 0", "refused False 1", "refused True 0", "refused True 1"]
    assert refused == dict.fromkeys(names, True)
    dealt = first["dealt by accelerate"] + second["dealt by accelerate"]
    assert {tuple(pack) for pack in dealt} == {tuple(pack) for pack in everything}


@pytest.mark.parametrize(("workers", "dispatches"), [(0, True), (2, False), *nightly([(0, False), (2, True)])])
def test_accelerates_stateful_dataloader_of_one_process_goes_on_exactly_each_time(
    shards: list[str], tmp_path: Path, workers: int, dispatches: bool
) -> None:
    pytest.importorskip("torchdata")
    config = accelerate.utils.DataLoaderConfiguration(use_stateful_dataloader=True, dispatch_batches=dispatches)
    accelerator = accelerate.Accelerator(cpu=True, dataloader_config=config)

    def prepared() -> Any:
        dataset = streampack.PackedDataset(shards, ByteTokenizer(), 32, num_lanes=4)
        accelerator._dataloaders.clear()
        return accelerator.prepare(torch.utils.data.DataLoader(dataset, batch_size=2, num_workers=workers))

    def tokens(loader: Any, count: int) -> list[Any]:
        return [batch["tokens"].tolist() for batch in itertools.islice(loader, count)]

    whole, got = tokens(prepared(), 8), tokens(prepared(), 2)
    accelerator.save_state(tmp_path)
    for _ in range(3):
        loader = prepared()
        accelerator.load_state(tmp_path)
        got += tokens(loader, 2)
        accelerator.save_state(tmp_path)
    assert got == whole


def test_skip_first_batches_would_make_another_loader_and_is_refused(shards: list[str]) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    with loader_of(shards) as loader:
        for skip in (accelerate.skip_first_batches, accelerator.skip_first_batches):
            with pytest.raises(
                LoaderError, match=r"Load the loader's state .*, or go past batches with loader.skip\(n\)"
            ):
                skip(accelerator.prepare(loader), 2)
        assert isinstance(loader.dataset, streampack.PackedDataset)
        assert not hasattr(loader, "drop_last"), "who asks whether it is there gets an answer"
        loader.skip(2)
        assert take(loader, 1) == [[4, 5]]


# --- Transformers' Trainer


class Watching(torch.nn.Module):
    """A model that remembers what it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[list[list[int]]] = []

    def forward(self, input_ids: torch.Tensor, **rest: Any) -> dict[str, torch.Tensor]:
        self.seen.append(input_ids.tolist())
        return {"loss": self.layer(torch.ones(1, 1)).sum()}


def trainer_of(loader: streampack.PackedDataLoader, place: Path, *, adapted: bool = True, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")

    class Adapted(PackedTrainerMixin, transformers.Trainer):
        pass

    class Bare(transformers.Trainer):
        def get_train_dataloader(self) -> streampack.PackedDataLoader:
            return loader

    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True}
    saves = {"output_dir": str(place), "save_strategy": "steps", "save_steps": 2}
    arguments = transformers.TrainingArguments(**quiet, **saves, **options)
    if adapted:
        return Adapted(model=Watching(), args=arguments, loader=loader)
    return Bare(model=Watching(), args=arguments)


HF = {"format": "hf", "provenance": False}


@pytest.mark.parametrize("accumulated", [2, *nightly([1])])
def test_transformers_trainer_goes_on_exactly_from_each_checkpoint(
    shards: list[str], tmp_path: Path, accumulated: int
) -> None:
    options = {"gradient_accumulation_steps": accumulated, "ignore_data_skip": True}
    with loader_of(shards, **HF) as loader:
        batches = [batch["input_ids"].tolist() for batch in itertools.islice(loader, 12)]
    with loader_of(shards, **HF) as loader:
        trainer = trainer_of(loader, tmp_path, max_steps=5, **options)
        trainer.train()
        assert trainer.model.seen == batches[: 5 * accumulated]
    for step in (2, 4):
        checkpoint = tmp_path / f"checkpoint-{step}"
        with loader_of(shards, **HF) as loader:
            trainer = trainer_of(loader, tmp_path / "later", max_steps=6, **options)
            trainer.train(resume_from_checkpoint=str(checkpoint))
            assert trainer.model.seen == batches[step * accumulated : 6 * accumulated], f"from step {step}"


def test_transformers_trainer_makes_no_step_more_of_a_run_that_has_all_of_them(
    shards: list[str], tmp_path: Path
) -> None:
    with loader_of(shards, **HF) as loader:
        trainer_of(loader, tmp_path, max_steps=4, ignore_data_skip=True).train()
    for steps in (4, 3):
        with loader_of(shards, **HF) as loader:
            trainer = trainer_of(loader, tmp_path, max_steps=steps, ignore_data_skip=True)
            result = trainer.train(resume_from_checkpoint=True)
            assert (trainer.model.seen, result.global_step) == ([], 4)
            assert loader.progress()["packs"] == 4 * 2, "it stands after the last step"


@pytest.mark.parametrize("accumulated", [1, *nightly([2])])
def test_one_epoch_of_transformers_trainer_is_the_run_where_it_has_a_budget(
    shards: list[str], tmp_path: Path, accumulated: int
) -> None:
    options = {"num_train_epochs": 1, "gradient_accumulation_steps": accumulated, "ignore_data_skip": True}
    with loader_of(shards, num_packs=11, **HF) as loader:
        batches = [batch["input_ids"].tolist() for batch in loader]
        assert len(batches) == len(loader)
    with loader_of(shards, num_packs=11, **HF) as loader:
        trainer = trainer_of(loader, tmp_path, **options)
        trainer.train()
        assert trainer.model.seen == batches
        assert trainer.state.max_steps == -(-len(batches) // accumulated)
        assert trainer.state.epoch == 1
    with loader_of(shards, num_packs=11, **HF) as loader:
        trainer = trainer_of(loader, tmp_path / "later", **options)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert trainer.model.seen == batches[2 * accumulated :]


def test_transformers_trainer_takes_the_newest_checkpoint_that_was_written_to_its_end(
    shards: list[str], tmp_path: Path
) -> None:
    with loader_of(shards, **HF) as loader:
        batches = [batch["input_ids"].tolist() for batch in itertools.islice(loader, 6)]
    seen = []
    for steps, killed in ((4, "checkpoint-4"), (6, None)):
        with loader_of(shards, **HF) as loader:
            trainer = trainer_of(loader, tmp_path, max_steps=steps, ignore_data_skip=True)
            trainer.train(resume_from_checkpoint=True)
        seen.append(trainer.model.seen)
        if killed is not None:  # as by a kill before the last file
            (tmp_path / killed / "loader.pt").unlink()
    assert seen == [batches[:4], batches[2:6]]


def test_transformers_trainer_needs_a_checkpoint_that_has_the_loaders_state(shards: list[str], tmp_path: Path) -> None:
    with loader_of(shards, **HF) as loader:
        trainer_of(loader, tmp_path, max_steps=2, adapted=False).train()
    with loader_of(shards, **HF) as loader:
        trainer = trainer_of(loader, tmp_path, max_steps=4, ignore_data_skip=True)
        with pytest.raises(StateError, match=r"checkpoint-2/loader.pt does not exist"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_transformers_trainer_may_not_replay_batches(shards: list[str], tmp_path: Path) -> None:
    with loader_of(shards, **HF) as loader:
        trainer_of(loader, tmp_path, max_steps=2, adapted=False).train()
    with loader_of(shards, **HF) as loader:
        with pytest.raises(ConfigError, match="set ignore_data_skip=True in TrainingArguments"):
            trainer_of(loader, tmp_path, max_steps=4)
        bare = trainer_of(loader, tmp_path, max_steps=4, adapted=False)
        with pytest.raises(LoaderError, match="set ignore_data_skip=True"):
            bare.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


# --- its evaluation


def llama_trainer(place: Path, *, steps: int = 2, **options: Any) -> Any:
    """A Trainer with a tiny model of its library; `options` are loaders."""
    transformers = pytest.importorskip("transformers")

    class PackedTrainer(PackedTrainerMixin, transformers.Trainer):
        pass

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    # So far apart that batches have losses that differ.
    begin = {"vocab_size": ByteTokenizer().vocab_size, "max_position_embeddings": 32, "initializer_range": 0.5}
    config = transformers.LlamaConfig(**begin, **sizes)
    arguments = transformers.TrainingArguments(
        str(place),
        max_steps=steps,
        ignore_data_skip=True,
        eval_strategy="steps" if "eval_loader" in options else "no",
        eval_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    return PackedTrainer(transformers.LlamaForCausalLM(config), arguments, **options)


def held_out(shards: list[str], batch_size: int = 4, **options: Any) -> streampack.PackedDataLoader:
    hold_out = streampack.HoldOut("val", fraction=0.3)
    dataset = streampack.PackedDataset(shards, ByteTokenizer(), 32, hold_out=hold_out)
    return streampack.PackedDataLoader(dataset, batch_size, num_workers=0, format="hf", **options)


def loss_of_a_target(model: Any, loader: streampack.PackedDataLoader) -> float:
    """By hand: the sum over all batches, divided once."""
    model.eval()
    loss, targets = 0.0, 0
    with torch.no_grad():
        for batch in loader:
            logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
            rows, labels = logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
            loss += torch.nn.functional.cross_entropy(rows, labels, reduction="sum").item()
            targets += int(batch["num_targets"].sum())
    return loss / targets


def test_transformers_trainer_evaluates_on_a_loader_every_n_steps(shards: list[str], tmp_path: Path) -> None:
    with loader_of(shards, **HF) as loader, held_out(shards) as val:
        trainer = llama_trainer(tmp_path, loader=loader, eval_loader=val)
        expected = [loss_of_a_target(trainer.model, val)]
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected[0], rel=1e-5)
        trainer.train()
        during = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        last = loss_of_a_target(trainer.model, val)
        assert len(during) == 2
        assert during[-1] == pytest.approx(last, rel=1e-5) != pytest.approx(expected[0], rel=1e-5)
        again = trainer.evaluate(metric_key_prefix="test")
        assert again["test_loss"] == during[-1]
        assert again["test_runtime"] * again["test_samples_per_second"] == pytest.approx(len(val) * 4, rel=0.02)
        following = next(iter(loader))["input_ids"]
    with loader_of(shards, **HF) as loader:
        assert following.equal(list(itertools.islice(loader, 3))[2]["input_ids"]), "an evaluation moves nothing"


def test_transformers_trainer_evaluates_on_loaders_by_name(shards: list[str], tmp_path: Path) -> None:
    with loader_of(shards, **HF) as loader, held_out(shards[:2]) as one, held_out(shards[2:]) as other:
        trainer = llama_trainer(tmp_path, loader=loader, eval_loader={"one": one, "other": other})
        found = trainer.evaluate()
        assert found["eval_one_loss"] == pytest.approx(loss_of_a_target(trainer.model, one), rel=1e-5)
        assert found["eval_other_loss"] == trainer.evaluate(other)["eval_loss"] != found["eval_one_loss"]


def test_a_rank_without_packs_in_a_batch_adds_nothing_to_transformers_loss(shards: list[str], tmp_path: Path) -> None:
    """Of packs that 4 ranks cannot divide, some have one less: a batch of fillers, whose mean loss is no number."""
    sums, fillers = [], []
    with loader_of(shards, **HF) as loader, held_out(shards) as val:
        trainer = llama_trainer(tmp_path, loader=loader)
        whole = loss_of_a_target(trainer.model, val)
        num_ranks = 4
        for rank in range(num_ranks):
            trainer.accelerator.reduce = lambda both: sums.append(both) or both
            with held_out(shards, 1, dp_rank=rank, dp_size=num_ranks) as part:
                trainer.evaluate(part)
                fillers.append(sum(not batch["num_targets"].sum() for batch in part))
    assert any(fillers)
    loss, targets = sum(sums).tolist()
    assert loss / targets == pytest.approx(whole, rel=1e-5)


def test_what_has_no_end_is_no_evaluation(shards: list[str], tmp_path: Path) -> None:
    with loader_of(shards, **HF) as loader, held_out(shards) as val:
        with pytest.raises(ConfigError, match=r"an evaluation reads eval_loader to its end .*HoldOut\(.val., "):
            llama_trainer(tmp_path, loader=loader, eval_loader=loader)
        with pytest.raises(ConfigError, match=r"eval_loader=PackedDataLoader\(dataset, batch_size, format=.hf.\)"):
            llama_trainer(tmp_path, loader=loader, eval_loader=val.dataset)
