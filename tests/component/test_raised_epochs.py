"""More epochs at a resume, where lanes are inside packing windows that the end of the run cut short: each row once."""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from support.arguments import packed_dataset
from support.jobs import Array, Corpus, Job, texts, tokens_of, write_corpus
from support.thorough import some

from streampack import PackedDataset, Packing, Source, Stage
from streampack.errors import StateError
from streampack.records import Cursor

NUM_LANES = 6
BEST = Packing("best_fit", window=5)
TOPOLOGIES = [(1, 0, 6), (2, 0, 3), (3, 0, 2), (6, 0, 1)]
"""Ranks, workers, batch size: all give a round of packs with a step."""
CASES: dict[str, dict[str, Any]] = {
    "max_epochs": {},
    "epochs": {"epochs": True},
    "blocks": {"shuffle": True},
    "blocks without windows of best_fit": {"shuffle": True, "packing": "wrap"},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    return write_corpus(folder, [(".tar", texts(40, seed=5, longest=110)), (".tar", texts(30, seed=6, first=40))])


def made(corpus: Corpus, most: int, *, epochs: bool = False, **changes: Any) -> PackedDataset:
    """`epochs`: that argument has the number of epochs, not `max_epochs` of the source."""
    data = {"default": Source(corpus.urls, max_epochs=None if epochs else most)}
    given = {"seq_len": 32, "num_lanes": NUM_LANES, "shuffle": "shards", "packing": BEST, **changes}
    return packed_dataset(data, epochs=most if epochs else None, **given)


def cursors(state: dict[str, Any]) -> list[Cursor]:
    return [Cursor(*state[f"lanes.{lane:06d}"][0][: len(Cursor._fields)]) for lane in range(NUM_LANES)]


def run(data: PackedDataset) -> tuple[list[dict[int, Array]], list[dict[str, Any]]]:
    """The packs of each round, and the states before the rounds and after the last one."""
    rounds: list[dict[int, Array]] = []
    with Job(data, 1, 0, NUM_LANES) as job:
        states = [job.state()]
        while packs := job.step():
            rounds.append(packs)
            states.append(job.state())
    return rounds, states


def joined(rounds: list[dict[int, Array]]) -> dict[int, Array]:
    return {number: pack for packs in rounds for number, pack in packs.items()}


def assert_each_row_once_an_epoch(corpus: Corpus, packs: dict[int, Array], epochs: int) -> None:
    pairs = Counter(
        (token, label) for pack in packs.values() for token, label in zip(*pack[:2].tolist(), strict=True) if label >= 0
    )
    wanted = Counter(pair for text in corpus.texts for pair in itertools.pairwise(tokens_of(text)))
    assert pairs == Counter({pair: count * epochs for pair, count in wanted.items()})


def lanes_cut_short(state: dict[str, Any], states: list[dict[str, Any]]) -> list[int]:
    """The lanes that are inside the window that the end of the run has cut short, by the states of all rounds."""
    found = []
    for lane, cursor in enumerate(cursors(state)):
        last = next(each[lane] for each in map(cursors, reversed(states)) if each[lane].epoch == 0)
        if cursor.given and cursor[:7] == last[:7]:
            found.append(lane)
    return found


@pytest.mark.parametrize("name", some(list(CASES), 2))
def test_more_epochs_may_be_read_on_every_topology(corpus: Corpus, name: str) -> None:
    changes = CASES[name]
    rounds, states = run(made(corpus, 1, **changes))
    data = made(corpus, 2, **changes)
    inside = 0
    at_most = sorted(range(len(states)), key=lambda at: len(lanes_cut_short(states[at], states)), reverse=True)
    for at, topology in zip(at_most, TOPOLOGIES, strict=False):
        state = states[at]
        with Job(data, *topology, state=state) as job:
            rest, _ = job.run_out()
            assert_each_row_once_an_epoch(corpus, joined(rounds[:at]) | rest, 2)
            assert job.stats()["documents"] == 2 * len(corpus.texts)
        lanes = lanes_cut_short(state, states)
        inside += len(lanes)
        for lane, later in itertools.product(lanes, range(at, len(rounds))):
            if cursors(states[later])[lane].epoch == 0:  # the window's packs stay
                number = next(number for number in rounds[later] if number % NUM_LANES == lane)
                np.testing.assert_array_equal(rest[number], rounds[later][number])
    assert (inside > 0) == ("packing" not in changes)


def test_a_run_with_more_epochs_goes_on_the_same_on_every_topology(corpus: Corpus) -> None:
    """Twice more, and a stage that cuts rows in another way between."""
    rounds, states = run(made(corpus, 1))
    at = max(range(len(states)), key=lambda index: len(lanes_cut_short(states[index], states)))
    stages = [Stage(), Stage(at_packs=(at + 1) * NUM_LANES, seq_len=40)]
    packs = joined(rounds[:at])
    wanted: dict[int, Array] = {}
    with Job(made(corpus, 2, stages=stages), state=states[at]) as job:
        wanted = job.step(3 * NUM_LANES)
    state = states[at]
    for topology in TOPOLOGIES[:3]:
        with Job(made(corpus, 2, stages=stages), *topology, state=state) as job:
            packs |= job.step()
            state = job.state()
    for number, pack in wanted.items():
        np.testing.assert_array_equal(packs[number], pack)
    with Job(made(corpus, 3, stages=stages), 1, 2, NUM_LANES, state=state) as job:
        packs |= job.run_out()[0]
        assert job.stats()["documents"] == 3 * len(corpus.texts)
    assert_each_row_once_an_epoch(corpus, packs, 3)


def test_a_pass_that_is_over_goes_on_with_more_epochs(corpus: Corpus) -> None:
    with Job(made(corpus, 1, epochs=True), 1, 0, NUM_LANES) as job:
        first, _ = job.run_out()
        state = job.state()
    assert cursors(state) == [Cursor(epoch=1)] * NUM_LANES
    with Job(made(corpus, 2, epochs=True), 2, 0, 3, state=state) as job:
        rest, _ = job.run_out()
    assert_each_row_once_an_epoch(corpus, first | rest, 3)


@pytest.mark.parametrize("epochs", [False, True])
def test_fewer_epochs_than_a_window_holds_are_an_error(corpus: Corpus, epochs: bool) -> None:
    """The window begins in the epoch before and has documents of the next one; some of its packs are out."""
    data = made(corpus, 2, epochs=epochs)
    with Job(data, 1, 0, NUM_LANES) as job:
        state = job.state()
        while not any((each.epoch, each.until) == (0, 2) for each in cursors(state)):
            assert job.step()
            state = job.state()
    assert all(each.until > each.epoch for each in cursors(state) if each.given)
    if any(each.epoch for each in cursors(state)):
        pytest.fail("another lane is in the next epoch, which is an error without the window")
    with pytest.raises(StateError, match=r"epochs=1 .* is in epoch 1 already"):
        Job(made(corpus, 1, epochs=epochs), state=state)
