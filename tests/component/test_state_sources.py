"""The state of a run with sources and stages: on other ranks, with the future edited, and with sources not named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from support.reference import prose

import streampack
from streampack import Source, Stage
from streampack.state.joining import to_json
from streampack.testing import ByteTokenizer, write_shards

LANES = 12
FIRST = Stage(weights={"web": 0.7, "code": 0.3})
SECOND = Stage(at_packs=48, weights={"web": 0.5, "code": 0.5})
Pack = tuple[int, list[int]]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("sources")
    return {
        name: write_shards(folder / name, prose(seed, documents), documents_per_shard=17)
        for seed, (name, documents) in enumerate({"web": 120, "code": 80, "books": 24}.items())
    }


class Job:
    """The loaders of all ranks in this process."""

    def __init__(self, data: Any, stages: Any, ranks: int = 1, batch_size: int = 1) -> None:
        dataset = streampack.PackedDataset(data, ByteTokenizer(), seq_len=32, num_lanes=LANES, stages=stages)
        self.loaders = [
            streampack.PackedDataLoader(dataset, batch_size=batch_size, num_workers=0, dp_rank=rank, dp_size=ranks)
            for rank in range(ranks)
        ]
        self.per_step = ranks * batch_size

    def load(self, state: Any) -> "Job":
        for loader in self.loaders:
            loader.load_state_dict(state)
        return self

    def take(self, packs: int) -> list[Pack]:
        """(source, tokens) of the next packs in the global order."""
        found, iterators = [], [iter(loader) for loader in self.loaders]
        for _ in range(packs // self.per_step):
            batches = [next(iterator) for iterator in iterators]
            for row in range(len(batches[0]["tokens"])):
                found += [(int(each["source_ids"][row]), each["tokens"][row].tolist()) for each in batches]
        return found

    def state(self) -> Any:
        return streampack.merge_state_dicts(loader.state_dict() for loader in self.loaders)


def two(shards: dict[str, list[str]]) -> dict[str, Source]:
    return {"web": Source(shards["web"]), "code": Source(shards["code"])}


@pytest.mark.filterwarnings("ignore")  # torch says that it saves in one process
def test_an_edited_future_is_as_if_it_had_been_there_from_the_start(
    shards: dict[str, list[str]], tmp_path: Path
) -> None:
    """With one source more, on other ranks, by JSON and by a checkpoint of torch, which has fewer sources."""
    third = Stage(at_packs=120, sources={"books": Source(shards["books"])}, weights={"web": 0.3, "books": 0.7})
    wanted = Job(two(shards), [FIRST, SECOND, third]).take(192)
    assert {source for source, _ in wanted[:120]} == {0, 1} and {source for source, _ in wanted[120:]} == {0, 2}
    before = Job(two(shards), [FIRST, SECOND], ranks=3, batch_size=4)
    assert before.take(72) == wanted[:72]
    state = before.state()
    dcp.save({"loader": state}, checkpoint_id=tmp_path)
    for ranks, batch_size in ((1, 4), (2, 6), (12, 1)):
        job = Job(two(shards), [FIRST, SECOND, third], ranks, batch_size)
        if ranks == 12:
            for loader in job.loaders:
                loader.load_checkpoint(tmp_path)
        else:
            job.load(json.loads(to_json(state)) if ranks == 2 else state)
        assert job.take(120) == wanted[72:]


def test_the_past_is_not_edited(shards: dict[str, list[str]]) -> None:
    before = Job(two(shards), [FIRST, SECOND])
    before.take(72)
    for stages, text in (
        ([FIRST, Stage(at_packs=48, weights={"web": 2, "code": 1})], r"stages\[1\].weights: .*0.5.*'web': 2.*now"),
        ([FIRST], r"stages\[1\] \(at_packs=48\) has begun"),
        ([FIRST, SECOND, Stage(at_packs=60, weights={"web": 1})], r"stages\[2\] .*global pack 60.* at global pack 72"),
        ([FIRST, SECOND, Stage(at_packs=50, weights={"web": 1})], r"stages\[2\] .*global pack 60.* at global pack 72"),
        ([FIRST, SECOND, Stage(at_packs=47, weights={"web": 1})], "stages"),
    ):
        with pytest.raises(streampack.StreampackError, match=text):
            Job(two(shards), stages).load(before.state())


def test_a_source_that_a_resume_does_not_name_goes_on_at_its_next_row(shards: dict[str, list[str]]) -> None:
    only_web, again = Stage(at_packs=48, weights={"web": 1}), Stage(at_packs=120, weights={"web": 0.5, "code": 0.5})
    wanted = Job(two(shards), [FIRST, only_web, again]).take(192)
    job = Job(two(shards), [FIRST, only_web])
    assert job.take(60) == wanted[:60]
    without = Job({"web": Source(shards["web"])}, [Stage(weights={"web": 0.7}), only_web], ranks=2).load(job.state())
    assert without.take(48) == wanted[60:108]
    state = without.state()
    assert json.loads(state["sources"]) == ["web", "code"]
    assert Job(two(shards), [FIRST, only_web, again], ranks=4).load(state).take(84) == wanted[108:]
    other = two(shards) | {"code": Source(shards["books"])}
    with pytest.raises(streampack.StreampackError, match="source 'code', shards: "):
        Job(other, [FIRST, only_web, again]).load(state)


@pytest.mark.parametrize("at", [48, 60])
def test_a_past_source_is_left_out_and_comes_back_where_it_was(shards: dict[str, list[str]], at: int) -> None:
    """Where its stage is over, also exactly there; and where it was the only source of its stage."""
    alone, web, later = Stage(weights={"code": 2}), Stage(at_packs=48, weights={"web": 1}), Stage(at_packs=96)
    for first in (FIRST, alone):
        back = Stage(at_packs=96, weights={"web": 1, "code": 1})
        wanted = Job(two(shards), [first, web, back]).take(120)
        job = Job(two(shards), [first, web])
        job.take(at)
        less = {"web": Source(shards["web"])}
        without = Job(less, [Stage(), web, later]).load(job.state())
        assert [tokens for _, tokens in without.take(96 - at)] == [tokens for _, tokens in wanted[at:96]]
        again = Job(two(shards), [first, web, back]).load(without.state())
        assert again.take(24) == wanted[96:]


def test_a_lower_max_epochs_does_not_end_a_source_in_mid_epoch(shards: dict[str, list[str]]) -> None:
    def books(most: int | None) -> dict[str, Source]:
        return {"web": Source(shards["web"]), "books": Source(shards["books"], max_epochs=most)}

    job = Job(books(None), [Stage(weights={"web": 1, "books": 3})])
    while job.loaders[0].progress()["epochs"]["books"] < 1.5:
        job.take(24)
    message = r"max_epochs=1 of source 'books' .*lane \d+ .*max_epochs=\d+ ends"
    with pytest.raises(streampack.StateError, match=message) as error:
        Job(books(1), [Stage(weights={"web": 1, "books": 3})]).load(job.state())
    enough = int(str(error.value).split("max_epochs=")[2].split()[0])
    for most in (enough, None):
        Job(books(most), [Stage(weights={"web": 1, "books": 3})]).load(job.state()).take(12)
    with pytest.raises(streampack.StateError, match=f"max_epochs={enough - 1} of source 'books'"):
        Job(books(enough - 1), [Stage(weights={"web": 1, "books": 3})]).load(job.state())
