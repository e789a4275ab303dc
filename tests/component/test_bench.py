"""`streampack bench`: that it measures what it says; never how fast anything is."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from streampack.cli import app
from streampack.cli.bench.chart import Bar, Group, draw_bars
from streampack.cli.bench.checks import check_ids
from streampack.cli.bench.made_up import DEMO_MODEL, made_up_documents
from streampack.cli.bench.slices import Slice, cut_slices
from streampack.cli.bench.stages import documents_of, samples_of
from streampack.cli.bench.stopwatch import Reading, Spread, Variant, Work, cpu_ratio, interleave
from streampack.dataset.dataset import PackedDataset
from streampack.errors import TokenizerError
from streampack.records import Tokenizer, Tokens
from streampack.testing import ByteTokenizer, write_shards


def run(*args: str) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, ["bench", *args])


def bench(*args: str) -> dict[str, Any]:
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def make(shards: Any, *, tokenizer: Tokenizer | None, num_lanes: int, **given: Any) -> PackedDataset:
    return PackedDataset(list(shards), tokenizer, 64, num_lanes=num_lanes, **{"epochs": 1, "shuffle": False, **given})


# -- the command -----------------------------------------------------------------------------------------------------


def test_a_quick_run_on_made_up_text_reports_every_measure_and_writes_its_tables_and_plot(tmp_path: Path) -> None:
    table, plot = tmp_path / "table.md", tmp_path / "plot.svg"
    report = bench(
        "--quick", "--megabytes", "1", "--rounds", "1", "-w", "0", "-w", "2", "--out", str(table), "--plot", str(plot)
    )
    comparison = report["comparison"]
    names = [each["name"] for each in comparison["contenders"]]
    assert names[0] == "tokenizer alone" and "pipeline, sentencepiece" in names
    assert comparison["contenders"][0]["ratio"] == {"low": 1.0, "median": 1.0, "high": 1.0}
    stages = [stage["name"] for stage in comparison["stages"]]
    assert stages[:6] == ["storage", "tar", "documents", "tokenizer", "packing", "batches"]
    assert sum(stage["share"] for stage in comparison["stages"]) == pytest.approx(1)
    assert [each["workers"] for each in report["workers"]] == [0, 2]
    assert all(each["tokens_per_s"]["low"] > 0 for each in report["workers"])
    assert [each["percent"] for each in report["resume"]] == [0, 10, 90]
    assert set(report["first_batch_s"]) == {"0", "2"}
    text = table.read_text("utf-8")
    assert text.count("\n### ") == 4 and "machine that others share" in text
    texts = [element.text or "" for element in ET.fromstring(plot.read_text("utf-8")).iter()]
    assert {"tokenizer alone", "2 workers", *stages} <= set(texts)
    assert sum(each.endswith(" Mtok/s") for each in texts) == len(names) - 1 + 2
    assert sum(each.endswith(" %") for each in texts) == len(stages)
    machine = report["machine"]
    assert any(each.startswith(f"{machine['processor']}, {machine['cores']} cores, load ") for each in texts)


def test_shards_of_tokens_are_measured_without_a_tokenizer(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = [rng.integers(3, 1000, size=500, dtype=np.int32) for _ in range(60)]
    write_shards(tmp_path, documents, field="npy", documents_per_shard=30)
    report = bench(str(tmp_path / "*.tar"), "--field", "npy", "--seq-len", "256", "--rounds", "2", "-w", "0")
    comparison = report["comparison"]
    assert [each["name"] for each in comparison["contenders"]] == ["pipeline, tokens"]
    assert "tokenizer" not in {stage["name"] for stage in comparison["stages"]}


def test_conversations_are_refused_with_what_measures_them(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    write_shards(tmp_path / "chats", [talk] * 5, field="json:messages")
    data = {"data": f"{tmp_path}/chats/", "field": "json:messages", "chat": "phi3", "seq_len": 64}
    (tmp_path / "run.yaml").write_text(json.dumps({"dataset": {**data, "tokenizer": str(DEMO_MODEL)}}))
    for args in ([str(tmp_path / "chats"), "--field", "json:messages"], [str(tmp_path / "run.yaml")]):
        result = run(*args)
        assert result.exit_code == 1
        assert "field='json:messages' holds conversations, and `streampack bench` measures texts" in result.stderr
        assert "`streampack count` reads and tokenizes conversations (--chat)" in result.stderr


def test_a_compressed_shard_has_a_stage_of_its_own_for_that(tmp_path: Path) -> None:
    write_shards(tmp_path, made_up_documents(60_000), compression="zst", documents_per_shard=10)
    report = bench(str(tmp_path), "--seq-len", "256", "--rounds", "2", "-w", "0", "--engine", "sentencepiece")
    assert "decompress" in {stage["name"] for stage in report["comparison"]["stages"]}


# -- what it stands on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "gz", "zst"])
def test_slices_are_the_first_samples_of_the_shards_in_order(tmp_path: Path, compression: Any) -> None:
    documents = made_up_documents(200_000)
    paths = write_shards(tmp_path / "all", documents, documents_per_shard=25, compression=compression)
    whole = make(paths, tokenizer=ByteTokenizer(), num_lanes=1)
    slices = cut_slices(whole, tmp_path, num_slices=3, slice_bytes=40_000)
    assert len(slices) == 3 and all(part.num_bytes >= 40_000 for part in slices)
    datasets = [make(part.shards, tokenizer=ByteTokenizer(), num_lanes=1) for part in slices]
    read = [document.text for dataset in datasets for document in documents_of(dataset, samples_of(dataset))]
    assert len(read) > 20 and read == documents[: len(read)]


def test_a_pipeline_with_other_ids_is_not_timed(tmp_path: Path) -> None:
    class OffByOne(ByteTokenizer):
        def encode(self, text: str) -> Tokens:
            return super().encode(text) + np.int32(text.startswith("b"))

    part = Slice(tuple(write_shards(tmp_path, ["a" * 500, "b" * 500])), 0)
    check_ids(make, part, ByteTokenizer(), ByteTokenizer())
    with pytest.raises(TokenizerError, match="00000001.*the engine gives other ids than the plain tokenizer"):
        check_ids(make, part, OffByOne(), ByteTokenizer())


def test_variants_take_turns_and_the_first_round_does_not_count() -> None:
    done = []

    def variant(name: str) -> Variant:
        def prepare(number: int) -> Work:
            return lambda: done.append(f"{name}{number}") or number

        return Variant(name, prepare)

    readings = interleave([variant("a"), variant("b")], 3)
    assert done == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert [reading.units for reading in readings["a"]] == [1, 2]


def test_a_ratio_is_taken_within_a_round() -> None:
    base = [Reading(100, 1.0, 1.0), Reading(100, 2.0, 1.0), Reading(100, 4.0, 1.0)]
    twice = [Reading(100, 0.5, 1.0), Reading(100, 1.0, 1.0), Reading(100, 1.0, 1.0)]
    assert cpu_ratio(twice, base) == Spread(2.0, 2.0, 4.0)


def test_a_plot_names_every_bar_and_escapes_what_it_is_given() -> None:
    drawing = draw_bars("a & b", [Group("<g>", [Bar("x < y", Spread(1, 2, 3))])], unit="times")
    texts = [element.text for element in ET.fromstring(drawing).iter() if element.text]
    assert {"a & b", "<g>", "x < y", "2.0"} <= set(texts)
