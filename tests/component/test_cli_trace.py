"""`streampack trace`: the documents that it names are those of the batch, whatever state it begins from."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.thorough import nightly
from support.traces import MODEL, check_pack, write_run
from typer.testing import CliRunner, Result

from streampack import PackedDataLoader, relane
from streampack.cli import app
from streampack.state.joining import to_json


def run(*args: object) -> Result:
    return CliRunner(env={"COLUMNS": "140"}).invoke(app, ["trace", *map(str, args)])


def trace(*args: object) -> list[dict[str, Any]]:
    result = run(*args, "--json")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    packs: list[dict[str, Any]] = json.loads(result.stdout)["packs"]
    return packs


def said(result: Result) -> str:
    assert result.exit_code == 1, result.output
    return " ".join(result.stderr.split())


Handed = tuple[Path, list[Mapping[str, Any]]]


@pytest.fixture(scope="module")
def handed(tmp_path_factory: pytest.TempPathFactory) -> Handed:
    """A config, and its batches of 7 packs; beside it the state after 6 of them, in each form."""
    config = write_run(tmp_path_factory.mktemp("trace"))
    with PackedDataLoader.from_config(str(config)) as loader:
        loader.num_workers, loader.batch_size = 0, 7
        batches = []
        for number, batch in enumerate(loader):
            batches.append(batch)
            if number == 5:
                state = loader.state_dict()
        assert loader.stats()["bad_records"] > 0
    (config.parent / "state.json").write_text(to_json(state))
    torch.save({"step": 6, "loader": state}, config.parent / "state.pt")
    with warnings.catch_warnings(action="ignore"):  # torch: that there are no other ranks
        dcp.save({"train": {"loader": state}}, checkpoint_id=config.parent / "state")
    return config, batches


@pytest.mark.parametrize("step", [13, 43, *nightly([0, 12, 24, 25])])
def test_the_documents_of_a_batch_are_found_where_the_trace_says(step: int, handed: Handed) -> None:
    config, batches = handed
    batch = batches[step]["tokens"].tolist()
    packs = trace(config, "--step", step, "--global-batch", 7)
    short = {13: 5, 43: 1}  # before seq_len changes, and at the end of the run
    assert [pack["row"] for pack in packs] == list(range(short.get(step, 7)))
    for row, pack in enumerate(packs):
        check_pack(batch[row], pack)
        assert pack["num_targets"] == (batches[step]["labels"][row] != -100).sum()
        assert sum(segment["targets"] for segment in pack["segments"]) == pack["num_targets"]


@pytest.mark.parametrize("form", ["state.json", "state", *nightly(["state.pt"])])
def test_from_a_state_it_is_the_same(form: str, handed: Handed) -> None:
    config, _ = handed
    asked = (config, "--step", 30, "--global-batch", 7, "--row", 3)
    assert trace(*asked, "--state", config.parent / form) == trace(*asked)


def test_after_a_resume_with_another_batch_a_batch_is_named_by_its_first_pack(handed: Handed) -> None:
    config, _ = handed
    state = config.parent / "state.pt"  # at pack 42
    with PackedDataLoader.from_config(str(config)) as loader:
        loader.num_workers, loader.batch_size = 0, 5
        loader.load_state_dict(torch.load(state, weights_only=True)["loader"])
        batches = iter(loader)
        next(batches)
        begin = loader.progress()["packs"]
        batch = next(batches)["tokens"].tolist()
    packs = trace(config, "--pack", begin, "--global-batch", 5, "--state", state)
    assert [(pack["global_pack"], pack["row"], pack["step"]) for pack in packs] == [(47 + n, n, None) for n in range(5)]
    for tokens, pack in zip(batch, packs, strict=True):
        check_pack(tokens, pack)
    [one] = trace(config, "--pack", begin, "--global-batch", 5, "--row", 3)
    assert one == packs[3]
    assert "pack 50 = row 3 of the batch = " in run(config, "--pack", 47, "--global-batch", 5, "--row", 3).stdout
    by_step = [str(config), "--step", "9", "--global-batch", "5", "--state", str(state)]
    for command in ("trace", "peek"):
        error = said(CliRunner().invoke(app, [command, *by_step]))
        assert "the state is at global pack 42, where no batch begins if all have 5 packs from pack 0 on" in error
        assert "`streampack trace --pack PACK --global-batch 5`, or `streampack peek --skip`" in error


def test_a_state_after_the_pack_is_an_error(handed: Handed) -> None:
    config, _ = handed
    error = said(run(config, "--pack", 41, "--state", config.parent / "state.pt"))
    assert "the state is at global pack 42, after pack 41, and lanes cannot go back" in error
    assert "Give a checkpoint that was saved before that pack, or none" in error


def test_a_run_with_another_number_of_lanes_is_traced_from_its_state(handed: Handed, tmp_path: Path) -> None:
    config, relaned, later = tmp_path / "run.yaml", tmp_path / "relaned.json", tmp_path / "later.json"
    config.write_text(handed[0].read_text().replace("num_lanes: 12", "num_lanes: auto"))
    with PackedDataLoader.from_config(str(config)) as loader:
        relaned.write_text(to_json(relane(handed[0].parent / "state.json", loader.dataset, 10)))
        loader.num_workers, loader.batch_size = 0, 7
        loader.load_state_dict(json.loads(relaned.read_text()))
        batches = iter(loader)
        batch = next(batches)["tokens"].tolist()
        later.write_text(to_json(loader.state_dict()))
    packs = trace(config, "--pack", 42, "--global-batch", 7, "--state", relaned)
    for tokens, pack in zip(batch, packs, strict=True):
        check_pack(tokens, pack)
    peeked = CliRunner().invoke(app, ["peek", str(config), "--state", str(later), "--json", "-n", "1"])
    assert json.loads(peeked.stdout)["num_lanes"] == 10
    for state in (relaned, later):
        error = said(run(config, "--pack", 41, "--state", state))
        assert "before that pack, with the num_lanes that the config had then: up to pack 42 the run had" in error
    error = said(run(config, "--pack", 48, "--state", later))
    assert "before that pack, and from pack 42 on, since which the run has these 10 lanes" in error


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ([], "give one of --pack and --step"),
        (["--pack", 1, "--step", 1], "give one of --pack and --step"),
        (["--pack", 1, "--row", 1], "--row needs --global-batch"),
        (["--pack", 1, "--global-batch", 7, "--row", 7], "--row 7: the batch from pack 1 on has 7 packs"),
        (["--pack", 300, "--global-batch", 7], "there is no pack 300: the run has 300 packs"),
        (["--pack", 1, "--exclude-lines", "--json"], "--exclude-lines prints nothing but its lines, without --json"),
        (["--pack", 1, "--exclude-lines", "--text"], "leave those out, or run twice"),
        (["--step", 1], "--step needs --global-batch: the packs of a batch over all ranks"),
        (["--pack", 300], "there is no pack 300: the run has 300 packs, 0 to 299"),
        (["--step", 44, "--global-batch", 7], "there is no step 44: the run has 300 packs"),
        (["--step", 1, "--global-batch", 7, "--row", 7], "--row 7: the batch of step 1 has 7 packs, rows count from 0"),
        (["--pack", 1, "--state", "nowhere"], "--state nowhere cannot be read: No such file or directory. Give the"),
        (["--pack", 1, "--state", __file__], "cannot be read: Extra data: line 1 column 3 (char 2). Give the"),
    ],
)
def test_what_cannot_be_traced_is_an_error(args: list[object], error: str, handed: Handed) -> None:
    assert error in said(run(handed[0], *args))


def test_a_file_without_a_state_is_an_error(handed: Handed, tmp_path: Path) -> None:
    other = tmp_path / "model.json"
    other.write_text('{"model": {"weight": 1}}')
    assert f"--state {other} has no states of a loader, not one" in said(run(handed[0], "--pack", 1, "--state", other))


def test_the_table_names_pack_documents_and_shards(handed: Handed) -> None:
    config, _ = handed
    [pack] = trace(config, "--step", 14, "--global-batch", 7, "--row", 2, "--text")
    shown = run(config, "--step", 14, "--global-batch", 7, "--row", 2, "--text").stdout
    first, *_, last = shown.splitlines()
    assert last.startswith("step 14 is counted from pack 0 on, in batches of 7 packs; if the run had others before")
    number = pack["global_pack"]
    where = f"row 2 of step 14 = pack {number // 12} of lane {number % 12}, stage 1, source {pack['source']}"
    assert first.startswith(f"pack {number} = {where} ──")
    for segment in pack["segments"]:
        assert segment["key"] in shown
        assert segment["shard"] in shown
        assert segment["text"].split("↵")[0].replace(" ", "") in "".join(shown.split())


def test_a_place_without_a_pack_is_a_filler(tmp_path: Path) -> None:
    config = write_run(tmp_path, packs=2000)
    config.write_text(config.read_text().replace("{data: ", "{max_epochs: 1, data: "))
    lanes_9_and_10 = (config, "--pack", 657, "--global-batch", 2)
    filler, pack = trace(*lanes_9_and_10)
    assert (filler["source"], filler["segments"], filler["lane_ended_after"]) == (None, [], 25)
    assert pack["segments"] and pack["lane_ended_after"] is None
    assert "a filler, which is all padding: lane 9 has ended, with no more than 25 packs" in run(*lanes_9_and_10).stdout
    error = said(run(config, "--pack", 1999))
    assert "pack 1,999 comes after the end of its lane: lane 7 has no more than 24 packs. A run with" in error
    error = said(run(config, "--pack", 651, "--global-batch", 2))
    assert "packs 651 to 652 come after the ends of their lanes: lane 3 has no more than 26 packs. A run" in error


def test_labels_are_those_of_the_loaders_format(handed: Handed, tmp_path: Path) -> None:
    config = tmp_path / "hf.yaml"
    config.write_text(handed[0].read_text() + "loader: {format: hf}\n")
    [pack] = trace(handed[0], "--pack", 5)
    [shifted] = trace(config, "--pack", 5)
    assert shifted["num_targets"] == pack["num_targets"] - 1


@pytest.mark.parametrize("course", ["", "  num_packs: 20"])
def test_packs_of_a_validation_set_are_found_by_their_numbers(course: str, tmp_path: Path) -> None:
    config = write_run(tmp_path)
    config.write_text(
        f"dataset:\n{config.read_text().partition('  stages:')[0].partition('dataset:')[2]}"
        f"  tokenizer: {MODEL}\n  seq_len: 64\n  hold_out: {{part: val, fraction: 0.1}}\n  on_error: skip\n{course}\n"
    )
    with PackedDataLoader.from_config(str(config)) as loader:
        loader.num_workers, loader.batch_size = 0, 1000
        [batch] = loader
    rows = [row for row, labels in zip(batch["tokens"].tolist(), batch["labels"], strict=True) if any(labels != -100)]
    packs = trace(config, "--pack", 0, "--global-batch", 1000)
    assert [pack["global_pack"] for pack in packs] == list(range(len(rows)))
    assert {pack["source"] for pack in packs} == {"web", "code"}
    for tokens, pack in zip(rows, packs, strict=True):
        check_pack(tokens, pack)
    assert trace(config, "--pack", 5, "--global-batch", 9, "--row", 7) == [{**packs[12], "row": 7}]
    assert trace(config, "--pack", 12) == [{**packs[12], "row": None}]
    assert f"the validation set has {len(rows)} packs, from 0 on" in said(run(config, "--pack", len(rows)))


def test_of_a_training_config_the_held_out_part_is_traced(handed: Handed) -> None:
    config, _ = handed
    [pack] = trace(config, "--part", "val", "--pack", 3)
    assert pack["segments"]
    for args, error in [
        (["--step", 1, "--global-batch", 4], "give --pack in place of --step: which batch a pack of a validation set"),
        (["--pack", 1, "--state", config.parent / "state.pt"], "--state is of a training run, and this is a"),
        (["--pack", 1, "--global-batch", 2, "--row", 2], "--row 2: from pack 1 on there are 2 packs, from row 0 on"),
    ]:
        assert error in said(run(config, "--part", "val", *args))
