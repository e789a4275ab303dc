"""More epochs at a restart, also inside a window that the end of the run cut short: each row once in each epoch."""

import random
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.jobs import write_tar
from support.runs import begun

from streampack import PackedDataset, Packing, Source, Stage
from streampack.lanes.pool import LanePool
from streampack.lanes.position import LaneFiller, LanePack
from streampack.lanes.run import LaneStart, Run
from streampack.records import Counts
from streampack.testing import ByteTokenizer

LANES = 3
LENGTHS = [size + 2 for size in random.Random(4).choices((0, 1, 3, 9, 14, 15, 30, 60), k=33)]
"""Of the documents, with their ends: rows."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[str]]:
    """The same documents in shards that are cut, and in shards that are not: then some lanes have none in an epoch."""
    folder = tmp_path_factory.mktemp("shards")
    documents = [(f"{number:02d}.txt", b"x" * (length - 2)) for number, length in enumerate(LENGTHS)]
    return {
        suffix: [str(write_tar(folder / f"{at}{suffix}", documents[at : at + 11])) for at in (0, 11, 22)]
        for suffix in (".tar", ".tar.gz")
    }


class Leg(NamedTuple):
    """A part of a run."""

    rounds: int
    max_epochs: int
    changes: Mapping[str, Any] = MappingProxyType({})
    """Of a stage with which it begins."""


def run_of(data: list[str], legs: list[Leg], **options: Any) -> Run:
    """The run that the last of the legs belongs to."""
    stages, rounds = [Stage()], 0
    for leg in legs:
        if leg.changes:
            stages.append(Stage(at_packs=rounds * LANES, **leg.changes))
        rounds += leg.rounds
    sources = {"all": Source(data, max_epochs=legs[-1].max_epochs)}
    return PackedDataset(sources, ByteTokenizer(), num_lanes=LANES, stages=stages, **options).run()


class Found(NamedTuple):
    packs: list[Any]
    """Of each lane in turn; what it gives in a pack's place, too."""
    rows: Counter[tuple[int, str, int]]
    """(epoch, key, row) of each."""
    counts: Counts


def journey(data: list[str], legs: list[Leg], *, restarts: bool, **options: Any) -> Found:
    """All packs of the legs, the last of which goes on until the lanes are over.

    `restarts`: whether the lanes are restarted before each round, not only where a leg begins.
    """
    found = Found([], Counter(), Counts())
    starts: dict[int, LaneStart] = dict(begun(range(LANES)))
    for number, leg in enumerate(legs):
        run = run_of(data, legs[: number + 1], **options)
        rounds, num_over, is_last = 0, 0, number + 1 == len(legs)
        pool = None
        while num_over < LANES if is_last else rounds < leg.rounds:
            if pool is None or restarts:
                pool = LanePool(run, starts, budget_bytes=10**9, with_provenance=True)
            rounds, num_over = rounds + 1, 0
            for lane in range(LANES):
                pack = pool.take(lane)
                starts[lane] = run.start_after(starts[lane], pack)
                counts = found.counts
                for end in pack.ends:
                    counts = counts.plus(end.counts)
                if isinstance(pack, LaneFiller):
                    num_over += not pack.waits
                else:
                    counts = counts.plus(pack.counts)
                    places = ((each.epoch, each.key, each.row, each.length) for each in pack.provenance)
                    found.rows.update((*at, first + more) for *at, first, length in places for more in range(length))
                found.packs.append(plain(pack))
                found = found._replace(counts=counts)
    return found


def plain(pack: LanePack | LaneFiller) -> Any:
    if isinstance(pack, LaneFiller):
        return pack
    rows = pack.rows
    return rows.tokens.tolist(), rows.seq_lens.tolist(), rows.edge_labels.tolist(), *pack[1:]


packings = st.builds(
    Packing,
    st.just("best_fit"),
    st.sampled_from(["split", "truncate", "drop"]),
    st.sampled_from(["pad", "drop"]),
    window=st.integers(2, 6),
)
changes = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {"seq_len": st.integers(8, 40), "packing": st.one_of(packings, st.sampled_from(["wrap", "next_fit"]))}
    ),
)


@st.composite
def all_legs(draw: st.DrawFn) -> list[Leg]:
    """Each leg has as many epochs as the one before, or more."""
    legs, max_epochs = [Leg(draw(st.integers(1, 14)), 1)], 1
    for _ in range(draw(st.integers(0, 3))):
        max_epochs += draw(st.integers(0, 1))
        legs.append(Leg(draw(st.integers(1, 12)), max_epochs, draw(changes)))
    return legs


@given(
    legs=all_legs(),
    suffix=st.sampled_from([".tar", ".tar.gz"]),
    shuffle=st.sampled_from([True, "shards", False]),
    packing=packings,
    seq_len=st.integers(8, 32),
)
def test_each_row_comes_once_in_each_epoch_wherever_epochs_are_added(
    shards: Mapping[str, list[str]], legs: list[Leg], suffix: str, **options: Any
) -> None:
    found = journey(shards[suffix], legs, restarts=False, **options)
    assert max(found.rows.values(), default=1) == 1
    counts, epochs = found.counts, legs[-1].max_epochs
    assert (counts.documents, counts.tokens) == (epochs * len(LENGTHS), len(found.rows))
    left_out = counts.tail_tokens + counts.targetless_tokens + counts.truncated_tokens + counts.dropped_tokens
    assert len(found.rows) + left_out == epochs * sum(LENGTHS)
    again = journey(shards[suffix], legs, restarts=True, **options)
    assert again == found
