"""Examples as processes that are killed with SIGKILL and started again: they are the run without a kill.

The other trainers' examples are in tests/nightly/test_examples.py.
"""

import importlib
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.examples import CHECKPOINT_EVERY, COUNTS, STEPS, Runs, assert_goes_on_exactly
from support.processes import needs_proc
from support.thorough import long
from torch.nn.functional import one_hot

pytestmark = needs_proc


@pytest.fixture
def run(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


@long
def test_pytorch_with_fsdp2_goes_on_exactly_after_a_kill(run: Runs, tmp_path: Path) -> None:
    assert_goes_on_exactly(run, "pytorch_fsdp2", tmp_path / "whole", tmp_path / "killed", *COUNTS, ranks=2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torchtune's own
def test_the_torchtune_recipe_trains_each_row_on_the_label_beside_it() -> None:
    """The stock recipe of 0.6.1 shifts labels, and those of packs are shifted already."""
    loss = pytest.importorskip("torchtune.modules.loss", exc_type=ImportError).CEWithChunkedOutputLoss()
    example = importlib.import_module("streampack.examples.torchtune_recipe")
    labels = torch.tensor([[3, 1, 4, -100, 1, 5, 2, -100], [2, 6, 5, 3, 5, -100, 0, 1]])
    sure_of_them = 99.0 * one_hot(labels.clamp(min=0), 7).float()
    recipe = SimpleNamespace(
        _model=lambda **batch: list(sure_of_them.chunk(loss.num_output_chunks, dim=1)),
        _loss_fn=loss,
        activations_handling_ctx=nullcontext(),
        global_step=0,
    )
    batch = {"tokens": torch.zeros_like(labels), "labels": labels}
    assert example.PackedRecipe._loss_step(recipe, batch).item() == pytest.approx(0, abs=1e-6)


def test_torchtitans_trainer_goes_on_exactly_after_a_kill(run: Runs, tmp_path: Path) -> None:
    """Its real trainer and checkpoints, on two ranks."""
    pytest.importorskip("torchtitan.trainer", exc_type=ImportError)
    whole, killed = (f"--dump_folder={tmp_path / name}" for name in ("whole", "killed"))
    options = {
        "module": "streampack.examples.torchtitan_loader",
        "config": "llama3_demo",
        "training.steps": STEPS,
        "checkpoint.interval": CHECKPOINT_EVERY,
        "training.local_batch_size": 1,
        "training.mixed_precision_param": "float32",
        # gloo cannot do what sharding over ranks asks of NCCL; copies on both ranks it can.
        "parallelism.spmd_backend": "partial_dtensor",
        "parallelism.data_parallel_replicate_degree": 2,
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    assert_goes_on_exactly(run, "titan.py", whole, killed, *arguments, "--training.disable_cuda_graphs", ranks=2)
