"""Runs of several sources and stages against a second, slow implementation, which shares no code with the first."""

import itertools
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from support.jobs import LANES, Corpus, texts, uneven, write_corpus
from support.mixtures import JOURNEYS, Mixture, Packs, Ranks, assert_packs, source_at
from support.thorough import nightly

from streampack import Shuffle, Source, Stage

END = 420
WINDOWS = Shuffle(block_bytes=4096, window=3)
TOPOLOGIES = list(itertools.product((1, 2, 4, 12), range(4), (1, 2, 5, 8)))
"""Ranks, workers, batch size."""
FEW = [("shards", 1, 0, 8), ("shards", 2, 1, 5), ("windows", 4, 0, 3), ("windows", 12, 0, 2)]
REST = [(order, *topology) for order in ("shards", "windows") for topology in TOPOLOGIES]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Corpus]:
    folder = tmp_path_factory.mktemp("mixtures")
    return {
        "web": uneven(folder / "web"),
        "code": write_corpus(folder / "code", [(".tar", texts(90, seed=11)), (".tar", texts(50, seed=12, first=90))]),
        "books": write_corpus(
            folder / "books", [(".tar", texts(40, seed=13)), (".tar.gz", texts(9, seed=14, first=40))]
        ),
        "notes": write_corpus(folder / "notes", [(".tar", texts(70, seed=15))]),
    }


def mixture(corpora: dict[str, Corpus], **changes: Any) -> Mixture:
    """Three sources, and a fourth one that a stage adds; each stage cuts in another way."""
    stages = [
        Stage(weights={"web": 0.6, "code": 0.4}),
        Stage(at_tokens=32 * 90 + 1, weights={"web": 5, "code": 2, "books": 3}, seq_len=48, boundary="keep"),
        Stage(at_packs=200, weights={"code": 0.5, "books": 0.5}, packing="next_fit", boundary="trim", seq_len=24),
        Stage(
            at_packs=300,
            sources={"notes": Source(corpora["notes"].urls)},
            weights={"web": 0.25, "notes": 0.7, "code": 0.05},
            packing="wrap",
            boundary="mask",
        ),
    ]
    return Mixture(**{"corpora": corpora, "stages": stages, "max_epochs": {"books": 1}, **changes})


@pytest.fixture(scope="module")
def shards(corpora: dict[str, Corpus]) -> tuple[Mixture, Packs]:
    mixed = mixture(corpora)
    assert mixed.begins() == [0, 96, 204, 300]
    return mixed, mixed.packs(END)


@pytest.fixture(scope="module")
def windows(corpora: dict[str, Corpus]) -> tuple[Mixture, Packs]:
    mixed = mixture(corpora, shuffle=WINDOWS, seed=3)
    return mixed, mixed.packs(END)


@pytest.fixture(params=[*FEW, *nightly([each for each in REST if each not in FEW])], ids=str)
def case(request: pytest.FixtureRequest) -> tuple[Mixture, Packs, tuple[int, int, int]]:
    order, *topology = request.param
    return *request.getfixturevalue(order), tuple(topology)


def test_every_topology_has_the_packs_that_the_rules_give(case: tuple[Mixture, Packs, tuple[int, int, int]]) -> None:
    mixed, wanted, topology = case
    with Ranks(mixed.dataset(num_packs=END), *topology) as job:
        assert_packs(job.run(), wanted)
        assert len(set(job.counts)) == 1


def test_the_run_has_all_that_it_is_to_show(shards: tuple[Mixture, Packs]) -> None:
    mixed, wanted = shards
    assert list(wanted) == list(range(END))
    assert [len(wanted[at][1][0]) for at in mixed.begins()] == [32, 48, 24, 24]
    weights = {1: Fraction(1, 2), 2: Fraction(1, 2)}
    asked = {number: source_at(weights, number % LANES, (number - 204) // LANES) for number in range(204, 300)}
    in_place_of_books = {number % LANES for number, source in asked.items() if source == 2 != wanted[number][0]}
    assert len(in_place_of_books) > 3, "lanes in which they are exhausted"
    assert {source for source, _ in wanted.values()} == {0, 1, 2, 3}


@pytest.mark.filterwarnings("ignore")  # torch says that it saves in one process
@pytest.mark.parametrize("seed", range(2) if not nightly([0]) else range(16))
def test_resumes_by_every_journey_go_on_with_them(
    shards: tuple[Mixture, Packs], windows: tuple[Mixture, Packs], tmp_path: Path, seed: int
) -> None:
    """On other ranks and batch sizes, and across the beginning of each stage."""
    choose = random.Random(seed)
    mixed, wanted = (shards, windows)[seed % 2]
    data, found, state, given = mixed.dataset(num_packs=END), Packs(), None, list(JOURNEYS)
    for turn in itertools.count():
        ranks, batch_size = choose.choice((1, 2, 4, 12)), choose.randint(1, 6)
        workers = choose.randrange(4) if nightly([0]) else 0
        with Ranks(data, ranks, workers, batch_size, state) as job:
            part = job.run(max(choose.randint(20, 60) // (ranks * batch_size), 1))
            assert not part.keys() & found.keys(), "a pack twice"
            found |= part
            if len(found) >= END:
                break
            state = JOURNEYS[given[turn % 3]](job.state(), tmp_path / f"{turn}")
    assert turn > 6
    assert_packs(found, wanted)
