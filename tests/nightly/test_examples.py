"""The examples again: by torchrun and Lightning's own launcher, in other formats, on fewer processes after a kill."""

from pathlib import Path

import pytest
from support.examples import CHECKPOINT_EVERY, COUNTS, KILL_AFTER, STEPS, Runs, assert_goes_on_exactly
from support.processes import needs_proc

pytestmark = needs_proc


@pytest.fixture
def run(tmp_path: Path) -> Runs:
    return Runs(tmp_path, by_torchrun=True)


@pytest.mark.parametrize(
    ("name", "options", "ranks"),
    [
        ("pytorch_fsdp2", (), 2),
        ("transformers_trainer", ("--format=hf",), 2),
        ("transformers_trainer", ("--format=hf_flash",), None),
        ("lightning_trainer", ("--devices=2",), None),
    ],
)
def test_an_example_goes_on_exactly_after_a_kill(
    run: Runs, tmp_path: Path, name: str, options: tuple[str, ...], ranks: int | None
) -> None:
    libraries = {"pytorch_fsdp2": "torch", "lightning_trainer": "pytorch_lightning"}
    pytest.importorskip(libraries.get(name, "transformers"))
    assert_goes_on_exactly(run, name, tmp_path / "whole", tmp_path / "killed", *COUNTS, *options, ranks=ranks)


def test_pytorch_with_fsdp2_has_the_same_batches_when_it_goes_on_with_fewer_processes(
    run: Runs, tmp_path: Path
) -> None:
    whole = run("pytorch_fsdp2", tmp_path / "whole", *COUNTS, "--workers=0")
    first = run("pytorch_fsdp2", tmp_path / "moved", *COUNTS, ranks=2, kill_after=KILL_AFTER)
    second = run("pytorch_fsdp2", tmp_path / "moved", *COUNTS)
    assert min(second) == CHECKPOINT_EVERY + 1
    for step, (loss, batch) in (first | second).items():
        assert batch == whole[step][1]
        assert loss == pytest.approx(whole[step][0], rel=1e-4), "only the order of additions differs"


def test_a_torchtune_recipe_goes_on_exactly_after_a_kill(run: Runs, tmp_path: Path) -> None:
    pytest.importorskip("torchtune", exc_type=ImportError)
    whole, killed = (f"output_dir={tmp_path / name}" for name in ("whole", "killed"))
    options = f"epochs={STEPS // CHECKPOINT_EVERY}", f"dataset.batches_per_epoch={CHECKPOINT_EVERY}"
    assert_goes_on_exactly(run, "torchtune_recipe", whole, killed, *options)
