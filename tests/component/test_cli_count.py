"""`streampack count`: against counts made another way, on any number of processes, and with what is bad."""

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from support.thorough import nightly
from typer.testing import CliRunner, Result

import streampack
from streampack.cli import app
from streampack.cli.count.lengths import Lengths
from streampack.examples.make_data import DATA, read_shards
from streampack.testing import write_shards

SHARDS, MODEL = str(DATA / "devil-*.tar*"), str(DATA / "devil.model")


def run(*args: str, **env: str) -> Result:
    return CliRunner(env={"COLUMNS": "100", **env}).invoke(app, ["count", *args])


def count(*args: str) -> dict[str, Any]:
    result = run(*args, "--json")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    counted: dict[str, Any] = json.loads(result.stdout)
    return counted


@pytest.fixture(scope="module")
def demo_ids() -> list[list[int]]:
    """Each demo document's tokens, by SentencePiece itself."""
    model = sentencepiece.SentencePieceProcessor(model_file=MODEL)
    return [[1, *model.encode(entry.text), 2] for entry in read_shards(DATA)]


# -- what is counted is there ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["1", "3", *nightly(["2"])])
def test_the_demo_is_counted_right_by_any_number_of_processes(workers: str, demo_ids: list[list[int]]) -> None:
    counted = count(SHARDS, "-t", MODEL, "--seq-len", "512", "-w", workers)
    lengths = np.array([len(ids) for ids in demo_ids])
    assert (counted["documents"], counted["samples"], counted["bad_records"]) == (999, 999, 0)
    assert counted["text_bytes"] == sum(len(entry.text.encode()) for entry in read_shards(DATA))
    assert counted["tokens"] == lengths.sum()
    assert counted["lengths"]["mean"] == pytest.approx(lengths.mean())
    assert counted["lengths"]["max"] == lengths.max()
    for name, share in (("median", 0.5), ("p90", 0.9), ("p99", 0.99)):
        assert counted["lengths"][name] == pytest.approx(np.quantile(lengths, share), rel=0.06)
    for row in counted["lengths"]["histogram"]:
        inside = lengths[(lengths >= row["from"]) & (lengths <= row["to"])]
        assert (row["documents"], row["units"]) == (len(inside), inside.sum())
    assert [row["length"] for row in counted["longest"]] == sorted(lengths, reverse=True)[:5]
    keys = [entry.key for entry in read_shards(DATA)]
    assert [row["key"] for row in counted["longest"]] == [keys[i] for i in np.argsort(-lengths, kind="stable")[:5]]


def test_all_numbers_are_the_same_whatever_the_number_of_processes() -> None:
    one, two = (count(SHARDS, "-t", MODEL, "--seq-len", "300", "-w", workers) for workers in ("1", "2"))
    assert one == two


def test_without_a_tokenizer_bytes_are_measured_and_nothing_is_packed() -> None:
    counted = count(SHARDS, "-w", "1")
    sizes = [len(entry.text.encode()) for entry in read_shards(DATA)]
    assert (counted["tokens"], counted["packing"], counted["lengths"]["unit"]) == (None, {}, "bytes")
    assert (counted["text_bytes"], counted["lengths"]["max"]) == (sum(sizes), max(sizes))


@pytest.mark.parametrize("packing", ["wrap", "next_fit", "best_fit"])
@pytest.mark.parametrize("seq_len", [32, 512])
def test_one_shard_packs_as_the_packer_packs_it(packing: str, seq_len: int, demo_ids: list[list[int]]) -> None:
    shard = DATA / "devil-00000.tar"
    with tarfile.open(shard) as tar:
        ids = demo_ids[: len(tar.getmembers())]
    packs = list(streampack.pack(ids, seq_len=seq_len, packing=packing))
    counted = count(str(shard), "-t", MODEL, "--seq-len", str(seq_len))["packing"][packing]
    cut = {
        span.document
        for pack in packs[:-1]
        for span in pack.spans
        if span.offset + span.length < len(ids[span.document])
    }
    tokens = sum(pack.num_tokens for pack in packs)  # a lone EOS makes no pack: it would have no target
    assert counted == {
        "packs": len(packs),
        "efficiency": pytest.approx(tokens / (len(packs) * seq_len)),
        "padding": len(packs) * seq_len - tokens,
        "split_documents": len(cut),
    }


def test_unfinished_packs_of_many_small_shards_are_joined(tmp_path: Path) -> None:
    write_shards(tmp_path, [[7] * 10 for _ in range(64)], documents_per_shard=1, field="npy")
    counted = count(str(tmp_path), "--field", "npy", "--seq-len", "64", "-w", "2")
    assert counted["tokens"] == 640  # as stored: no tokenizer, so no BOS and EOS
    packs = {name: packed["packs"] for name, packed in counted["packing"].items()}
    assert packs == {"wrap": 10, "next_fit": 10, "best_fit": 10}


def test_bos_and_eos_count_as_they_are_packed(tmp_path: Path) -> None:
    write_shards(tmp_path, ["", "a"])
    both = count(str(tmp_path), "-t", MODEL)
    neither = count(str(tmp_path), "-t", MODEL, "--no-bos", "--no-eos")
    assert both["tokens"] - neither["tokens"] == 4
    assert neither["lengths"]["histogram"][0] == {"from": 0, "to": 0, "documents": 1, "units": 0}


def test_a_config_file_in_the_place_of_shards_counts_its_documents() -> None:
    config = str(Path(__file__).parents[2] / "configs" / "demo.yaml")
    counted = count(config)
    assert (counted["seq_len"], counted["tokens"]) == (512, count(SHARDS, "-t", MODEL)["tokens"])


def test_json_lines_of_one_sample_are_documents(tmp_path: Path) -> None:
    write_shards(tmp_path, ["one", "two", "three"], field="jsonl:text")
    counted = count(str(tmp_path), "--field", "jsonl:text")
    assert (counted["samples"], counted["documents"], counted["text_bytes"]) == (1, 3, 11)
    assert [row["record"] for row in counted["longest"]] == [2, 0, 1]


@given(st.lists(st.lists(st.integers(0, 100_000), max_size=30), min_size=1, max_size=4))
def test_lengths_add_up_in_any_parts_and_percentiles_are_near(parts: list[list[int]]) -> None:
    merged, whole = Lengths(), Lengths()
    for part in parts:
        lengths = Lengths()
        for length in part:
            lengths.add(length)
            whole.add(length)
        merged.merge(lengths)
    values = sorted(length for part in parts for length in part)
    assert merged.octaves() == whole.octaves()
    assert sum(documents for _, _, documents, _ in whole.octaves()) == len(values)
    assert sum(units for *_, units in whole.octaves()) == sum(values)
    assert all(low == (high + 1) // 2 or high == 0 for low, high, _, _ in whole.octaves())
    for share in (0.5, 0.9, 1.0):
        exact = values[max(int(np.ceil(share * len(values))) - 1, 0)] if values else 0
        assert merged.percentile(share) == whole.percentile(share) == pytest.approx(exact, rel=0.06, abs=1)


# -- what is bad -----------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """Twelve documents in three shards; seven of them are not UTF-8."""
    texts = [b"\xff" if number % 2 or number == 4 else b"good" for number in range(12)]
    write_shards(tmp_path, texts, documents_per_shard=4)
    return str(tmp_path)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_bad_records_are_counted_and_the_first_ones_listed(broken: str, workers: str) -> None:
    counted = count(broken, "--on-error", "skip", "-w", workers)
    assert (counted["documents"], counted["bad_records"]) == (5, 7)
    first = counted["first_bad_records"]
    assert [row["key"] for row in first] == ["00000001", "00000003", "00000004", "00000005", "00000007"]
    assert "not UTF-8: byte 0xff" in first[0]["error"]
    shown = run(broken, "--on-error", "skip", "-w", workers).stdout
    assert re.search(r"^bad records +7 +left out", shown, re.MULTILINE)
    assert "00000.tar, member '00000001.txt'" in shown.replace("\n", "")
    assert "and 2 more" in shown


@pytest.mark.parametrize("workers", ["1", "2"])
def test_by_default_a_bad_record_is_an_error_with_its_place(broken: str, workers: str) -> None:
    result = run(broken, "-w", workers)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert ".tar, member '0000000" in result.stderr
    assert "not UTF-8" in result.stderr


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_process_that_dies_is_an_error_and_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deadly_transform.py").write_text("import os\ndef end(document, rng):\n    os._exit(9)\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = tmp_path / "run.yaml"
    config.write_text(f"dataset: {{data: {SHARDS!r}, tokenizer: {MODEL!r}, transform: deadly_transform:end}}\n")
    result = run(str(config), "-w", "2")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "a working process died" in result.stderr


def test_a_damaged_compressed_shard_stops_the_other_processes_soon(tmp_path: Path) -> None:
    (large, *_) = write_shards(tmp_path, ["many words " * 1000] * 400, documents_per_shard=400)
    (tmp_path / "z.tar.zst").write_bytes(zstandard.compress(b"no tar at all" * 100))
    result = run(large, str(tmp_path / "z.tar.zst"), "-t", MODEL, "-w", "2")
    assert result.exit_code == 1
    assert "z.tar.zst" in result.stderr


# -- how it looks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [56, *nightly([80, 160])])
def test_it_fits_any_terminal(columns: int) -> None:
    shown = run(SHARDS, "-t", MODEL, "-w", "1", COLUMNS=str(columns)).stdout
    assert max(map(len, shown.splitlines())) <= columns
    assert "2,048-4,095 " in shown
    bars = [line.count("█") for line in shown.splitlines() if "█" in line]
    assert len(bars) == 9
    assert max(bars) >= 8


def test_a_corpus_without_documents_is_shown_too(tmp_path: Path) -> None:
    write_shards(tmp_path, [], shard_sizes=[0])
    result = run(str(tmp_path), "-t", MODEL)
    assert result.exit_code == 0
    assert re.search(r"^documents +0 ", result.stdout, re.MULTILINE)
    assert count(str(tmp_path), "-t", MODEL)["lengths"]["histogram"] == []


@pytest.mark.parametrize("boundary", ["keep", "trim"])
def test_best_fit_is_counted_only_where_it_works_with_the_boundary(tmp_path: Path, boundary: str) -> None:
    write_shards(tmp_path, ["some text"] * 6)
    config = tmp_path / "run.yaml"
    options = f"data: {str(tmp_path)!r}, tokenizer: {MODEL!r}, seq_len: 64, boundary: {boundary}"
    config.write_text(f"dataset: {{{options}}}")
    assert ("best_fit" in count(str(config), "-w", "1")["packing"]) == (boundary == "trim")
