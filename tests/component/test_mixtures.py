"""Runs of several sources and stages against a second, slow implementation, which shares no code with the first."""

import itertools
import random
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from support.jobs import EOS, LANES, NAMES, Corpus, texts, uneven, write_corpus
from support.mixtures import JOURNEYS, Cut, Mixture, Packs, Ranks, assert_packs, source_at
from support.thorough import nightly

from streampack import Shuffle, Source, Stage, StreampackError
from streampack.corpus.partition import fitting_ranks

END = 420
WINDOWS = Shuffle(block_bytes=4096, window=3)
TOPOLOGIES = list(itertools.product((1, 2, 4, 12), range(4), (1, 2, 5, 8)))
"""Ranks, workers, batch size."""
FEW = [("shards", 1, 2, 8), ("shards", 2, 1, 5), ("windows", 4, 0, 3), ("windows", 12, 0, 2)]
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
        length = len(job.loaders[0])
        assert_packs(job.run(), wanted)
        assert job.counts == [length] * topology[0]
        assert len(job.loaders[0]) == length
        assert not job.run()


@pytest.mark.parametrize("order", ["shards", "windows"])
def test_iteration_without_a_loader_has_them(order: str, request: pytest.FixtureRequest) -> None:
    mixed, wanted = request.getfixturevalue(order)
    found = [tuple(tuple(item[name].tolist()) for name in NAMES) for item in mixed.dataset(num_packs=END)]
    assert found == [pack for _, pack in wanted.values()]


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
            state = job.state()
            if len(found) >= END:
                break
            assert job.loaders[0].progress()["packs"] == state["global_pack"]
            state = JOURNEYS[given[turn % 3]](state, tmp_path / f"{turn}")
    assert turn > 6
    assert_packs(found, wanted)
    with Ranks(data, 1, 0, 1, state) as job, Ranks(data, 1, 0, 7) as other:
        other.run()
        [resumed], [whole] = job.loaders, other.loaders
        assert resumed.digest() == whole.digest()
        assert resumed.stats()["sources"] == whole.stats()["sources"]


def random_mixture(folder: Path, choose: random.Random) -> Mixture:
    seq_len, num_lanes = choose.choice((8, 16, 32)), choose.choice((4, 6, 12))
    corpora = {}
    for name in "abcd"[: choose.randint(2, 4)]:
        shards = []
        for number in range(choose.randint(1, 3)):
            count = choose.randint(40, 100)
            group = texts(count, seed=choose.randrange(99), first=100 * number, longest=choose.choice((20, 150)))
            if choose.random() < 0.4:  # each document fills a pack
                group = [f"{index:04d}" + "x" * (seq_len - 6) for index in range(count)]
            shards.append((choose.choice((".tar", ".tar", ".tar.gz")), group))
        corpora[name] = write_corpus(folder / name, [(".tar", shards[0][1]), *shards[1:]])
    stages, at = [], 0
    for number in range(choose.randint(1, 4)):
        weights = {name: choose.choice((0, 1, 2, 0.01, 5)) for name in corpora} | {"a": choose.choice((1, 0.3))}
        at += choose.randint(2, 8) * num_lanes
        changes = {
            "seq_len": choose.choice((None, 8, 16, 32)),
            "boundary": choose.choice((None, None, "mask", "keep", "trim")),
            "packing": choose.choice((None, None, "wrap", "next_fit")),
        }
        stages.append(Stage(weights=weights, **({"at_packs": at, **changes} if number else {})))
    return Mixture(
        corpora=corpora,
        stages=stages,
        max_epochs={name: choose.randint(1, 3) for name in corpora if choose.random() < 0.6},
        cut=Cut(seq_len, choose.choice(("mask", "keep", "trim")), choose.choice(("wrap", "next_fit"))),
        shuffle=choose.choice(("shards", WINDOWS)),
        seed=choose.randrange(9),
        num_lanes=num_lanes,
    )


@pytest.mark.parametrize("seed", [0, 1, *nightly(range(2, 80))])
def test_random_mixtures_have_the_packs_that_the_rules_give(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    mixed = random_mixture(tmp_path, choose)
    end = mixed.begins()[-1] + choose.randint(5, 15) * mixed.num_lanes
    data = mixed.dataset(num_packs=end)
    ends = set(mixed.max_epochs) >= set(mixed.corpora)  # the ranks of a finite run wait for each other
    ranks = 1 if ends else choose.choice(fitting_ranks(mixed.num_lanes))
    with Ranks(data, ranks, 0, choose.randint(1, 6)) as job:
        assert_packs(job.run(), mixed.packs(end))


# --- what a source keeps


def texts_of(packs: list[Any]) -> list[str]:
    """The documents of consecutive packs of a source in a lane, under "mask"."""
    rows = [row for pack in packs for row in zip(*pack, strict=True)]
    tokens = [token for token, _, _, segment in rows if segment]
    found = []
    while tokens:
        end = tokens.index(EOS) if EOS in tokens else len(tokens)  # of a last pack that would hold an EOS alone
        found.append(bytes(token - 3 for token in tokens[1:end]).decode())
        tokens = tokens[end + 1 :]
    return found


def each_lane(packs: Packs, source: int, num_lanes: int = LANES) -> list[list[Any]]:
    """The packs of a source in each lane."""
    mine = [(number, pack) for number, (of, pack) in sorted(packs.items()) if of == source]
    return [[pack for number, pack in mine if number % num_lanes == lane] for lane in range(num_lanes)]


def assert_begins(longer: list[list[Any]], shorter: list[list[Any]]) -> None:
    assert any(shorter)
    for long, short in zip(longer, shorter, strict=True):
        assert long[: len(short)] == short


def test_each_document_comes_once_an_epoch_of_its_source_through_three_edits_of_the_future(
    corpora: dict[str, Corpus],
) -> None:
    """And the packs are those of a run that had all edits from its start."""
    epochs = {"web": 1, "code": 2, "notes": 3}
    three = {name: corpora[name] for name in epochs}
    first = Stage(weights={"web": 0.7, "code": 0.2, "notes": 0.1})
    dropped = Stage(at_packs=250, weights={"web": 1})
    edits = [
        [first, dropped],
        [first, Stage(at_packs=96, weights={"web": 1, "notes": 2}, seq_len=48), dropped],
        [
            first,
            Stage(at_packs=96, weights={"web": 1, "notes": 2}, seq_len=48),
            Stage(at_packs=144, weights={"code": 1}),
        ],
    ]
    edits.append([*edits[-1], Stage(at_packs=192, weights={"web": 5, "code": 2, "notes": 2}, seq_len=24)])
    turns = [(4, 3, 4), (2, 5, 6), (3, 4, 4), (1, 1, 7)]
    found, state = Packs(), None
    for stages, (ranks, batches, batch_size) in zip(edits, turns, strict=True):
        data = Mixture(corpora=three, stages=stages, max_epochs=epochs).dataset()
        with Ranks(data, ranks, 0, batch_size, state) as job:
            found |= job.run(batches if ranks > 1 else None)
            state = job.state()
            stats = job.loaders[0].stats()["sources"]
    run = Mixture(corpora=three, stages=edits[-1], max_epochs=epochs)
    assert_packs(found, run.packs(10**4))
    for source, (name, times) in enumerate(epochs.items()):
        of_epochs = [[run.texts(name, lane, epoch) for lane in range(LANES)] for epoch in range(times)]
        for each in of_epochs:
            assert Counter(itertools.chain(*each)) == Counter(corpora[name].texts)
        assert [texts_of(lane) for lane in each_lane(found, source)] == [
            list(itertools.chain(*lane)) for lane in zip(*of_epochs, strict=True)
        ]
        assert stats[name]["epochs"] == times


def test_a_source_that_may_not_end_is_an_error(corpora: dict[str, Corpus]) -> None:
    two = {name: corpora[name] for name in ("web", "books")}
    data = Mixture(corpora=two, stages=[Stage()], max_epochs={"books": 1}).dataset(exhausted="error")
    with pytest.raises(StreampackError, match="books.*max_epochs"):
        list(itertools.islice(data, 1000))


def test_a_source_that_pauses_for_a_thousand_packs_goes_on_at_its_next_row(corpora: dict[str, Corpus]) -> None:
    two = {name: corpora[name] for name in ("web", "code")}
    both, only_code = {"web": 0.5, "code": 0.5}, {"code": 1}
    stages = [Stage(weights=both), Stage(at_packs=96, weights=only_code), Stage(at_packs=96 + 1008, weights=both)]
    with Ranks(Mixture(corpora=two, stages=stages).dataset(num_packs=1200), 1, 0, 24) as job:
        found = job.run(30)
        state = job.state()
    assert all(found[number][0] == 1 for number in range(96, 720))
    with Ranks(Mixture(corpora=two, stages=stages).dataset(num_packs=1200), 2, 0, 16, state) as job:
        found |= job.run()
    assert all(found[number][0] == 1 for number in range(96, 96 + 1008))
    with Ranks(Mixture(corpora={"web": corpora["web"]}, stages=[Stage()]).dataset(num_packs=180), 1, 0, 12) as job:
        assert_begins(each_lane(job.run(), 0), each_lane(found, 0))
    before = each_lane({number: pack for number, pack in found.items() if number < 96}, 0)
    assert all(len(all_of) > len(part) > 0 for all_of, part in zip(each_lane(found, 0), before, strict=True))


def test_weights_and_other_sources_leave_the_order_inside_a_source_as_it_was(corpora: dict[str, Corpus]) -> None:
    def run(names: str, weights: dict[str, float]) -> dict[str, list[list[Any]]]:
        some = {name: corpora[name] for name in names.split()}
        with Ranks(Mixture(corpora=some, stages=[Stage(weights=weights)]).dataset(num_packs=240), 1, 0, 24) as job:
            packs = job.run()
        return {name: each_lane(packs, source) for source, name in enumerate(some)} | {"": each_lane(packs, -1)}

    two, same = run("web code", {"web": 1, "code": 3}), run("books web code", {"books": 0, "web": 1, "code": 3})
    assert (same["web"], same["code"]) == (two["web"], two["code"]), "a source of weight 0 changes no pack"
    more = run("code books web", {"web": 1, "code": 1, "books": 1})
    for name in ("web", "code"):
        lanes = [sorted(pair, key=len) for pair in zip(two[name], more[name], strict=True)]
        assert_begins([long for _, long in lanes], [short for short, _ in lanes])


def test_the_shares_of_exhausted_sources_go_to_the_rest_in_proportion(corpora: dict[str, Corpus]) -> None:
    three = {name: corpora[name] for name in ("web", "code", "notes")}
    mixed = Mixture(corpora=three, stages=[Stage(weights={"web": 3, "code": 2, "notes": 5})], max_epochs={"notes": 1})
    wanted = mixed.packs(600)
    last = max(number for number, (source, _) in wanted.items() if source == 2)
    assert last < 480
    web = sum(source == 0 for number, (source, _) in wanted.items() if number > last)
    assert abs(web - 0.6 * (599 - last)) < 6, "3 to 2"
    for ranks, batch_size in ((1, 10), (3, 4), (12, 5)):
        with Ranks(mixed.dataset(num_packs=600), ranks, 0, batch_size) as job:
            assert_packs(job.run(), wanted)


# --- a stage whose sources are all exhausted before the next one begins


def with_gap(corpora: dict[str, Corpus], begin: int, **changes: Any) -> Mixture:
    """Lanes come to the end of the books at different packs; web is from the next stage on."""
    stages = [Stage(weights={"books": 1}), Stage(at_packs=begin, weights={"web": 1}, seq_len=48)]
    some = {name: corpora[name] for name in ("books", "web")}
    return Mixture(**{"corpora": some, "stages": stages, "max_epochs": {"books": 1}, **changes})


@pytest.fixture(scope="module")
def last_book(corpora: dict[str, Corpus]) -> int:
    """The last global pack of the books."""
    return max(number for number, (source, _) in with_gap(corpora, 600).packs(600).items() if source == 0)


@pytest.mark.parametrize("rounds", [1, *nightly([0, 3])])
@pytest.mark.parametrize(("ranks", "workers", "batch_size"), [(1, 0, 1), (2, 1, 5), (12, 0, 3)])
def test_lanes_wait_for_the_next_stage(
    corpora: dict[str, Corpus], last_book: int, rounds: int, ranks: int, workers: int, batch_size: int
) -> None:
    """Also where all lanes do, and so for whole rounds."""
    begin = (last_book // LANES + rounds) * LANES
    mixed, end = with_gap(corpora, begin), begin + 40
    wanted = mixed.packs(end)
    with Ranks(mixed.dataset(num_packs=end), ranks, workers, batch_size) as job:
        length = len(job.loaders[0])
        assert_packs(job.run(), wanted)
        assert job.counts == [length] * ranks
        stats = [loader.stats() for loader in job.loaders]
        assert sum(each["fillers"] for each in stats) == end - len(wanted) > 0
        assert sum(each["sources"]["books"]["exhausted_lanes"] for each in stats) == (LANES if rounds else LANES - 1)


@pytest.mark.parametrize("web_ends", [False, True])
def test_resumes_while_lanes_wait_go_on_with_the_next_stage(
    corpora: dict[str, Corpus], last_book: int, web_ends: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Web may end, too: then ranks of a job must agree on the end, which by hand only one rank can."""
    begin = (last_book // LANES + 3) * LANES
    mixed = with_gap(corpora, begin, max_epochs={"books": 1, **({"web": 1} if web_ends else {})})
    end = begin + (10**4 if web_ends else 60)
    data, wanted = mixed.dataset(num_packs=end), mixed.packs(end)
    found, state, topologies = Packs(), None, [(2, 3), (12, 1), (1, 4), (3, 2)]
    for turn in itertools.count():
        ranks, batch_size = (1, 7) if web_ends else topologies[turn % 4]
        with Ranks(data, ranks, 0, batch_size, state) as job:
            part = job.run(None if found and max(found) > begin else 2)
            assert not part.keys() & found.keys(), "a pack twice"
            found |= part
            state = job.state()
            fillers = sum(loader.stats()["fillers"] for loader in job.loaders)
            books = sum(loader.stats()["sources"]["books"]["exhausted_lanes"] for loader in job.loaders)
        if last_book < state["global_pack"] <= begin:
            assert books == LANES
            assert fillers == state["global_pack"] - len(found)
        if found and max(found) > begin and not part:
            break
    assert turn > 20
    assert_packs(found, wanted)
    assert "all sources of stage 0 are exhausted in a lane at global pack" in caplog.text
    assert "with which stage 1 begins. A larger max_epochs, or an earlier begin" in caplog.text


def test_exhaustion_is_logged_once_and_again_at_a_resume(
    corpora: dict[str, Corpus], caplog: pytest.LogCaptureFixture
) -> None:
    some = {name: corpora[name] for name in ("books", "web")}
    mixed = Mixture(corpora=some, stages=[Stage(weights={"books": 1, "web": 1})], max_epochs={"books": 1})
    told, state, lanes = [], None, []
    for _ in range(2):
        caplog.clear()
        with Ranks(mixed.dataset(num_packs=480), 1, 2, 4, state) as job:
            job.run(60)
            state = job.state()
            lanes.append(job.loaders[0].stats()["sources"]["books"]["exhausted_lanes"])
        told.append([each.getMessage() for each in caplog.records if "is exhausted in" in each.getMessage()])
    assert [len(each) for each in told] == [1, 1]
    assert "source 'books' is exhausted in 1 of the 12 lanes of this rank, at global pack" in told[0][0]
    assert 1 < lanes[0] < lanes[1]
    assert f"is exhausted in {lanes[0]} of the 12 lanes of this rank, at global pack 240: max_ep" in told[1][0]
    assert "max_epochs=1 is used up there" in told[1][0]


def test_a_dataset_and_its_iterator_wait_too(corpora: dict[str, Corpus], last_book: int) -> None:
    begin = (last_book // LANES + 3) * LANES
    mixed, end = with_gap(corpora, begin), begin + 24
    items = list(mixed.dataset(num_packs=end))
    assert [tuple(item["tokens"].tolist()) for item in items] == [
        pack[0] for _, (_, pack) in sorted(mixed.packs(end).items())
    ]
