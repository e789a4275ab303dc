"""Three sources in exact shares: the same packs on every topology, and each source in its own order."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from support.arguments import packed_dataset

import streampack
from streampack import PackedDataset, Source, Stage
from streampack.testing import write_shards

LANES = 12
NAMES = ("web", "code", "books")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of each source some shards, whose texts begin with its first letter."""
    folder = tmp_path_factory.mktemp("sources")
    for name, many in zip(NAMES, (400, 150, 60), strict=True):
        texts = [f"{name[0]}{index:04d} " + "x" * (index * 7 % 90) for index in range(many)]
        write_shards(folder / name, texts, documents_per_shard=50)
    return {name: str(folder / name) for name in NAMES}


def dataset(shards: dict[str, str], **arguments: Any) -> PackedDataset:
    data = {name: Source(shards[name], weight) for name, weight in zip(NAMES, (0.7, 0.2, 0.1), strict=True)}
    return packed_dataset(data, **{"seq_len": 64, "num_lanes": LANES, **arguments})


def items(made: PackedDataset, num_packs: int) -> Iterator[tuple[int, ...]]:
    for _, item in zip(range(num_packs), made, strict=False):
        yield tuple(item["tokens"].tolist())


def letters(tokens: tuple[int, ...]) -> set[str]:
    """The sources of a pack by the letters of its texts ("x" is in all of them)."""
    return {letter for letter in "wcb" if ord(letter) + 3 in tokens}  # as ByteTokenizer has them


def test_the_packs_are_in_the_order_of_the_shares(shards: dict[str, str]) -> None:
    made = dataset(shards)
    stage = made.run().schedule.stages[0]
    expected = [NAMES[stage.shares.source(pack % LANES, pack // LANES)][0] for pack in range(240)]
    found = [letters(tokens) for tokens in items(made, 240)]
    assert all(each <= {source} for each, source in zip(found, expected, strict=True))
    assert sum(map(bool, found)) > 150  # the others are the middle of a text
    assert [
        abs(Counter(expected)[name[0]] / 240 - share) < 0.02 for name, share in zip(NAMES, (0.7, 0.2, 0.1), strict=True)
    ]


def test_a_source_of_no_weight_and_other_shares_leave_the_order_inside_the_others(shards: dict[str, str]) -> None:
    def of_each(made: PackedDataset) -> dict[tuple[int, str], list[tuple[int, ...]]]:
        stage, names = made.run().schedule.stages[0], list(made.sources)
        found: dict[tuple[int, str], list[tuple[int, ...]]] = {}
        for pack, tokens in enumerate(items(made, 240)):
            lane = pack % LANES
            found.setdefault((lane, names[stage.shares.source(lane, pack // LANES)]), []).append(tokens)
        return found

    mixed = of_each(dataset(shards))
    without = of_each(packed_dataset({"code": shards["code"], "books": shards["books"]}, seq_len=64, num_lanes=LANES))
    compared = 0
    for place, packs in without.items():
        for here, there in zip(packs, mixed.get(place, []), strict=False):
            assert here == there
            compared += 1
    assert compared > 60
    data = {"none": Source(shards["web"], 0), **dataset(shards).sources}
    same = packed_dataset(data, seq_len=64, num_lanes=LANES)
    assert list(items(same, 100)) == list(items(dataset(shards), 100))


def test_a_run_ends_at_its_budget_and_stages_change_the_shares(shards: dict[str, str]) -> None:
    stages = [Stage(), Stage(at_packs=60, weights={"books": 1}, seq_len=128)]
    made = list(items(dataset(shards, stages=stages, num_packs=100), 1000))
    assert [len(tokens) for tokens in made] == [64] * 60 + [128] * 40
    assert all(letters(tokens) == {"b"} for tokens in made[60:])


def test_exhausted_sources_leave_their_share_to_the_others(shards: dict[str, str]) -> None:
    data = {"web": Source(shards["web"], 0.5), "books": Source(shards["books"], 0.5, max_epochs=1)}
    found = [letters(tokens) for tokens in items(packed_dataset(data, seq_len=64, num_lanes=LANES), 600)]
    assert {"b"} in found[:24]
    assert not any("b" in each for each in found[-240:])
    assert sum(each == {"w"} for each in found[-240:]) > 150


def test_a_source_that_may_not_end_is_an_error(shards: dict[str, str]) -> None:
    data = {"web": shards["web"], "books": Source(shards["books"], max_epochs=1)}
    with pytest.raises(streampack.StreampackError, match="books.*max_epochs"):
        list(items(packed_dataset(data, seq_len=64, num_lanes=LANES, exhausted="error"), 1000))
