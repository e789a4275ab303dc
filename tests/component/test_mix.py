"""A run of three sources, with stages and a budget, through the loader: the same packs on every topology and resume."""

import itertools
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import pytest
from support.arguments import packed_dataset
from support.thorough import nightly

from streampack import PackedDataLoader, PackedDataset, Source, Stage, merge_state_dicts
from streampack.state.joining import to_json
from streampack.testing import write_shards

LANES = 12
NAMES = ("web", "code", "books")
BOOKS = 2
END = 331
STAGES = [
    Stage(weights={"web": 0.6, "code": 0.4}),
    Stage(at_packs=90, weights={"web": 0.5, "code": 0.2, "books": 0.3}, seq_len=96),
    Stage(at_packs=200, weights={"code": 0.5, "books": 0.5}, seq_len=64),
]
Found = dict[int, tuple[int, tuple[int, ...]]]
"""By global number the source of a pack, and its tokens."""


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


class Ranks:
    """The ranks of a run, by hand."""

    def __init__(self, data: PackedDataset, ranks: int, workers: int, batch_size: int, state: Any = None) -> None:
        self.loaders = [
            PackedDataLoader(
                *(data, batch_size),
                num_workers=workers,
                dp_rank=rank,
                dp_size=ranks,
                provenance=True,
                multiprocessing_context="fork",
            )
            for rank in range(ranks)
        ]
        if state is not None:
            for loader in self.loaders:
                loader.load_state_dict(state)
        self.counts = [0] * ranks

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for loader in self.loaders:
            loader.close()

    def run(self, batches: int | None = None) -> Found:
        """So many batches of each rank; None: up to the end."""
        found: Found = {}
        for rank, loader in enumerate(self.loaders):
            for batch in itertools.islice(loader, batches):
                self.counts[rank] += 1
                numbers, sources = batch["pack_numbers"].tolist(), batch["source_ids"].tolist()
                for number, source, tokens in zip(numbers, sources, batch["tokens"].tolist(), strict=True):
                    assert number >= 0 or source < 0
                    assert number not in found
                    if source >= 0:  # else a filler
                        found[number] = source, tuple(tokens)
        return found

    def state(self) -> dict[str, Any]:
        merged = merge_state_dicts(loader.state_dict() for loader in self.loaders)
        state: dict[str, Any] = json.loads(to_json(merged))
        return state


@pytest.fixture(scope="module")
def whole(shards: dict[str, str]) -> Found:
    with Ranks(dataset(shards), 1, 0, 1) as job:
        return job.run()


def test_packs_are_of_the_sources_and_of_the_length_that_the_stages_say(
    shards: dict[str, str], whole: Found
) -> None:
    schedule = dataset(shards).run().schedule
    assert list(whole) == list(range(END))
    assert [len(tokens) for _, tokens in whole.values()] == [64] * 96 + [96] * 108 + [64] * (END - 204)
    exhausted = 0
    for number, (source, _) in whole.items():
        stage = schedule.stage_of(number)
        live, place = stage.shares.without({BOOKS}), (number % LANES, (number - stage.first_pack) // LANES)
        assert live is not None
        assert source in {stage.shares.source(*place), live.source(*place)}  # books have one epoch
        exhausted += stage.shares.source(*place) == BOOKS != source
    assert exhausted > 20


@pytest.mark.parametrize(
    ("ranks", "workers", "batch_size"),
    [
        *((1, 2, 5), (2, 0, 7), (4, 1, 3)),
        *nightly([(1, 1, 1), (1, 3, 4), (2, 3, 1), (3, 2, 8), (4, 0, 13), (6, 1, 2), (12, 0, 5)]),
    ],
)
def test_the_same_packs_on_every_topology(
    shards: dict[str, str], whole: Found, ranks: int, workers: int, batch_size: int
) -> None:
    with Ranks(dataset(shards), ranks, workers, batch_size) as job:
        length = len(job.loaders[0])
        assert job.run() == whole
        assert job.counts == [length] * ranks
        assert len(job.loaders[0]) == length
        assert not job.run()


@pytest.mark.parametrize("seed", [0, 1, *nightly(range(2, 8))])
def test_the_same_packs_through_resumes_on_other_ranks(shards: dict[str, str], whole: Found, seed: int) -> None:
    rng = random.Random(seed)
    found: Found = {}
    state = None
    while len(found) < END:
        ranks, batch_size = rng.choice([1, 2, 3, 4]), rng.choice([1, 2, 5])
        with Ranks(dataset(shards), ranks, 0, batch_size, state) as job:
            part = job.run(rng.randrange(4, 20))
            assert part.keys().isdisjoint(found)
            found |= part
            state = job.state()
            assert job.loaders[0].progress()["packs"] == state["global_pack"]
    assert dict(sorted(found.items())) == whole
    with Ranks(dataset(shards), 1, 0, 1, state) as job, Ranks(dataset(shards), 1, 0, 3) as other:
        other.run()
        assert job.loaders[0].digest() == other.loaders[0].digest()
        assert job.loaders[0].stats()["sources"] == other.loaders[0].stats()["sources"]


def test_a_budget_may_be_raised(shards: dict[str, str], whole: Found, caplog: pytest.LogCaptureFixture) -> None:
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


def test_what_is_skipped_is_counted_for_its_source(shards: dict[str, str], whole: Found) -> None:
    with Ranks(dataset(shards), 1, 0, 3) as job, Ranks(dataset(shards), 1, 0, 3) as other:
        [loader], [given] = job.loaders, other.loaders
        assert loader.skip(40) == 40
        other.run(40)
        for here, there in zip(loader.stats()["sources"].values(), given.stats()["sources"].values(), strict=True):
            assert all(here[key] == there[key] for key in ("packs", "documents", "epochs", "share_so_far"))
        rest = job.run()
        assert rest == {number: whole[number] for number in rest}
        assert len(rest) == END - loader.stats()["skipped_packs"]


def lengths(path: Path, **arguments: Any) -> Iterator[str]:
    write_shards(path, ["a text"] * 8, documents_per_shard=4)
    loader = PackedDataLoader(packed_dataset(str(path), num_lanes=2, **arguments), num_workers=0)
    with pytest.raises(TypeError) as caught:
        len(loader)
    assert loader
    yield str(caught.value)


def test_without_a_budget_there_is_no_length(tmp_path: Path) -> None:
    [endless] = lengths(tmp_path)
    assert "num_tokens or num_packs" in endless
    [finite] = lengths(tmp_path, epochs=1)
    assert "its end is found as it is read" in finite


def test_where_all_sources_may_end_before_the_budget_there_is_no_length(shards: dict[str, str]) -> None:
    data = {"code": Source(shards["code"], max_epochs=1)}
    loader = PackedDataLoader(packed_dataset(data, num_lanes=2, num_packs=5), num_workers=0)
    with pytest.raises(TypeError, match="all sources of stage 0 have max_epochs"):
        len(loader)
