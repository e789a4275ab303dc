"""Lanes of several sources: whose turn it is, where each goes on, and what a stage changes; restarted anywhere."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.jobs import write_tar
from support.runs import begun
from support.thorough import some

from streampack import PackedDataset, Packing, Source, Stage
from streampack.errors import ConfigError
from streampack.lanes.budget import LaneNeeds, worker_bytes
from streampack.lanes.pool import LanePool
from streampack.lanes.position import LaneFiller, LanePack
from streampack.lanes.run import LaneStart, Run
from streampack.testing import ByteTokenizer

LANES, SEQ_LEN = 3, 16
WIDE = 10**9
NAMES = ("web", "code", "books")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Each source's documents are letters of its own; the sources differ in size."""
    folder = tmp_path_factory.mktemp("mix")
    found = {}
    for name, letter, count in zip(NAMES, "wcb", (90, 60, 24), strict=True):
        texts = [f"{letter}{number:03d}" + letter * (number * 7 % 23) for number in range(count)]
        found[name] = str(write_tar(folder / f"{name}.tar", [(f"{i}.txt", t.encode()) for i, t in enumerate(texts)]))
    return found


def mix(
    shards: Mapping[str, str],
    weights: Mapping[str, float] | None = None,
    *,
    max_epochs: Mapping[str, int] | None = None,
    **arguments: Any,
) -> Run:
    asked = {"shuffle": "shards", "num_lanes": LANES, "seq_len": SEQ_LEN, **arguments}
    data = {
        name: Source(url, 1.0 if weights is None else weights[name], max_epochs=(max_epochs or {}).get(name))
        for name, url in shards.items()
        if weights is None or name in weights
    }
    return PackedDataset(data, ByteTokenizer(), **asked).run()


def plain(pack: LanePack | LaneFiller) -> Any:
    if isinstance(pack, LaneFiller):
        return pack
    rows = pack.rows
    return rows.tokens.tolist(), rows.seq_lens.tolist(), rows.edge_labels.tolist(), *pack[1:]


class Walk:
    """Takes lanes in turn, and keeps where they continue."""

    def __init__(self, run: Run, starts: Mapping[int, LaneStart] | None = None, budget: int = WIDE) -> None:
        self.run, self.starts = run, dict(starts or begun(range(LANES), len(run.sources)))
        self.pool = LanePool(run, self.starts, budget_bytes=budget, with_provenance=True)

    def __iter__(self) -> Iterator[LanePack | LaneFiller]:
        while True:
            lane = min(self.starts, key=lambda lane: (self.starts[lane].packs, lane))
            pack = self.pool.take(lane)
            self.starts[lane] = self.run.start_after(self.starts[lane], pack)
            yield pack

    def take(self, number: int) -> list[Any]:
        return [plain(pack) for _, pack in zip(range(number), self, strict=False)]


STAGES = [
    Stage(weights={"web": 0.6, "code": 0.3, "books": 0.1}),
    Stage(at_packs=20, weights={"web": 0.5, "code": 0.5}),
    Stage(at_packs=60, seq_len=24),
    Stage(at_packs=84, weights={"books": 1.0}, boundary="keep"),
    Stage(at_packs=99, weights={"web": 0.2, "books": 0.8}, seq_len=SEQ_LEN, boundary="mask"),
]
PACKINGS = [
    Stage(weights={"web": 2, "code": 1}),
    Stage(at_packs=20, seq_len=40, packing="wrap", boundary="keep"),
    Stage(at_packs=30, seq_len=9, packing=Packing("best_fit", window=4, overflow="truncate"), boundary="trim"),
    Stage(at_packs=57, seq_len=30, packing=Packing("best_fit", window=2, overflow="drop"), weights={"web": 1}),
    Stage(at_packs=72, seq_len=30, weights={"web": 1, "code": 1}, boundary="mask"),
    Stage(at_packs=90, packing="next_fit", seq_len=20),
]
RUNS: Mapping[str, Any] = {
    "endless": {"weights": {"web": 7, "code": 2, "books": 1}},
    "one is exhausted": {"weights": {"web": 1, "code": 1, "books": 1}, "max_epochs": {"books": 1, "code": 2}},
    "all are exhausted": {"weights": {"code": 1, "books": 1}, "max_epochs": {"code": 1, "books": 1}},
    "stages": {"stages": STAGES},
    "stages and exhausted": {"stages": STAGES, "max_epochs": {"books": 1, "code": 1}},
    "windows": {"weights": {"web": 3, "code": 2, "books": 1}, "shuffle": True},
    "next_fit": {"stages": STAGES, "packing": "next_fit"},
    "best_fit": {"weights": {"web": 3, "code": 2, "books": 1}, "packing": Packing("best_fit", window=3)},
    "best_fit is cut again": {"stages": STAGES[:3], "packing": Packing("best_fit", window=7)},
    "and exhausted": {"stages": STAGES[:3], "packing": Packing("best_fit", window=5), "max_epochs": {"books": 1}},
    "and packed otherwise": {"stages": PACKINGS, "packing": Packing("best_fit", window=6), "shuffle": True},
}


OVER = ("all are exhausted", "stages and exhausted")
"""Those in which a lane has no pack in some rounds."""


@pytest.mark.parametrize("name", some(list(RUNS), 2))
def test_lanes_give_the_same_wherever_they_are_restarted(shards: Mapping[str, str], name: str) -> None:
    run = mix(shards, **RUNS[name])
    number, ahead = 130, 7
    whole = Walk(run).take(number + ahead)
    walk = Walk(run)
    tried = some(range(number), 3, first=list(RUNS).index(name) % 3)
    for at in range(number):
        if at in tried:
            assert Walk(run, walk.starts).take(ahead) == whole[at : at + ahead], at
        assert walk.take(1) == whole[at : at + 1]
    assert any(isinstance(each, LaneFiller) for each in whole) == (name in OVER)


@pytest.mark.parametrize("name", ["endless", "one is exhausted", "stages", "stages and exhausted"])
def test_parked_streams_give_the_same(shards: Mapping[str, str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = mix(shards, **RUNS[name])
    whole = Walk(run).take(150)
    walk = Walk(run, budget=LANES * LaneNeeds.of(run).bytes)
    walk.pool._budget_bytes = 0  # so that each stream is parked at once
    walk.pool._share_bytes = 8000  # with some packs made ahead, which a stage throws away
    assert walk.take(150) == whole


def indexes(packs: list[Any]) -> list[int]:
    return [each[-2] for each in packs if not isinstance(each, LaneFiller)]


def of_source(packs: list[Any], index: int) -> list[Any]:
    """The packs of a source without what tells its number in the run."""
    return [(*each[:-2], *each[-1:]) for each in packs if each[-2] == index]


def test_a_source_of_weight_0_changes_nothing_and_another_source_changes_no_order_inside(
    shards: Mapping[str, str],
) -> None:
    with_0 = Walk(mix(shards, {"web": 7, "code": 3, "books": 0})).take(120)
    without = Walk(mix(shards, {"web": 7, "code": 3})).take(120)
    assert with_0 == without
    alone = Walk(mix(shards, {"web": 1})).take(120)
    mixed = Walk(mix(shards, {"web": 5, "code": 2, "books": 3})).take(200)
    for lane in range(LANES):
        theirs = of_source(alone[lane::LANES], 0)
        ours = of_source(mixed[lane::LANES], 0)
        assert ours == theirs[: len(ours)]
        assert 25 < len(ours) < 42


def test_which_source_a_pack_has_is_that_of_the_stages_shares(shards: Mapping[str, str]) -> None:
    run = mix(shards, stages=STAGES)
    packs = Walk(run).take(150)
    for number, source in enumerate(indexes(packs)):
        stage = run.schedule.stage_of(number)
        assert source == stage.shares.source(number % LANES, (number - stage.first_pack) // LANES)
        assert {each.source for each in packs[number][-3]} == {NAMES[source]}, "and so says its provenance"


def test_a_paused_source_goes_on_at_its_next_row(shards: Mapping[str, str]) -> None:
    """Also where it is cut in another way then: its rows are the same ones."""
    stages = [
        Stage(weights={"web": 1, "code": 1}),
        Stage(at_packs=30, weights={"code": 1}),
        Stage(at_packs=60, weights={"web": 1}, seq_len=20),
    ]
    packs = Walk(mix({name: shards[name] for name in ("web", "code")}, stages=stages)).take(120)
    alone = Walk(mix(shards, {"web": 1})).take(150)

    def rows(of: list[Any], lane: int) -> list[int]:
        return [token for each in of[lane::LANES] if each[-2] == 0 for token in each[0]]

    for lane in range(LANES):
        ours = rows(packs, lane)
        assert ours == rows(alone, lane)[: len(ours)]
        assert len(ours) > 20 * 20


def test_an_exhausted_source_leaves_its_packs_to_the_others_in_proportion(shards: Mapping[str, str]) -> None:
    run = mix(shards, {"web": 6, "code": 3, "books": 1}, max_epochs={"books": 1})
    packs = Walk(run).take(1200)
    last = max(number for number, source in enumerate(indexes(packs)) if source == 2)
    assert last < 500
    rest = indexes(packs[last + 1 :])
    assert rest.count(0) / len(rest) == pytest.approx(2 / 3, abs=0.03)
    documents = [each.key for pack in packs if pack[-2] == 2 for each in pack[-3] if not each.row]
    assert len(documents) == len(set(documents)) == 24, "each document once"


def test_a_larger_max_epochs_goes_on_with_the_next_epoch(shards: Mapping[str, str]) -> None:
    once, more = (mix(shards, {"web": 1, "books": 1}, max_epochs={"books": each}) for each in (1, 2))
    walk = Walk(once)
    walk.take(300)
    assert all(start.positions[1].cursor.epoch == 1 for start in walk.starts.values())
    later = Walk(more, walk.starts).take(300)
    documents = [each.key for pack in later if pack[-2] == 1 for each in pack[-3] if not each.row]
    assert len(documents) == len(set(documents)) == 24


def test_what_comes_after_the_last_pack_of_a_source_is_told_once(tmp_path: Path, shards: Mapping[str, str]) -> None:
    """Here documents without a row: nothing but a later pack would count them."""
    texts = ["aaaa"] * 8 + [""] * 3
    some = str(write_tar(tmp_path / "some.tar", [(f"{i:02d}.txt", text.encode()) for i, text in enumerate(texts)]))
    data = {"web": shards["web"], "some": Source(some, max_epochs=1, weight=1.0)}
    arguments: dict[str, Any] = {"add_bos": False, "add_eos": False, "shuffle": False, "boundary": "trim"}
    run = PackedDataset(data, ByteTokenizer(), 5, num_lanes=1, **arguments).run()
    number = 60
    walk = Walk(run, begun([0], 2))
    whole = walk.take(number)
    told = [(at, end) for at, each in enumerate(whole) for end in each[-1]]
    assert [(end.source, end.counts.documents) for _, end in told] == [(1, 3)]
    assert walk.starts[0].positions[1].documents == len(texts)
    for at in range(number):
        walk = Walk(run, begun([0], 2))
        walk.take(at)
        assert [end for each in Walk(run, walk.starts).take(number - at) for end in each[-1]] == [
            end for place, end in told if place >= at
        ]


def test_an_exhausted_source_may_be_an_error(shards: Mapping[str, str]) -> None:
    run = mix(shards, {"web": 1, "books": 1}, max_epochs={"books": 1}, exhausted="error")
    walk = Walk(run)
    for _ in range(2):  # every time from there on
        with pytest.raises(ConfigError, match=r"source 'books' has no more packs in lane \d: its max_ep") as caught:
            walk.take(1000)
        assert "its max_epochs=1 is used up there" in str(caught.value)
        assert "may be given when the run is resumed" in str(caught.value)
    assert Walk(mix(shards, {"web": 1, "books": 1}), walk.starts).take(10)


def test_a_lane_waits_for_a_later_stage_that_has_a_source_for_it_and_is_over_after_the_last(
    shards: Mapping[str, str],
) -> None:
    stages = [
        Stage(weights={"books": 1}),
        Stage(at_packs=300, weights={"code": 1}),
        Stage(at_packs=600, weights={"books": 1}),
    ]
    run = mix(shards, stages=stages, max_epochs={"books": 1, "code": 1})
    packs = Walk(run).take(660)
    fillers = {number: each.waits for number, each in enumerate(packs) if isinstance(each, LaneFiller)}
    assert len(fillers) > 400
    assert all(waits == (number < 300) for number, waits in fillers.items())
    assert set(indexes(packs[300:])) == {1}
    assert run.is_finite
    with pytest.warns(UserWarning, match="does not begin"):
        shorter = mix(shards, stages=stages, max_epochs={"books": 1, "code": 1}, num_packs=300)
    over = [each for each in Walk(shorter).take(300) if isinstance(each, LaneFiller)]
    assert over
    assert not any(each.waits for each in over), "its end is before the stage"
    endless = mix(shards, stages=stages[:2], max_epochs={"books": 1})
    assert not endless.is_finite
    assert all(each.waits for each in Walk(endless).take(330) if isinstance(each, LaneFiller))


def test_the_memory_of_sources_and_lanes_is_known_before(shards: Mapping[str, str]) -> None:
    run = mix(shards, {"web": 6, "code": 3, "books": 1})
    needs = LaneNeeds.of(run)
    assert (needs.sources, needs.bytes) == (3, 3 * 112 * 2**10)
    assert LaneNeeds.of(mix(shards, stages=STAGES[1:2] and [Stage(weights={"web": 1}), *STAGES[1:2]])).sources == 2
    with pytest.raises(ConfigError, match="less than 112 KiB for each of 3 sources in each") as caught:
        worker_bytes(LANES * needs.bytes - 1, run, num_lanes=LANES)
    assert f"at least {LANES * needs.bytes:,}, or use more ranks, or fewer sources at a time" in str(caught.value)
    assert worker_bytes(LANES * needs.bytes, run, num_lanes=LANES)


def test_a_source_that_gives_no_pack_is_named(tmp_path: Path, shards: Mapping[str, str]) -> None:
    empty = str(write_tar(tmp_path / "empty.tar", [("0.txt", b"")]))
    data = {"web": shards["web"], "none": Source(empty, 0.5)}
    options: dict[str, Any] = {"shuffle": "shards", "add_bos": False, "add_eos": False}
    run = PackedDataset(data, ByteTokenizer(), SEQ_LEN, num_lanes=LANES, **options).run()
    with pytest.raises(ConfigError, match=r"lane \d of 3, source 'none', gives no pack .* leave the source out"):
        Walk(run).take(30)
