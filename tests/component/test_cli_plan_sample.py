"""`streampack plan` on a sample of the shards: what it measures, and what it costs."""

import dataclasses
import json
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from support.thorough import nightly
from typer.testing import CliRunner

from streampack import PackedDataLoader, PackedDataset, Packing, Shuffle
from streampack.cli import app
from streampack.cli.plan import evenness, sampling
from streampack.cli.plan.advice import warn_of_blocks
from streampack.cli.plan.estimates import Plan
from streampack.cli.plan.evenness import filler_share_of, lane_sizes
from streampack.cli.plan.making import make_plan
from streampack.cli.plan.measured import Density, assumed, density_of
from streampack.cli.plan.sampling import choose_places, take_sample
from streampack.cli.replay import Replay
from streampack.storage.backends import local
from streampack.testing import ByteTokenizer, write_shards

DOCUMENTS = 60
"""Of a shard."""


def record(num_bytes: int, num_tokens: int) -> bytes:
    """JSON of about `num_bytes`, of which `num_tokens` are text."""
    text = json.dumps({"text": "t" * num_tokens, "other": ""})
    return text.replace('"other": "', '"other": "' + "o" * max(num_bytes - len(text), 0)).encode()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """24 shards of 60 documents of about 1 KB, that differ by 15 % in tokens for each byte; in all 3 MB."""
    folder, rng = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0)
    ratios = [0.25 * (1 + 0.15 * NormalDist().inv_cdf((shard + 0.5) / 24)) for shard in range(24)]
    documents = [
        record(size, round(size * ratio))
        for ratio in rng.permutation(ratios)
        for size in rng.integers(500, 1500, DOCUMENTS).tolist()
    ]
    return write_shards(folder, documents, field="json:text", documents_per_shard=DOCUMENTS, format="ustar")


def dataset_of(shards: list[str], **arguments: Any) -> PackedDataset:
    options = {"num_lanes": 24, "epochs": 1, "shuffle": "shards", "seq_len": 256, **arguments}
    return PackedDataset(shards, ByteTokenizer(), field="json:text", **options)


def plan_of(dataset: PackedDataset, bytes_per_token: float | None = None) -> Plan:
    arguments = {"batch_size": 4, "num_workers": 0}
    start = Replay.of(dataset)
    return make_plan(
        "run.yaml", dataset, start, arguments, ranks=1, tokens_per_second=1e4, bytes_per_token=bytes_per_token
    )


# -- what it measures is so -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [12, *nightly([24])])
def test_shards_that_differ_in_tokens_for_each_byte_end_in_as_many_fillers_as_it_says(
    lanes: int, mixed: list[str]
) -> None:
    dataset = dataset_of(mixed, num_lanes=lanes)
    made = plan_of(dataset)
    with PackedDataLoader(dataset, 4, num_workers=0) as loader:
        packs = sum(len(batch["tokens"]) for batch in loader)
        stats = loader.stats()
    assert made.sample is not None
    assert made.sample.spread == pytest.approx(0.15, abs=0.04)
    assert made.corpus.estimated_tokens == pytest.approx(stats["tokens"], rel=0.03)
    assert made.lanes.filler_share == pytest.approx(stats["fillers"] / packs, abs=0.07)
    assert stats["fillers"] > 0.08 * packs  # and bytes alone say none
    assert (plan_of(dataset, 4.0).lanes.filler_share or 0) < 0.01


def test_of_a_small_corpus_it_is_all(mixed: list[str]) -> None:
    made = plan_of(dataset_of(mixed))
    assert made.sample is not None
    assert made.sample.is_complete
    assert made.sample.documents == 24 * DOCUMENTS
    assert made.corpus.estimated_tokens == made.sample.tokens
    assert made.sample.documents_per_block == DOCUMENTS  # each shard is smaller than a block


@pytest.mark.parametrize("compression", ["zst", "gz"])
def test_compressed_shards_are_measured_by_their_stored_bytes(
    compression: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    texts = [bytes(rng.integers(97, 123, 700, np.uint8)).decode() for _ in range(1000)]
    shards = write_shards(tmp_path, texts, documents_per_shard=1000, compression=compression, format="ustar")
    monkeypatch.setattr(sampling, "_WHOLE_BYTES", 250_000)
    made = plan_of(PackedDataset(shards, ByteTokenizer(), 256, num_lanes=1))
    assert made.sample is not None
    assert 200 < made.sample.documents < 800
    assert made.corpus.estimated_tokens == pytest.approx(1000 * 702, rel=0.05)


@pytest.mark.parametrize(("packing", "least", "most"), [("next_fit", 0.7, 0.9), ("best_fit", 0.9, 1)])
def test_packs_of_whole_documents_are_as_full_as_it_says(
    packing: str, least: float, most: float, mixed: list[str]
) -> None:
    dataset = dataset_of(mixed, packing=packing, num_lanes=2)
    made = plan_of(dataset)
    with PackedDataLoader(dataset, 4, num_workers=0) as loader:
        batches = sum(1 for _ in loader)
        stats = loader.stats()
    assert made.sample is not None
    assert made.rank is not None
    assert made.sample.pack_fill == pytest.approx(stats["tokens"] / (stats["tokens"] + stats["padding"]), abs=0.01)
    assert least < made.sample.pack_fill < most
    assert made.rank.batches_per_epoch == pytest.approx(batches, rel=0.05)


@pytest.mark.parametrize(
    ("packing", "boundary", "left_out", "warns"),
    [
        (Packing("next_fit", overflow="drop"), "mask", 0.60, 'overflow="drop" drops 6'),
        (Packing("best_fit", overflow="truncate", window=8), "mask", 0.12, 'overflow="truncate" truncates 6'),
        *nightly([(Packing("next_fit"), "mask", 0, ""), (Packing("best_fit"), "trim", 0, "")]),
    ],
)
def test_tokens_are_those_that_packs_hold(
    packing: Packing, boundary: str, left_out: float, warns: str, mixed: list[str]
) -> None:
    dataset = dataset_of(mixed, packing=packing, boundary=boundary, num_lanes=2)
    made = plan_of(dataset)
    with PackedDataLoader(dataset, 4, num_workers=0) as loader:
        batches = sum(1 for _ in loader)
        stats = loader.stats()
    assert made.sample is not None
    assert made.rank is not None
    assert made.corpus.estimated_tokens == stats["tokens"] + stats["targetless_tokens"]
    lost = stats["dropped_tokens"] + stats["truncated_tokens"]
    assert made.sample.cut_documents == stats["dropped_documents"] + stats["truncated_documents"]
    assert made.sample.cut_share == lost / made.sample.tokens == pytest.approx(left_out, abs=0.05)
    assert [warning.startswith(warns) for warning in made.warnings if "overflow" in warning] == [True] * bool(warns)
    assert made.rank.batches_per_epoch == pytest.approx(batches, rel=0.05)


def test_where_overflow_leaves_nothing_it_says_so(mixed: list[str]) -> None:
    made = plan_of(dataset_of(mixed[:6], seq_len=16, packing=Packing("next_fit", overflow="drop")))
    assert made.sample is None
    warning = made.warnings[0]
    assert warning.endswith('takes away 100.0% of the tokens. A larger seq_len or overflow="split" keeps them.')


@pytest.mark.parametrize(("end", "epochs"), [("pad", 1), ("pad", 2), ("stop", 1)])
def test_a_finite_run_has_as_many_batches_as_it_says(end: str, epochs: int, tmp_path: Path) -> None:
    sizes = [100, 40, 40, 40]
    shards = write_shards(tmp_path, ["some words " * 30] * 220, shard_sizes=sizes, compression="gz")
    dataset = PackedDataset(
        shards,
        ByteTokenizer(),
        256,
        num_lanes=4,
        epochs=epochs,
        epoch_end=end,
        shuffle=False,  # type: ignore[arg-type]  # a str
    )
    made = plan_of(dataset)
    with PackedDataLoader(dataset, 4, num_workers=0) as loader:
        batches = sum(1 for _ in loader)
    assert made.rank is not None
    assert made.rank.batches_per_epoch == pytest.approx(batches / epochs, rel=0.06)
    assert (made.lanes.filler_share is None, made.lanes.unread_share is None) == (end == "stop", end == "pad")
    share = made.lanes.filler_share or made.lanes.unread_share or 0
    assert share == pytest.approx(0.45 if end == "pad" else 0.27, abs=0.05)
    assert [each for each in made.warnings if "packs" in each] != []


@pytest.mark.parametrize(
    ("total_bytes", "block_bytes", "advice"),
    [
        *nightly([(10**9, 4096, ["larger blocks (shuffle: {block_bytes: 131072})"])]),
        *nightly([(10**7, 2**18, ["fewer lanes (num_lanes: 3), since a lane has at least 32 blocks"])]),
        (10**7, 4096, ["larger blocks (shuffle: {block_bytes: 131072})", "fewer lanes (num_lanes: 3)"]),
        (10**6, 4096, []),  # too small for any number of lanes
    ],
)
def test_blocks_of_few_samples_are_named_with_what_to_do(
    total_bytes: int, block_bytes: int, advice: list[str], mixed: list[str]
) -> None:
    dataset = dataset_of(mixed, shuffle=Shuffle(block_bytes=block_bytes))
    made = plan_of(dataset)
    assert made.sample is not None
    assert made.lanes.block_bytes == 4096  # in which two or three samples begin
    warnings: list[str] = []
    shards = dataclasses.replace(made.corpus, total_bytes=total_bytes)
    warn_of_blocks(warnings, dataset.corpus(), shards, made.lanes, made.sample)
    assert len(warnings) == bool(advice)
    assert [each for each in advice if each not in warnings[0]] == []
    assert not warnings or warnings[0].count("(shuffle") + warnings[0].count("(num_lanes") == len(advice)


def test_an_epoch_by_blocks_has_as_few_fillers_as_it_says(mixed: list[str]) -> None:
    dataset = dataset_of(mixed, num_lanes=6, shuffle=True)
    made = plan_of(dataset)
    with PackedDataLoader(dataset, 4, num_workers=0) as loader:
        packs = sum(len(batch["tokens"]) for batch in loader)
        fillers = loader.stats()["fillers"] / packs
    assert fillers < 0.1
    assert made.lanes.filler_share == pytest.approx(fillers, abs=0.04)


def test_blocks_without_number_are_estimated_as_those_that_are_listed(
    mixed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = dataset_of(mixed, num_lanes=6, shuffle=True)
    density = density_of(take_sample(dataset.pipeline, dataset.corpus(), 4096), 256)
    listed = lane_sizes(dataset.corpus(), density, 0)
    monkeypatch.setattr(evenness, "_MOST_PIECES", 0)
    drawn = lane_sizes(dataset.corpus(), density, 0)
    for one, other in zip(listed, drawn, strict=True):
        assert one.sum() == pytest.approx(other.sum(), rel=0.01)
    assert drawn.tokens.std() == pytest.approx(listed.tokens.std(), rel=0.6)


def test_where_all_blocks_are_read_each_lane_has_its_own_tokens(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    texts = ["t" * size for size in rng.lognormal(7, 1.3, 120).astype(int).tolist()]
    shards = write_shards(tmp_path, texts, documents_per_shard=50, format="ustar")
    dataset = PackedDataset(shards, ByteTokenizer(), 256, num_lanes=6, epochs=1)
    made = plan_of(dataset)
    with PackedDataLoader(dataset, 4, num_workers=0) as loader:
        batches = sum(1 for _ in loader)
        fillers = loader.stats()["fillers"] / (4 * batches)
    assert made.rank is not None
    assert made.sample is not None
    assert made.sample.is_complete
    assert made.lanes.filler_share == pytest.approx(fillers, abs=0.01)
    assert made.rank.batches_per_epoch == pytest.approx(batches, rel=0.01)


# -- what it costs --------------------------------------------------------------------------------------------------


def test_places_are_spread_over_the_corpus_and_always_the_same(
    mixed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = dataset_of(mixed).corpus().parts
    monkeypatch.setattr(sampling, "SAMPLE_BYTES", 2**21)
    places = choose_places(parts, 8192)
    assert places == choose_places(parts, 8192)
    assert len(set(places)) == sampling.MOST_PLACES
    assert {place.shard for place in places} == set(range(24))
    assert len({place.shard for place in places[:24]}) > 12  # a sample that is cut short is spread, too


def test_a_sample_is_bounded_in_bytes_and_time(mixed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = dataset_of(mixed)
    monkeypatch.setattr(sampling, "SAMPLE_BYTES", 64 * 1024)
    sampled = take_sample(dataset.pipeline, dataset.corpus(), 8192)
    assert not sampled.is_complete
    assert 32 * 1024 < sampled.bytes < 96 * 1024
    monkeypatch.setattr(sampling, "MOST_SECONDS", -1)
    assert take_sample(dataset.pipeline, dataset.corpus(), 8192).places == []


def test_with_assumed_bytes_for_each_token_no_shard_is_read(mixed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise AssertionError("a shard was read")

    dataset = dataset_of(mixed)
    monkeypatch.setattr(local.LocalFile, "read", refuse)
    made = plan_of(dataset, 5.0)
    assert made.sample is None
    assert made.corpus.estimated_tokens == round(dataset.list_shards().total_bytes / 5)


# -- what is bad ----------------------------------------------------------------------------------------------------


def test_bad_records_are_named_and_left_out(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [record(500, 100), b'{"nothing": 1}', record(500, 100)], field="json:text")
    made = plan_of(dataset_of(shards, num_lanes=1))
    assert made.errors == []
    assert made.sample is not None
    assert (made.sample.documents, made.sample.bad_records) == (2, 1)
    warning = made.warnings[0]
    assert warning.startswith("1 bad record in the sample, which a run would stop at; the first one: ")
    assert "00000001.json" in warning
    assert "which a run would skip" in plan_of(dataset_of(shards, num_lanes=1, on_error="skip")).warnings[0]


def test_a_damaged_shard_is_named_and_the_rest_is_measured(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [record(500, 100)] * 20, field="json:text", documents_per_shard=10)
    damaged = bytearray(Path(shards[0]).read_bytes())
    damaged[4096:8192] = b"x" * 4096
    Path(shards[0]).write_bytes(damaged)
    made = plan_of(dataset_of(shards, num_lanes=1))
    assert made.sample is not None
    assert 10 <= made.sample.documents < 20
    assert shards[0] in made.warnings[0]


def test_a_storage_that_fails_is_an_error_and_the_rest_is_shown(
    mixed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"dataset: {{data: {mixed!r}, tokenizer: null, field: npy, add_bos: false, add_eos: false, num_lanes: 2}}\n"
        "loader: {batch_size: 1}\n"
    )

    def missing(*_: object) -> bytes:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(local.LocalFile, "read", missing)
    result = CliRunner().invoke(app, ["plan", str(config)])
    assert result.exit_code == 1
    assert "error: " in result.stderr
    assert ".tar" in result.stderr
    assert "ranks that fit" in result.stdout


def test_a_sample_without_a_document_is_said_to_be_none(mixed: list[str]) -> None:
    made = plan_of(dataset_of(mixed[:1], num_lanes=1, transform=lambda document, rng: None))
    assert made.sample is None
    assert made.warnings[0].startswith("the sample holds no document, so tokens are only assumed")
    assert made.bytes_per_token == pytest.approx(4.0, rel=0.01)


# -- the arithmetic -------------------------------------------------------------------------------------------------


def test_fillers_keep_all_lanes_in_step_with_the_longest() -> None:
    assert filler_share_of(np.array([100.0, 250.0]), 100) == 1 - (1 + 3) / 2 / 3
    assert filler_share_of(np.zeros(3), 100) == 0


def test_a_lane_of_many_blocks_varies_less(mixed: list[str]) -> None:
    def spread(**arguments: Any) -> float:
        corpus = dataset_of(mixed, **arguments).corpus()
        density = Density(cut=0.25, whole=0.25, block_spread=0.2, block_bytes=4096, tokens_per_pack=128)
        tokens = lane_sizes(corpus, density, 0).tokens
        return float(tokens.std() / tokens.mean())

    lane_bytes = dataset_of(mixed).list_shards().total_bytes / 24
    assert spread(num_lanes=24) == pytest.approx(0.2 * math.sqrt(4096 / lane_bytes), rel=0.15)
    assert spread(num_lanes=96) == pytest.approx(0.2 * math.sqrt(4096 / lane_bytes * 4), rel=0.15)


def test_what_is_assumed_does_not_vary(mixed: list[str]) -> None:
    corpus = dataset_of(mixed).corpus()
    tokens = lane_sizes(corpus, assumed(4.0, 128), 0).tokens
    assert tokens.sum() == pytest.approx(corpus.table.total_bytes / 4)
    assert tokens.max() - tokens.min() < 1
