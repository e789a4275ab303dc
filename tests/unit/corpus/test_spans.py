"""Which bytes are held out by block: the same for ever, and each in exactly one part."""

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streampack import HoldOut, Shuffle
from streampack.corpus.epochs import Corpus
from streampack.corpus.options import Order
from streampack.corpus.spans import CELL_BYTES, Spans
from streampack.corpus.table import ShardTable, Texts
from streampack.errors import ConfigError
from streampack.hashing import hash_cells

if TYPE_CHECKING:
    from streampack.corpus.partition import Piece


def table_of(sizes: list[int], whole: list[bool] | None = None, names: list[str] | None = None) -> ShardTable:
    count = len(sizes)
    texts = Texts.of(names or [f"en/{index:05d}.tar" for index in range(count)])
    none = Texts.of([""] * count)
    return ShardTable(
        urls=texts,
        names=texts,
        digests=none,
        etags=none,
        sizes=np.array(sizes, np.int64),
        size_known=np.ones(count, np.bool_),
        whole=np.array(whole or [False] * count),
        num_samples=np.full(count, -1, np.int64),
    )


def test_the_hashes_of_cells_are_what_they_were() -> None:
    hashes = hash_cells("devil-00000.tar", count=3)
    assert hashes.tolist() == [0x76E2C9D6E905457A, 0x2FC100F58F6ED7A2, 0xF67130AB364D2E7F]
    assert hash_cells("é漢字🙂", count=1).tolist() == [0x9226BD21B8A41970]


def test_the_cells_that_are_held_out_are_what_they_were() -> None:
    table = table_of([40 * CELL_BYTES + 5, 700, 3 * CELL_BYTES])
    spans = Spans.of(table, HoldOut("val", 0.1, by="block"))
    found = [tuple(map(int, each)) for each in zip(*spans, strict=True)]
    assert found == [(0, 14680064, 1048576, 0), (0, 41943040, 5, 0)]


def test_folders_seeds_and_the_order_of_shards_do_not_count() -> None:
    held_out = HoldOut("val", 0.2, by="block")
    size = 30 * CELL_BYTES
    here = Spans.of(table_of([size, size], names=["a/x.tar", "a/y.tar"]), held_out)
    there = Spans.of(table_of([size, size], names=["b/c/y.tar", "x.tar"]), held_out)
    for shard in (0, 1):
        assert here.begins[here.shards == shard].tolist() == there.begins[there.shards == 1 - shard].tolist()


@pytest.mark.parametrize("order", [Shuffle(), "shards", False], ids=str)
@given(
    sizes=st.lists(st.integers(1, 9 * CELL_BYTES), min_size=1, max_size=5),
    whole=st.sets(st.integers(0, 4)),
    fraction=st.floats(0.05, 0.95),
    num_lanes=st.integers(1, 7),
    epoch=st.integers(0, 3),
    block_bytes=st.integers(4096, 3 * CELL_BYTES),
)
def test_every_byte_is_in_one_part_and_one_lane(
    order: Order, sizes: list[int], whole: set[int], fraction: float, num_lanes: int, epoch: int, block_bytes: int
) -> None:
    """Whatever the size of a block is, and wherever lanes are cut."""
    if isinstance(order, Shuffle):
        order = Shuffle(block_bytes=block_bytes)
    table = table_of(sizes, [index in whole for index in range(len(sizes))])
    pieces: list[Piece] = []
    for part in ("train", "val"):
        corpus = Corpus(
            table=table, num_lanes=num_lanes, seed=3, shuffle=order, hold_out=HoldOut(part, fraction, by="block")
        )
        try:
            mine = [each for lane in range(num_lanes) for each in corpus.pieces(epoch, lane)]
        except ConfigError:  # nothing is left for this part
            continue
        assert sum(each.end - each.begin for each in mine) == corpus.total_bytes
        for each in mine:
            cells = range(1) if each.whole else range(each.begin // CELL_BYTES, -(-each.end // CELL_BYTES))
            hashes = hash_cells(table.names[each.shard].split("/")[-1], count=cells.stop)[cells.start :]
            assert {int(value) < int(fraction * 2**64) for value in hashes} == {part == "val"}
        pieces += mine
    pieces.sort()
    assert all(each.whole == (each.shard in whole) for each in pieces)
    at = [0] * len(sizes)
    for each in pieces:
        assert each.begin == at[each.shard]
        at[each.shard] = each.end
    assert at == sizes


def test_about_the_fraction_is_held_out() -> None:
    table = table_of([1000 * CELL_BYTES] * 20)
    share = Spans.of(table, HoldOut("val", 0.01, by="block")).total_bytes / table.total_bytes
    assert share == pytest.approx(0.01, rel=0.2)
    assert Spans.of(table, HoldOut("train", 0.01, by="block")).total_bytes == round((1 - share) * table.total_bytes)


@pytest.mark.parametrize(("part", "fraction", "word"), [("val", 1e-9, "least"), ("train", 1 - 1e-9, "most")])
def test_the_error_of_an_empty_part_names_a_fraction_that_does(part: str, fraction: float, word: str) -> None:
    table = table_of([5 * CELL_BYTES, 100], [False, True])
    with pytest.raises(ConfigError, match="of the 6 cells of 1 MiB") as caught:
        Spans.of(table, HoldOut(part, fraction, by="block"))
    wanted = float(str(caught.value).split(f"at {word} ")[1].split(" ")[0])
    spans = Spans.of(table, HoldOut(part, wanted, by="block"))
    assert len(spans.shards) == 1
    with pytest.raises(ConfigError, match="would do"):
        Spans.of(table, HoldOut(part, wanted * 0.95 if part == "val" else (1 + wanted) / 2, by="block"))


def test_one_cell_cannot_be_divided() -> None:
    with pytest.raises(ConfigError, match='One cell is in one part: use more or larger shards, or by="document"'):
        Spans.of(table_of([100]), HoldOut("val", 1e-9, by="block"))
