"""The commands of README's table of trainers, word for word, in an empty folder."""

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from support.processes import needs_proc

README = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
COMMANDS = re.findall(r"`((?:python|torchrun) [^`]+RUN[^`]*)`", README)
NEEDS = {
    "transformers_trainer": "transformers",
    "lightning_trainer": "pytorch_lightning",
    "torchtune_recipe": "torchtune",
}
"""Example -> the library that it needs besides torch."""

pytestmark = needs_proc


def test_there_is_a_command_for_each_example() -> None:
    examples = set(re.findall(r"streampack\.examples\.(\w+)", " ".join(COMMANDS)))
    assert examples == {*NEEDS, "pytorch_fsdp2", "torchtitan_loader"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_trains_to_its_end(command: str, tmp_path: Path) -> None:
    for example, library in NEEDS.items():
        if example in command and find_spec(library) is None:
            pytest.skip(f"needs {library}")
    if "torchtitan" in command and (find_spec("torchtitan") is None or not torch.cuda.is_available()):
        pytest.skip("needs torchtitan and accelerators")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        shlex.split(command),
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    steps = [int(step) for step in re.findall(r"step (\d+) loss \S+ batch [0-9a-f]{8}", done.stdout)]
    assert sorted(set(steps)) == list(range(1, len(set(steps)) + 1)), done.stdout
    assert len(steps) >= 20
    assert any((tmp_path / "RUN").iterdir()), "its checkpoints"
