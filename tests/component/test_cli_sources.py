"""The commands over a config with several sources: each source is counted, verified, listed and planned."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from streampack import PackedDataLoader, PackedDataset
from streampack.cli import app
from streampack.config.file import load_config
from streampack.corpus import spans
from streampack.corpus.shares import Shares
from streampack.examples.make_data import DATA
from streampack.testing import write_shards

SIZES = {"web": 40, "code": 30, "books": 30}


def run(*args: str) -> Result:
    return CliRunner(env={"COLUMNS": "110"}).invoke(app, [*args])


def told(*args: str) -> dict[str, Any]:
    result = run(*args, "--json")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture
def mix(tmp_path: Path) -> str:
    """A config of three sources, the last one added by the second stage."""
    for name, count in SIZES.items():
        write_shards(tmp_path / name, [f"{name} {n} " * (100 + n) for n in range(count)], documents_per_shard=10)
    path = tmp_path / "mix.yaml"
    path.write_text(
        f"""
dataset:
  sources:
    web: {tmp_path}/web/
    code: {{data: {tmp_path}/code/, max_epochs: 50}}
  stages:
    - weights: {{web: 3, code: 1}}
    - at_packs: 40
      sources: {{books: {{data: {tmp_path}/books/}}}}
      weights: {{web: 1, books: 1}}
      seq_len: 256
  tokenizer: {DATA}/devil.model
  seq_len: 128
  num_lanes: 12
  num_packs: 100
""",
        "utf-8",
    )
    return str(path)


def test_count_tells_what_each_source_holds(mix: str, tmp_path: Path) -> None:
    sources = told("count", mix, "-w", "1")["sources"]
    assert {name: each["documents"] for name, each in sources.items()} == SIZES
    assert sources["books"] == told("count", mix, "-w", "1", "--source", "books")
    alone = told("count", f"{tmp_path}/books/", "-t", f"{DATA}/devil.model", "--seq-len", "128", "-w", "1")
    assert sources["books"]["tokens"] == alone["tokens"]
    lines = run("count", mix, "-w", "1").stdout.splitlines()
    totals = next(line for line in lines if line.startswith("all")).split()
    assert totals[1] == "10"
    assert "100" in totals


@pytest.mark.parametrize("command", [["count"], ["verify"], ["manifest", "-o", "m"]])
def test_a_source_that_is_not_there_is_an_error(command: list[str], mix: str) -> None:
    result = run(*command, mix, "--source", "wbe")
    assert result.exit_code == 1
    assert "--source wbe: there is no such source; there are web, code, books" in " ".join(result.stderr.split())


def test_verify_reads_the_shards_of_every_source(mix: str, tmp_path: Path) -> None:
    journal = str(tmp_path / "journal")
    found = told("verify", mix, "--journal", journal, "-w", "1")
    assert (found["num_shards"], found["documents"], found["num_read"]) == (10, 100, 10)
    bad = next((tmp_path / "books").glob("*.tar"))
    bad.write_bytes(bad.read_bytes()[:5000])
    result = run("verify", mix, "--journal", journal, "-w", "1", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["num_shards"], found["num_read"]) == (1, 10, 1)
    assert [each["source"] for each in found["bad_shards"]] == ["books"]
    assert f"books: {bad.name}" in run("verify", mix, "-w", "1").stdout


def test_manifest_writes_a_file_for_each_source(mix: str, tmp_path: Path) -> None:
    found = told("manifest", mix, "-o", f"{tmp_path}/{{source}}.jsonl")["manifests"]
    assert [(each["source"], each["num_shards"]) for each in found] == [("web", 4), ("code", 3), ("books", 3)]
    assert len((tmp_path / "web.jsonl").read_text().splitlines()) == 4
    one = told("manifest", mix, "-o", f"{tmp_path}/one.jsonl", "--source", "code")
    assert (one["source"], one["file"]) == ("code", f"{tmp_path}/one.jsonl")
    result = run("manifest", mix, "-o", f"{tmp_path}/all.jsonl")
    assert result.exit_code == 1
    assert "Put {source} into the name of the file" in " ".join(result.stderr.split())
    assert not (tmp_path / "all.jsonl").exists()


def test_plan_tells_what_each_stage_gives_of_each_source(mix: str) -> None:
    made = told("plan", mix, "--ranks", "2", "--batch-size", "3")
    first, second = made["stages"]
    assert (first["first_pack"], first["first_step"], first["packs"], first["tokens"]) == (0, 0, 48, 48 * 128)
    assert (second["first_pack"], second["first_step"], second["packs"], second["seq_len"]) == (48, 8, 52, 256)
    assert (made["budget_packs"], made["rank"]["batches"]) == (100, 8 + 9)
    assert {name: each["share"] for name, each in first["sources"].items()} == {"web": 0.75, "code": 0.25}
    assert {name: each["packs"] for name, each in second["sources"].items()} == {"web": 26, "books": 26}
    web = made["sources"]["web"]["corpus"]["estimated_tokens"]
    of_web = [stage["sources"]["web"] for stage in made["stages"]]
    assert of_web[0]["epochs"] == pytest.approx(of_web[0]["tokens"] / web)
    assert of_web[1]["epochs_by_end"] == pytest.approx(of_web[0]["epochs"] + of_web[1]["epochs"])
    assert first["deviations"]["packs"] == 48
    assert 0 < first["deviations"]["prefix"] < 24
    assert made["rank"]["sources_at_once"] == 2


def test_plan_warns_of_a_source_that_will_be_exhausted(mix: str) -> None:
    text = Path(mix).read_text("utf-8").replace("max_epochs: 50", "max_epochs: 1")
    Path(mix).write_text(text.replace("at_packs: 40", "at_packs: 1600").replace("num_packs: 100", "num_packs: 4000"))
    result = run("plan", mix)
    assert "source code is exhausted in stage 0" in " ".join(result.stderr.split())
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["web", "75.00%", "1,206"] in [line[:3] for line in lines]


def test_plan_warns_of_a_small_source_that_some_lanes_have_too_little_of(tmp_path: Path) -> None:
    write_shards(tmp_path / "web", [f"web {n} " * (100 + n) for n in range(60)], documents_per_shard=10)
    write_shards(tmp_path / "small", [f"small {n} " * (10 + 40 * (n % 3)) for n in range(30)], documents_per_shard=10)
    config = tmp_path / "run.yaml"
    config.write_text(
        f"""
dataset:
  sources:
    web: {{data: {tmp_path}/web/, weight: 9}}
    small: {{data: {tmp_path}/small/, weight: 1, max_epochs: 2}}
  tokenizer: {DATA}/devil.model
  seq_len: 64
  num_lanes: 24
  num_packs: 1600
"""
    )
    said = " ".join(run("plan", str(config)).stderr.split())
    found = re.search(r"about (\d+)% of the lanes are exhausted .* about (\d+)% of its packs never come", said)
    assert found and "source small has" in said and "for 24 lanes, and the smallest lane has" in said
    with PackedDataLoader.from_config(str(config)) as loader:
        loader.num_workers = 0
        for _ in loader:
            pass
        packs = loader.stats()["sources"]["small"]["packs"]
    assert 1 - packs / 160 == pytest.approx(int(found[2]) / 100, abs=0.1)
    config.write_text(config.read_text().replace("max_epochs: 2", "max_epochs: 8"))
    assert "of the lanes are exhausted" not in run("plan", str(config)).stderr


def test_plan_warns_of_a_stage_whose_sources_are_all_exhausted_and_peek_shows_what_comes_after(mix: str) -> None:
    text = Path(mix).read_text("utf-8").replace("web: 3, code: 1", "code: 1").replace("max_epochs: 50", "max_epochs: 1")
    text = text.replace("at_packs: 40", "at_packs: 2400").replace("num_packs: 100", "num_packs: 2500")
    Path(mix).write_text(text)
    told = " ".join(run("plan", mix).stderr.split())
    given = re.search(r"all sources of stage 0 are exhausted before its end: .* give about (\d+)% of its packs", told)
    assert given
    assert "Then lanes give fillers until a later stage begins" in told
    assert "source code is exhausted" not in told
    packs = json.loads(run("peek", mix, "--num", "1000", "--json").stdout)["packs"]
    books = [pack["global_pack"] for pack in packs if pack["source"] != "code"]
    assert books == list(range(2400, 2500))
    assert (len(packs) - len(books)) / 2400 == pytest.approx(int(given[1]) / 100, rel=0.3)
    text = text.replace("/books/}", "/books/, max_epochs: 1}").replace("web: 1, books: 1", "books: 1")
    Path(mix).write_text(text.replace("num_packs: 2500", "num_packs: 5000"))
    assert "Then the run ends before its budget" in " ".join(run("plan", mix).stderr.split())


def test_peek_shows_the_packs_of_the_run_in_its_order(mix: str, tmp_path: Path) -> None:
    packs = told("peek", mix, "--num", "100")["packs"]
    assert [pack["global_pack"] for pack in packs] == list(range(100))
    shares = [Shares.of([3, 1, 0]), Shares.of([1, 0, 1])]
    expected = [shares[n >= 48].source(n % 12, n // 12 - 4 * (n >= 48)) for n in range(100)]
    assert [list(SIZES).index(pack["source"]) for pack in packs] == expected
    assert {len(pack["tokens"]) for pack in packs[48:]} == {256}
    assert all(f"/{pack['source']}/" in segment["url"] for pack in packs for segment in pack["segments"])
    code = told("peek", mix, "--source", "code", "--num", "3")["packs"]
    assert code == [pack for pack in packs if pack["source"] == "code"][:3]
    assert "of lane 5, source code" in run("peek", mix, "--source", "code", "--num", "1").stdout


# -- cells that are held out -------------------------------------------------------------------------------------------


@pytest.fixture
def held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A config for each part of a corpus, "document" that of all of it; cells of an odd size, which blocks straddle."""
    monkeypatch.setattr(spans, "CELL_BYTES", 5000)
    write_shards(tmp_path / "text", [f"{n} " + "some words " * (n % 90) for n in range(300)], documents_per_shard=100)
    parts = {part: f"hold_out: {{part: {part}, fraction: 0.4, by: block}}" for part in ("train", "val")}
    for name, hold_out in [*parts.items(), ("all", "")]:
        text = f"data: {tmp_path}/text/\n  tokenizer: {DATA}/devil.model\n  seq_len: 128\n  {hold_out}\n"
        lanes = "" if name == "val" else "  num_lanes: 2\n"
        (tmp_path / f"{name}.yaml").write_text(f"dataset:\n  {text}{lanes}", "utf-8")
    return {name: f"{tmp_path}/{name}.yaml" for name in ("train", "val", "all")}


def test_count_tells_what_a_part_has_of_the_shards(held_out: dict[str, str]) -> None:
    train, val, every = (told("count", held_out[part], "-w", "1") for part in ("train", "val", "all"))
    for key in ("documents", "tokens", "shard_bytes"):
        assert 0 < val[key] < train[key] < every[key] == train[key] + val[key]


def test_plan_tells_what_a_part_has_of_the_shards(held_out: dict[str, str]) -> None:
    for part in ("train", "val"):
        counted, made = told("count", held_out[part], "-w", "1"), told("plan", held_out[part])
        assert made["corpus"]["total_bytes"] == counted["shard_bytes"]
        assert made["corpus"]["cut_bytes"] == counted["shard_bytes"]
        assert made["sample"]["is_complete"]
        assert made["sample"]["documents"] == counted["documents"]
        assert made["corpus"]["estimated_tokens"] == pytest.approx(counted["tokens"], rel=0.01)


@pytest.mark.parametrize("by", ["block", "document"])
def test_a_validation_set_fits_any_ranks_and_its_packs_are_those_that_come(held_out: dict[str, str], by: str) -> None:
    path = Path(held_out["val"])
    path.write_text(path.read_text("utf-8").replace("by: block", f"by: {by}"), "utf-8")
    made = told("plan", str(path), "--ranks", "3", "--batch-size", "2")
    assert (made["stages"], made["lanes"], made["rank"]) == ([], None, None)
    dataset = PackedDataset(**load_config(str(path)).dataset_arguments())
    with PackedDataLoader(dataset, 2, num_workers=0, dp_rank=2, dp_size=3) as loader:
        batches = sum(1 for _ in loader)
    assert made["validation"]["batches"] == pytest.approx(batches, abs=1)
    text = run("plan", str(path), "--ranks", "3").stdout
    assert "Validation on 3 ranks" in text
    assert "ranks that fit" not in text


def test_plan_tells_what_each_source_of_a_bounded_validation_set_gives(tmp_path: Path) -> None:
    for name, number in (("web", 300), ("code", 100)):
        write_shards(tmp_path / name, ["some words " * 9] * number, documents_per_shard=100)
    path = tmp_path / "val.yaml"
    path.write_text(
        f"dataset: {{sources: {{web: {tmp_path}/web/, code: {tmp_path}/code/}}, tokenizer: {DATA}/devil.model, "
        "seq_len: 128, num_packs: 22, hold_out: {part: val, fraction: 0.4}}",
        "utf-8",
    )
    assert told("plan", str(path))["validation"]["packs_of_sources"] == {"web": 16, "code": 6}
    lines = [line.split()[:3] for line in run("plan", str(path)).stdout.splitlines()]
    assert ["of", "web", "~16"] in lines
    with PackedDataLoader(PackedDataset(**load_config(str(path)).dataset_arguments()), num_workers=0) as loader:
        assert sum(batch["source_ids"].tolist() == [0] for batch in loader) == 16


def test_plan_tells_of_one_source_alone_only_where_there_is_one(mix: str, tmp_path: Path) -> None:
    of_one = ("corpus", "sample", "bytes_per_token", "lanes")
    made = told("plan", mix)
    assert [made[name] for name in of_one] == [None] * 4
    path = tmp_path / "one.yaml"
    path.write_text(
        f"dataset: {{data: {tmp_path}/web/, tokenizer: {DATA}/devil.model, seq_len: 128, num_lanes: 4, num_packs: 40}}"
    )
    made = told("plan", str(path))
    assert None not in [made[name] for name in of_one]
    epochs = made["stages"][0]["sources"]["default"]["epochs"]
    row = next(line.split() for line in run("plan", str(path)).stdout.splitlines() if line.startswith("0: 128"))
    assert row[-2:] == [f"{epochs:.2f}"] * 2
