"""The demo as a user runs it: a training killed and resumed elsewhere; and that the demo can fail."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from support.thorough import long
from typer.testing import CliRunner

from streampack.cli import app
from streampack.cli.demo.attempts import read_attempts
from streampack.cli.demo.training import Training
from streampack.cli.demo.verdict import judge, make_reference
from streampack.errors import StreampackError
from streampack.examples.train import PACKS_PER_STEP, Transformer

STEPS = 12
needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")


class Demo(NamedTuple):
    report: dict[str, Any]
    folder: Path
    temporary: Path
    left: list[int]
    """Processes that are still there after it."""


def processes(mark: str) -> list[int]:
    """Living processes whose environment holds a mark, whatever session they moved to."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:  # the environment of a process that has ended and was not waited for is empty
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:  # gone meanwhile, or of another user
            continue
    return found


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "streampack.cli", "demo", *map(str, arguments)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The demo, once, in a process of its own; its logs and checkpoints are kept for the other tests."""
    folder, temporary = tmp_path_factory.mktemp("demo") / "kept", tmp_path_factory.mktemp("temporary")
    mark = uuid.uuid4().hex
    done = subprocess.run(
        command("--json", "--steps", str(STEPS), "--keep", folder),
        env={**os.environ, "TMPDIR": str(temporary), "STREAMPACK_TEST": mark},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Demo(json.loads(done.stdout), folder, temporary, processes(mark))


def check(folder: Path, *arguments: str) -> tuple[int, Any]:
    """Exit code and report of the demo that trains nothing."""
    result = CliRunner().invoke(app, ["demo", "--json", "--check", str(folder), *arguments])
    return result.exit_code, json.loads(result.stdout)


def test_every_pack_of_the_killed_and_resumed_run_is_the_one_of_a_run_without_a_stop(demo: Demo) -> None:
    report = demo.report
    assert (report["ok"], report["resumed"], report["same_packs"], report["loss_fell"]) == (True, True, True, True)
    killed, resumed = report["attempts"]
    assert (killed["ranks"], killed["workers"], resumed["ranks"], resumed["workers"]) == (2, 2, 1, 3)
    assert killed["first_step"] == 1
    assert 1 < resumed["first_step"] <= killed["last_step"] < resumed["last_step"] == STEPS
    assert report["repeated_steps"] == list(range(resumed["first_step"], killed["last_step"] + 1))
    assert report["num_packs"] == STEPS * PACKS_PER_STEP
    # The kill may come when one of two ranks has not logged its half of the last step.
    again = len(report["repeated_steps"]) * PACKS_PER_STEP
    assert report["packs_compared"] - report["num_packs"] in (again, again - PACKS_PER_STEP // 2)
    assert report["differing_packs"] == report["missing_packs"] == []
    assert report["loader_digest"] == report["reference_digest"]
    assert report["last_loss"] < report["first_loss"] < 8
    assert [step["step"] for step in report["steps"]] == list(range(1, STEPS + 1))
    assert all(step["same"] for step in report["steps"])
    assert len({step["reference_digest"] for step in report["steps"]}) == STEPS


@needs_proc
def test_no_process_and_no_temporary_file_outlives_the_demo(demo: Demo) -> None:
    assert demo.left == []
    assert list(demo.temporary.iterdir()) == []


def test_a_reference_of_another_seed_makes_the_demo_fail(demo: Demo) -> None:
    code, report = check(demo.folder, "--seed", "1")
    assert (code, report["ok"], report["same_packs"], report["loss_fell"]) == (1, False, False, True)
    assert len(report["differing_packs"]) > report["num_packs"] // 2
    assert report["loader_digest"] != report["reference_digest"]


def test_what_was_kept_can_be_checked_again_and_read_as_text(demo: Demo) -> None:
    assert check(demo.folder)[0] == 0
    result = CliRunner().invoke(app, ["demo", "--check", str(demo.folder)])
    assert result.exit_code == 0
    assert "The global batches were the same, bit for bit." in result.stdout
    assert "\x1b" not in result.stdout, "no colour where there is no terminal"
    assert result.stdout.count("equal") == STEPS
    assert CliRunner().invoke(app, ["demo", "--check", str(demo.folder), "--seed", "1"]).exit_code == 1


Change = Callable[[list[str]], list[str]]


@pytest.mark.parametrize(
    ("change", "same", "differing", "missing"),
    [
        pytest.param(lambda lines: lines, True, [], [], id="nothing"),
        # A line cut off by the kill is no evidence of anything.
        pytest.param(lambda lines: [*lines, lines[0][:40]], True, [], [], id="half a line more"),
        # The last step is the resumed run's alone.
        pytest.param(lambda lines: lines[:-1], False, [], list(range(88, 96)), id="a step less"),
        pytest.param(lambda lines: [*lines[:-1], _with_another_pack(lines[-1])], False, [88], [], id="another pack"),
    ],
)
def test_one_odd_pack_is_found(
    demo: Demo, tmp_path: Path, change: Change, same: bool, differing: list[int], missing: list[int]
) -> None:
    folder = shutil.copytree(demo.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("step-*"))
    (log,) = folder.glob("log-*-of-1.jsonl")
    log.write_text("".join(change(log.read_text().splitlines(keepends=True))))
    verdict = judge(read_attempts(folder), make_reference(STEPS, seed=0))
    assert (verdict.ok, verdict.differing_packs, verdict.missing_packs) == (same, differing, missing)


def _with_another_pack(line: str) -> str:
    entry = json.loads(line)
    entry["packs"]["88"], entry["packs"]["89"] = entry["packs"]["89"][::-1], entry["packs"]["89"]
    return json.dumps(entry) + "\n"


def test_a_run_that_starts_over_is_no_resume(demo: Demo, tmp_path: Path) -> None:
    for log in demo.folder.glob("log-*"):
        shutil.copy(log, tmp_path / log.name)
    (resumed,) = tmp_path.glob("log-*-of-1.jsonl")
    (killed,) = tmp_path.glob("log-*-rank-0-of-2.jsonl")
    begun = [json.dumps(json.loads(line) | {"ranks": 1}) for line in killed.read_text().splitlines()]
    resumed.write_text("\n".join([*begun[:4], resumed.read_text()]))
    verdict = judge(read_attempts(tmp_path), make_reference(STEPS, seed=0))
    assert (verdict.same_packs, verdict.resumed, verdict.ok) == (True, False, False)


def test_a_loss_that_does_not_fall_makes_the_demo_fail(demo: Demo, tmp_path: Path) -> None:
    for log in demo.folder.glob("log-*"):
        flat = [json.dumps(json.loads(line) | {"loss": 7.0}) + "\n" for line in log.read_text().splitlines()]
        (tmp_path / log.name).write_text("".join(flat))
    code, report = check(tmp_path)
    assert (code, report["same_packs"], report["loss_fell"]) == (1, True, False)


def test_the_demo_keeps_nothing_in_a_folder_that_has_something(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("")
    result = CliRunner().invoke(app, ["demo", "--keep", str(tmp_path)])
    assert result.exit_code == 1
    assert "the folder must be new or empty" in result.stderr


def test_a_folder_without_logs_is_no_run_that_could_be_checked(tmp_path: Path) -> None:
    with pytest.raises(StreampackError, match="holds no log of a training"):
        read_attempts(tmp_path)


def test_what_a_training_said_before_it_failed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\necho not today\nexit 3\n")
    failing.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(failing))
    training = Training(tmp_path, ranks=1, workers=1, num_steps=1, checkpoint_every=1, seed=0)
    with training, pytest.raises(StreampackError, match=r"on 1 rank ended with exit code 3; it said:\nnot today"):
        list(training.steps())


@long
def test_a_training_that_fails_says_why(tmp_path: Path) -> None:
    in_the_way = tmp_path / "a file"
    in_the_way.write_text("")
    training = Training(in_the_way, ranks=1, workers=1, num_steps=1, checkpoint_every=1, seed=0)
    with (
        training,
        pytest.raises(StreampackError, match=r"on 1 rank ended with exit code 1; it said:\n(?s:.*)FileExist"),
    ):
        list(training.steps())


@long
@needs_proc
def test_a_demo_that_is_told_to_end_leaves_nothing(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    kept, temporary = tmp_path / "kept", tmp_path / "temporary"
    temporary.mkdir()
    with subprocess.Popen(
        command("--json", "--keep", kept),
        env={**os.environ, "TMPDIR": str(temporary), "STREAMPACK_TEST": mark},
        stdout=subprocess.DEVNULL,
    ) as process:
        give_up = time.monotonic() + 60
        while not list(kept.glob("log-*")):
            assert time.monotonic() < give_up
            assert process.poll() is None
            time.sleep(0.1)
        assert len(processes(mark)) > 3, "the demo, the launcher and the ranks"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert processes(mark) == []
    assert list(temporary.iterdir()) == []


@pytest.fixture
def model() -> Iterator[Transformer]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield Transformer(50, 16, width=16, num_layers=2, num_heads=2)


def batch(*lengths: int) -> dict[str, torch.Tensor]:
    tokens = torch.randint(0, 50, (1, sum(lengths)), generator=torch.Generator().manual_seed(1))
    segments = torch.cat([torch.full((length,), index + 1) for index, length in enumerate(lengths)])
    positions = torch.cat([torch.arange(length) for length in lengths])
    return {"tokens": tokens, "segment_ids": segments[None], "position_ids": positions[None]}


def test_the_example_looks_neither_into_other_documents_nor_ahead(model: Transformer) -> None:
    packed = batch(5, 7, 4)
    logits = model(packed)
    alone = model({name: rows[:, 5:12] for name, rows in packed.items()})
    assert torch.allclose(logits[:, 5:12], alone, atol=1e-5)
    changed = {**packed, "tokens": packed["tokens"].clone()}
    changed["tokens"][0, 9] += 1
    differs = (model(changed) - logits).abs().amax(dim=-1)[0] > 1e-5
    assert differs.nonzero().flatten().tolist() == [9, 10, 11]
