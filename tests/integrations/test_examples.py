"""The examples, run as their users run them: killed with SIGKILL and started again, they are the run without a kill.

An example writes a line for each step into a pipe that holds one line (Linux's packet mode, and a single page), so it
is never more than one line ahead of its test: it is killed where the test says, on a machine of any speed.
"""

import fcntl
import importlib
import os
import re
import select
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.processes import PROGRAMS, Job, launcher, needs_proc
from torch.nn.functional import one_hot

pytestmark = needs_proc

STEPS, CHECKPOINT_EVERY, KILL_AFTER = 15, 5, 7
"""Killed two steps behind a checkpoint, at least two before the next: the steps since the checkpoint come twice."""

Steps = dict[int, tuple[float, str]]
"""Step -> its loss and the digest of its batch."""


class Example(Job):
    """A process that is at most one line ahead of whoever reads its lines."""

    def __init__(self, command: list[str | Path], *, log: Path) -> None:
        self._lines, stdout = os.pipe2(os.O_DIRECT)  # each write is a packet of its own
        fcntl.fcntl(stdout, fcntl.F_SETPIPE_SZ, 4096)  # and there is room for one
        try:
            self._start(command, log=log, stdout=stdout)
        finally:
            os.close(stdout)

    def steps(self, *, until: int | None, deadline_s: float) -> Steps:
        """The steps up to `until`, or all that there are before the process ends."""
        found: Steps = {}
        give_up, rest = time.monotonic() + deadline_s, b""
        while until not in found:
            if not select.select([self._lines], [], [], max(give_up - time.monotonic(), 0))[0]:
                pytest.fail(f"step {max(found, default=0)} was the last one in {deadline_s} s:\n{self.output}")
            data = os.read(self._lines, 4096)
            if not data:
                assert until is None, f"the example ended before step {until}:\n{self.output}"
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if step := re.fullmatch(r"step (\d+) loss (\S+) batch ([0-9a-f]{8})", line.decode()):
                    assert int(step[1]) not in found, f"step {step[1]} came twice in one run"
                    found[int(step[1])] = float(step[2]), step[3]
        return found

    def kill(self) -> None:
        super().kill()
        if self._lines >= 0:
            os.close(self._lines)
            self._lines = -1


Run = Callable[..., Steps]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run an example, or a program of the tests, to its end; or kill it all when it has printed step `kill_after`."""
    count = 0

    def start(name: str, *arguments: str | Path, ranks: int | None = None, kill_after: int | None = None) -> Steps:
        nonlocal count
        count += 1
        python = [sys.executable] if ranks is None else launcher(ranks)
        program = [PROGRAMS / name] if name.endswith(".py") else ["-m", f"streampack.examples.{name}"]
        command = [*python, *program, *arguments]
        with Example(command, log=tmp_path / f"log{count}") as example:
            found = example.steps(until=kill_after)
            if kill_after is None:
                code = example.wait(20)
                assert code == 0, f"the example ended with {code}; it said:\n{example.output}"
        return found

    return start


def assert_goes_on_exactly(
    run: Run, name: str, whole: str | Path, killed: str | Path, *options: str, **how: Any
) -> None:
    """Two runs, one with a kill and a second start with the same command, have the same losses and batches."""
    expected = run(name, whole, *options, **how)
    assert list(expected) == list(range(1, STEPS + 1))
    assert len({digest for _, digest in expected.values()}) == STEPS, "each step has a batch of its own"
    first = run(name, killed, *options, **how, kill_after=KILL_AFTER)
    second = run(name, killed, *options, **how)
    assert first == {step: expected[step] for step in range(1, KILL_AFTER + 1)}
    assert second == {step: expected[step] for step in range(CHECKPOINT_EVERY + 1, STEPS + 1)}


COUNTS = (f"--steps={STEPS}", f"--checkpoint-every={CHECKPOINT_EVERY}")


def test_pytorch_with_fsdp2_goes_on_exactly_after_a_kill(run: Run, tmp_path: Path) -> None:
    assert_goes_on_exactly(run, "pytorch_fsdp2", tmp_path / "whole", tmp_path / "killed", *COUNTS, ranks=2)


def test_pytorch_with_fsdp2_has_the_same_batches_when_it_goes_on_with_fewer_processes(run: Run, tmp_path: Path) -> None:
    whole = run("pytorch_fsdp2", tmp_path / "whole", *COUNTS, "--workers=0")
    first = run("pytorch_fsdp2", tmp_path / "moved", *COUNTS, ranks=2, kill_after=KILL_AFTER)
    second = run("pytorch_fsdp2", tmp_path / "moved", *COUNTS)
    assert min(second) == CHECKPOINT_EVERY + 1
    for step, (loss, batch) in (first | second).items():
        assert batch == whole[step][1]
        assert loss == pytest.approx(whole[step][0], rel=1e-4), "only the order of additions differs"


@pytest.mark.parametrize(("batch_format", "ranks"), [("hf", 2), ("hf_flash", None)])
def test_transformers_trainer_goes_on_exactly_after_a_kill(
    run: Run, tmp_path: Path, batch_format: str, ranks: int | None
) -> None:
    pytest.importorskip("transformers")
    options = *COUNTS, f"--format={batch_format}"
    assert_goes_on_exactly(run, "transformers_trainer", tmp_path / "whole", tmp_path / "killed", *options, ranks=ranks)


def test_lightning_goes_on_exactly_after_a_kill(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    options = *COUNTS, "--devices=2"
    assert_goes_on_exactly(run, "lightning_trainer", tmp_path / "whole", tmp_path / "killed", *options)


def test_a_torchtune_recipe_goes_on_exactly_after_a_kill(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("torchtune", exc_type=ImportError)
    whole, killed = (f"output_dir={tmp_path / name}" for name in ("whole", "killed"))
    options = f"epochs={STEPS // CHECKPOINT_EVERY}", f"dataset.batches_per_epoch={CHECKPOINT_EVERY}"
    assert_goes_on_exactly(run, "torchtune_recipe", whole, killed, *options)


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


def test_torchtitans_trainer_goes_on_exactly_after_a_kill(run: Run, tmp_path: Path) -> None:
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
