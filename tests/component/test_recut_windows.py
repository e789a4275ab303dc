"""Stages that cut rows in another way while lanes are inside packing windows: the same packs on every topology."""

import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.arguments import packed_dataset
from support.chats import CONVERSATIONS, ChatBytes, shards_of
from support.jobs import Array, Corpus, Job, texts, tokens_of, write_corpus
from support.thorough import some

from streampack import PackedDataset, Packing, Source, Stage
from streampack.errors import StateError
from streampack.state.checkpoint import FIELDS

NUM_LANES, AT = 6, 18
BEST = Packing("best_fit", window=7)
TOPOLOGIES = [(1, 0, 6), (2, 0, 3), (3, 0, 2), (6, 0, 1)]
"""Ranks, workers, batch size: all give a round of packs with a step."""
CASES: dict[str, tuple[dict[str, Any], list[Stage]]] = {
    "from next_fit": ({"packing": "next_fit"}, [Stage(packing=BEST, seq_len=48)]),
    "larger": ({"packing": BEST}, [Stage(seq_len=56)]),
    "smaller": ({"packing": BEST}, [Stage(seq_len=20)]),
    "to wrap": ({"packing": BEST}, [Stage(packing="wrap", boundary="keep", seq_len=50)]),
    "another window": ({"packing": BEST}, [Stage(packing=Packing("best_fit", window=3))]),
    "three times": ({"packing": BEST}, [Stage(seq_len=50), Stage(seq_len=36), Stage(seq_len=28, packing="wrap")]),
    "truncated": (
        {"packing": Packing("best_fit", window=5, overflow="truncate"), "boundary": "trim"},
        [Stage(seq_len=20, packing=Packing("best_fit", window=4, overflow="drop"))],
    ),
    "in windows of a shuffle": ({"packing": BEST, "shuffle": True}, [Stage(seq_len=56, boundary="trim")]),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    return write_corpus(folder, [(".tar", texts(150, seed=5, longest=110))])


def made(corpus: Corpus, options: dict[str, Any], later: list[Stage], **changes: Any) -> PackedDataset:
    """Its stages begin one round after the other."""
    stages = [
        dataclasses.replace(stage, at_packs=AT + NUM_LANES * number) for number, stage in enumerate(later)
    ]
    data = {"all": Source(corpus.urls, max_epochs=1)}
    given = {"seq_len": 32, "num_lanes": NUM_LANES, "shuffle": "shards", "stages": [Stage(), *stages], **options}
    return packed_dataset(data, **{**given, **changes})


def run_out(job: Job) -> dict[int, Array]:
    return job.run_out()[0]


@pytest.mark.parametrize("name", some(list(CASES), 2, first=1))
def test_every_topology_and_every_resume_gives_the_same_packs(corpus: Corpus, name: str) -> None:
    options, later = CASES[name]
    data = made(corpus, options, later)
    with Job(data, 1, 0, NUM_LANES) as job:
        wanted = run_out(job)
        stats = job.stats()
    with Job(made(corpus, options, []), 1, 0, NUM_LANES) as job:
        for number, pack in job.step(AT // NUM_LANES).items():
            np.testing.assert_array_equal(pack, wanted[number])
    state: dict[str, Any] | None = None
    found: dict[int, Array] = {}
    inside = 0
    for _, topology in zip(range(7), itertools.cycle(TOPOLOGIES), strict=False):
        with Job(data, *topology, state=state) as job:
            found |= job.step()
            state = job.state()
        inside += any(state[f"lanes.{lane:06d}"][0][FIELDS.index("rest")] for lane in range(NUM_LANES))
    assert (inside > 0) == (name != "from next_fit")
    with Job(data, 1, 2, NUM_LANES, state=state) as job:  # lanes do not end together, and ranks by hand do not agree
        found |= run_out(job)
        assert job.stats() == stats
    assert found.keys() == wanted.keys()
    for number, pack in found.items():
        np.testing.assert_array_equal(pack, wanted[number])
    assert stats["documents"] == len(corpus.texts)
    if "truncate" not in name:
        assert_each_row_once(corpus, found, stats)


def assert_each_row_once(corpus: Corpus, packs: dict[int, Array], stats: dict[str, int]) -> None:
    """Each token of each document comes with its next one as the label."""
    pairs = Counter(
        (int(token), int(label))
        for pack in packs.values()
        for token, label, _, segment in pack.T.tolist()
        if segment and label >= 0
    )
    wanted = Counter(pair for text in corpus.texts for pair in itertools.pairwise(tokens_of(text)))
    if stats["targets"] > wanted.total():  # "keep": a document's last row has the next one's first token
        ends = pairs - wanted
        assert {token for token, _ in ends} == {tokens_of("")[-1]}
        pairs -= ends
    assert pairs == wanted


def test_conversations_keep_what_is_trained(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, CONVERSATIONS[:40])

    def trained(packing: Packing, stages: list[Stage]) -> Counter[tuple[int, int]]:
        data = {"talks": Source(shards, max_epochs=1)}
        given: dict[str, Any] = {"num_lanes": 1, "shuffle": False, "chat": "phi3", "field": "jsonl:messages"}
        run = PackedDataset(data, ChatBytes(), 200, packing=packing, stages=[Stage(), *stages], **given)
        with Job(run) as job:
            packs = run_out(job).values()
        return Counter((token, label) for pack in packs for token, label, *_ in pack.T.tolist() if label >= 0)

    best = trained(Packing("best_fit", overflow="split", window=8), [Stage(at_packs=3, seq_len=300)])
    assert best == trained(Packing("wrap"), [])


def test_a_stage_may_be_added_where_lanes_are_inside_a_window(corpus: Corpus) -> None:
    options, later = CASES["larger"]
    with Job(made(corpus, options, later), 1, 0, NUM_LANES) as job:
        wanted = run_out(job)
    with Job(made(corpus, options, []), 1, 0, NUM_LANES) as job:
        first = job.step(AT // NUM_LANES)
        state = job.state()
    with Job(made(corpus, options, later), 1, 2, NUM_LANES, state=state) as job:
        found = {**first, **run_out(job)}
    for number, pack in wanted.items():
        np.testing.assert_array_equal(found[number], pack)
    changed = made(corpus, options, [], seq_len=56)
    with pytest.raises(StateError, match=rf"lane 0 of source 'all' is inside a .* by a stage: Stage\(at_packs={AT}"):
        Job(changed, state=state, allow={"seq_len"})
