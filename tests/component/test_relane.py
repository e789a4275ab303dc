"""A saved run in another number of lanes, with a loader: the same packs on every topology, from each form of state."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support.relaning import corpus
from typer.testing import CliRunner

import streampack
from streampack import PackedDataLoader, PackedDataset, Packing, Source, Stage
from streampack.cli import app
from streampack.errors import ConfigError, StateError, TopologyError
from streampack.examples.make_data import DATA
from streampack.state.joining import to_json
from streampack.testing import ByteTokenizer

PACKS = 260
Packs = dict[int, tuple[int, ...]]


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    folder = tmp_path_factory.mktemp("corpora")
    return corpus(folder / "web"), corpus(folder / "code", shards=2, seed=1)


def dataset(urls: tuple[list[str], list[str]], num_lanes: Any, **changes: Any) -> PackedDataset:
    """Two sources, of which one ends, and a stage of longer packs that has not begun at pack 62."""
    web, code = urls
    arguments = {
        "sources": {"web": Source(web, 0.5), "code": Source(code, 0.5, max_epochs=2)},
        "stages": [Stage(seq_len=32), Stage(at_packs=110, weights={"web": 0.8, "code": 0.2}, seq_len=64)],
        **changes,
    }
    return PackedDataset(
        arguments["sources"],
        ByteTokenizer(),
        num_lanes=num_lanes,
        packing=Packing("best_fit", window=4),
        stages=arguments["stages"],
        num_packs=PACKS,
        limits=changes.get("limits", streampack.Limits()),
    )


def run(data: PackedDataset, state: Mapping[str, Any], ranks: int, workers: int, batches: int | None = None) -> Any:
    """The packs of all ranks from a state on, and the state after them."""
    packs: Packs = {}
    states = []
    for rank in range(ranks):
        loader = PackedDataLoader(
            data,
            1,
            num_workers=workers,
            dp_rank=rank,
            dp_size=ranks,
            provenance=True,
            multiprocessing_context="fork" if workers else None,
        )
        with loader:
            loader.load_state_dict(state)
            for done, batch in enumerate(loader, 1):
                numbers = batch["pack_numbers"].tolist()
                packs |= {number: tuple(row) for number, row in zip(numbers, batch["tokens"].tolist(), strict=True)}
                if done == batches:
                    break
            states.append(loader.state_dict())
    packs.pop(-1, None)
    return packs, streampack.merge_state_dicts(states)


@pytest.fixture(scope="module")
def state(urls: tuple[list[str], list[str]]) -> dict[str, Any]:
    """A run of 12 lanes at global pack 62."""
    with PackedDataLoader(dataset(urls, 12), 2, num_workers=0) as loader:
        batches = iter(loader)
        for _ in range(31):
            next(batches)
        found: dict[str, Any] = json.loads(to_json(loader.state_dict()))
    return found


def test_every_topology_and_every_resume_has_the_same_packs(
    urls: tuple[list[str], list[str]], state: dict[str, Any]
) -> None:
    data = dataset(urls, "auto")
    moved = streampack.relane(state, dataset(urls, 12), 10)
    wanted, _ = run(data, moved, 1, 0)
    assert sorted(wanted) == list(range(62, PACKS))
    first, after = run(data, moved, 5, 1, 9)
    found, _ = run(data, json.loads(to_json(after)), 2, 2)
    assert first | found == wanted


def test_counts_and_progress_go_on(urls: tuple[list[str], list[str]], state: dict[str, Any]) -> None:
    moved = streampack.relane(state, dataset(urls, 12), 7)
    found = []
    for each, num_lanes in ((state, 12), (moved, 7)):
        with PackedDataLoader(dataset(urls, num_lanes), 1, num_workers=0) as loader:
            loader.load_state_dict(each)
            progress, stats = loader.progress(), loader.stats()
            found.append((progress["packs"], progress["tokens"], stats["documents"], stats["padding"], loader.digest()))
            epochs = progress["epochs"]
            if num_lanes == 12:
                before = epochs
    assert found[0] == found[1]
    assert epochs == pytest.approx(before, abs=0.35)  # by blocks, of which a lane has few here


@pytest.mark.parametrize("name", ["new.json", "new.pt", "new"])
def test_each_form_that_the_command_writes_can_be_loaded(
    urls: tuple[list[str], list[str]], tmp_path: Path, name: str
) -> None:
    config, saved, new = tmp_path / "run.yaml", tmp_path / "saved.json", tmp_path / name
    given = {"data": urls[0], "tokenizer": f"{DATA}/devil.model", "seq_len": 32, "num_lanes": "auto"}
    config.write_text(json.dumps({"dataset": given, "loader": {"batch_size": 1, "num_workers": 0}}), "utf-8")
    with PackedDataLoader.from_config(config) as loader:
        next(iter(loader))
        saved.write_text(to_json(loader.state_dict()), "utf-8")
        wanted = streampack.relane(loader.state_dict(), loader.dataset, 6)
    asked = ["relane", str(config), str(saved), "--num-lanes", "6", "-o", str(new)]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert "1 -> 6 lanes" in result.output
    assert f"written: {new}; load it with num_lanes: 6 in the config, or auto\n" in result.output
    with PackedDataLoader.from_config(config) as loader:
        if name == "new":
            loader.load_checkpoint(new)
        else:
            loader.load_state_dict(json.loads(new.read_text()) if name == "new.json" else torch.load(new))
        assert to_json(loader.state_dict()) == to_json(wanted)
    assert not list(tmp_path.glob(".*"))  # it is written beside its place
    planned = CliRunner().invoke(app, ["plan", str(config), "--state", str(new), "--json"])
    assert planned.exit_code == 0, planned.output
    plan = json.loads(planned.stdout)
    assert (plan["lanes"]["num_lanes"], plan["rank"]["lanes_per_rank"]) == (6, 6)
    assert plan["position"]["packs"] == wanted["global_pack"]
    again = CliRunner().invoke(app, asked)
    assert (again.exit_code, "is there already" in again.output) == (1, True)


def test_the_command_takes_the_number_of_lanes_of_the_config(urls: tuple[list[str], list[str]], tmp_path: Path) -> None:
    config, saved, new = tmp_path / "run.yaml", tmp_path / "saved.json", tmp_path / "new.json"
    given = {"data": urls[0], "tokenizer": f"{DATA}/devil.model", "seq_len": 32}

    def relane_to(num_lanes: object) -> Any:
        described = {"dataset": {**given, "num_lanes": num_lanes}, "loader": {"batch_size": 1, "num_workers": 0}}
        config.write_text(json.dumps(described), "utf-8")
        if not saved.exists():
            with PackedDataLoader.from_config(config) as loader:
                saved.write_text(to_json(loader.state_dict()), "utf-8")
        return CliRunner().invoke(app, ["relane", str(config), str(saved), "-o", str(new)])

    for num_lanes in (4, "auto"):
        refused = relane_to(num_lanes)
        wanted = "has 4 lanes already" if num_lanes == 4 else "Name a number there, or give --num-lanes"
        assert (refused.exit_code, wanted in refused.output) == (1, True)
    assert relane_to(6).exit_code == 0
    with PackedDataLoader.from_config(config) as loader:
        loader.load_state_dict(json.loads(new.read_text()))


def test_a_source_that_is_not_named_and_a_part_of_the_lanes_are_refused(
    urls: tuple[list[str], list[str]], state: dict[str, Any]
) -> None:
    with PackedDataLoader(dataset(urls, 12), 1, num_workers=0, dp_rank=0, dp_size=2) as loader:
        loader.load_state_dict(state)
        part = loader.state_dict()
    with pytest.raises(StateError, match="holds 6 of 12 lanes"):
        streampack.relane(part, dataset(urls, 12), 4)
    paused = [Stage(weights={"web": 1, "code": 1}, seq_len=32), Stage(at_packs=24, weights={"web": 1})]
    sources = {"web": Source(urls[0]), "code": Source(urls[1])}
    with PackedDataLoader(dataset(urls, 12, sources=sources, stages=paused), 2, num_workers=0) as loader:
        for _ in zip(range(18), loader, strict=False):
            pass
        later = loader.state_dict()
    alone = {"sources": {"web": Source(urls[0])}, "stages": [Stage(seq_len=32), Stage(at_packs=24, weights={"web": 1})]}
    with pytest.raises(StateError, match="'code'.*Name it; a weight of 0 is enough"):
        streampack.relane(later, dataset(urls, 12, **alone), 4)


def test_lanes_in_which_two_stages_would_begin_with_one_round_are_refused(
    urls: tuple[list[str], list[str]], state: dict[str, Any]
) -> None:
    stages = [Stage(seq_len=32), Stage(at_packs=110, seq_len=64), Stage(at_packs=130, seq_len=16)]
    data = dataset(urls, 12, stages=stages)
    refused = r"26 lanes from global pack 62: stages\[2\] .* would begin with pack 130.* that fit: 25 or 28$"
    with pytest.raises(ConfigError, match=refused):
        streampack.relane(state, data, 26)
    for num_lanes in (25, 28):
        moved = streampack.relane(state, data, num_lanes)
        with PackedDataLoader(dataset(urls, num_lanes, stages=stages), 1, num_workers=0) as loader:
            loader.load_state_dict(moved)
        with pytest.raises(ConfigError, match=refused):
            streampack.relane(moved, data, 26)


def test_stages_that_have_begun_must_fit_a_dataset_of_so_many_lanes(urls: tuple[list[str], list[str]]) -> None:
    stages = [Stage(seq_len=32), Stage(at_packs=40, seq_len=64), Stage(at_packs=52, seq_len=16)]
    data = dataset(urls, 12, stages=stages)
    with PackedDataLoader(data, 1, num_workers=0) as loader:
        for _ in zip(range(100), loader, strict=False):
            pass
        later = loader.state_dict()
    with pytest.raises(ConfigError, match=r"stages\[2\] .* would begin with pack 54.* that fit: 17 or 20$"):
        streampack.relane(later, data, 18)
    moved = streampack.relane(later, data, 17)
    with PackedDataLoader(dataset(urls, 17, stages=stages), 1, num_workers=0) as loader:
        loader.load_state_dict(moved)


def test_more_lanes_than_a_source_can_feed_are_refused(
    urls: tuple[list[str], list[str]], state: dict[str, Any]
) -> None:
    """The one that ends may have fewer blocks than there are lanes, as in a new run."""
    most, ending = (sum(-(-Path(url).stat().st_size // 4096) for url in each) for each in urls)
    assert most > ending
    streampack.relane(state, dataset(urls, 12), most)
    too_many = f"num_lanes={most + 1} is more than source 'web' can feed.* has {most} of the smallest"
    with pytest.raises(ConfigError, match=too_many):
        streampack.relane(state, dataset(urls, 12), most + 1)
    data = PackedDataset(urls[0], ByteTokenizer(), seq_len=64, num_lanes=4, shuffle="shards", epochs=1)
    with PackedDataLoader(data, 1, num_workers=0) as loader:
        next(iter(loader))
        with pytest.raises(ConfigError, match="num_lanes=9,198 is more than the data can feed"):
            streampack.relane(loader.state_dict(), data, 9198)


def test_what_is_no_relane_is_refused(urls: tuple[list[str], list[str]], state: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="the state has 12 lanes already"):
        streampack.relane(state, dataset(urls, 10), 12)
    with pytest.raises(ConfigError, match="must be the run's PackedDataset, not str"):
        streampack.relane(state, "run.yaml", 10)  # type: ignore[arg-type]
    tight = dataset(urls, 12, limits=streampack.Limits(buffer_bytes=300_000))
    with pytest.raises(ConfigError, match=r"limits\.buffer_bytes to at least"):
        streampack.relane(state, tight, 1)


def test_ranks_that_do_not_fit_are_told_of_it(urls: tuple[list[str], list[str]], state: dict[str, Any]) -> None:
    fits = r"with num_lanes=10 or 15.* streampack\.relane or `streampack relane`"
    with (
        PackedDataLoader(dataset(urls, 12), 1, num_workers=0, dp_rank=0, dp_size=5) as loader,
        pytest.raises(TopologyError, match=fits),
    ):
        loader.load_state_dict(state)
    with (
        PackedDataLoader(dataset(urls, 10), 1, num_workers=0) as loader,
        pytest.raises(StateError, match=r"num_lanes: 12 in the checkpoint, 10 now; streampack\.relane\("),
    ):
        loader.load_state_dict(state)
