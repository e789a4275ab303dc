"""Where a run of sources and stages is and ends: its budget, its length, and what has been read of each source."""

from collections.abc import Mapping
from typing import Any

import pytest
from support.arguments import packed_dataset
from support.mixtures import Packs, Ranks

from streampack import PackedDataLoader, PackedDataset, Source, Stage
from streampack.testing import write_shards

LANES = 12
NAMES = ("web", "code", "books")
END = 331
STAGES = [
    Stage(weights={"web": 0.6, "code": 0.4}),
    Stage(at_packs=90, weights={"web": 0.5, "code": 0.2, "books": 0.3}, seq_len=96),
    Stage(at_packs=200, weights={"code": 0.5, "books": 0.5}, seq_len=64),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sources")
    for name, many in zip(NAMES, (400, 200, 60), strict=True):
        texts = [f"{name[0]}{index:04d} " + "x" * (index * 7 % 90) for index in range(many)]
        write_shards(folder / name, texts, documents_per_shard=50)
    return {name: str(folder / name) for name in NAMES}


def dataset(shards: Mapping[str, str], **changes: Any) -> PackedDataset:
    data = {name: Source(shards[name], max_epochs=1 if name == "books" else None) for name in NAMES}
    given = {"seq_len": 64, "num_lanes": LANES, "stages": STAGES, "num_packs": END, "shuffle": "shards"}
    return packed_dataset(data, **given | changes)


@pytest.fixture(scope="module")
def whole(shards: dict[str, str]) -> Packs:
    with Ranks(dataset(shards), 1, 0, 1) as job:
        return job.run()


def test_a_budget_may_be_raised(shards: dict[str, str], whole: Packs, caplog: pytest.LogCaptureFixture) -> None:
    with Ranks(dataset(shards, num_packs=210), 2, 0, 5) as job:
        found, state = job.run(), job.state()
        assert not job.run()
        assert "no batch is left of the run, at global pack 210: its budget is used up" in caplog.text
    with Ranks(dataset(shards), 1, 0, 4, state) as job:
        assert found | job.run() == whole


def test_a_run_whose_sources_all_end_is_over_and_a_larger_max_epochs_goes_on(
    shards: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    def limited(epochs: int) -> PackedDataset:
        data = {name: Source(shards[name], max_epochs=epochs) for name in ("code", "books")}
        return packed_dataset(data, seq_len=64, num_lanes=LANES, shuffle="shards")

    with Ranks(limited(1), 1, 0, 4) as job:
        first, state = job.run(), job.state()
        stats = job.loaders[0].stats()
        assert stats["documents"] == 260
        assert {name: each["epochs"] for name, each in stats["sources"].items()} == {"code": 1, "books": 1}
        assert not job.run()
        assert "its sources have been read as often as they may" in caplog.text
        assert job.loaders[0].stats()["documents"] == 260
    with Ranks(limited(2), 1, 0, 4, state) as job:
        assert min(job.run()) > max(first)
        assert job.loaders[0].stats()["documents"] == 520


def test_progress_stage_and_counts_of_each_source(shards: dict[str, str]) -> None:
    with Ranks(dataset(shards), 1, 0, 4) as job:
        [loader] = job.loaders
        before = loader.progress()
        assert (before["packs"], before["stage"], before["share"], loader.stage) == (0, 0, 0, 0)
        job.run(23)
        assert loader.stage == 0
        job.run(1)
        assert (loader.stage, loader.progress()["stage"]) == (1, 1)
        assert loader.progress()["tokens"] == 96 * 64
        job.run(6)
        progress, sources = loader.progress(), loader.stats()["sources"]
        assert progress["tokens"] == 96 * 64 + 24 * 96
        assert progress["share"] == progress["tokens"] / (96 * 64 + 108 * 96 + (END - 204) * 64)
        assert list(progress["epochs"]) == list(sources) == list(NAMES)
        assert 0 < progress["epochs"]["web"] < progress["epochs"]["code"] < 1
        assert [each["share"] for each in sources.values()] == pytest.approx([0.5, 0.2, 0.3])
        assert sum(each["packs"] for each in sources.values()) == 120
        assert sum(each["tokens"] for each in sources.values()) == loader.stats()["tokens"]
        assert sum(each["share_so_far"] for each in sources.values()) == pytest.approx(1)


def test_what_is_skipped_is_counted_for_its_source(shards: dict[str, str], whole: Packs) -> None:
    with Ranks(dataset(shards), 1, 0, 3) as job, Ranks(dataset(shards), 1, 0, 3) as other:
        [loader], [given] = job.loaders, other.loaders
        assert loader.skip(40) == 40
        other.run(40)
        for here, there in zip(loader.stats()["sources"].values(), given.stats()["sources"].values(), strict=True):
            assert all(here[key] == there[key] for key in ("packs", "documents", "epochs", "share_so_far"))
        rest = job.run()
        assert rest == {number: whole[number] for number in rest}
        assert len(rest) == END - loader.stats()["skipped_packs"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "num_tokens or num_packs"),
        ({"epochs": 1}, "its end is found as it is read"),
        ({"num_packs": 5}, "all sources of stage 0 have max_epochs"),
    ],
)
def test_a_run_whose_end_is_not_known_has_no_length(
    shards: dict[str, str], arguments: dict[str, Any], text: str
) -> None:
    code = Source(shards["code"], max_epochs=1 if "num_packs" in arguments else None)
    loader = PackedDataLoader(packed_dataset({"code": code}, num_lanes=2, **arguments), num_workers=0)
    with pytest.raises(TypeError, match=text):
        len(loader)
    assert loader, "bool() does not ask for it"
