"""Blocks: every byte of every shard in one of them, each of them in one lane, in an order of its own each epoch."""

from random import Random

import numpy as np
import pytest

from streampack.corpus.blocks import BlockLine, _order
from streampack.corpus.options import Shuffle, as_order
from streampack.corpus.partition import Piece
from streampack.errors import ConfigError


def line(sizes: list[int], block_bytes: int, whole: frozenset[int] = frozenset()) -> BlockLine:
    flags = [index in whole for index in range(len(sizes))]
    return BlockLine(np.array(sizes, np.int64), np.array(flags, np.bool_), block_bytes)


def test_blocks_are_numbered_shard_by_shard() -> None:
    blocks = line([10, 8, 0, 3, 5], 4, frozenset({1}))
    assert blocks.num_blocks == 3 + 1 + 0 + 1 + 2
    assert blocks.blocks(np.arange(7)) == [
        Piece(0, 0, 4, whole=False),
        Piece(0, 4, 8, whole=False),
        Piece(0, 8, 10, whole=False),
        Piece(1, 0, 8, whole=True),
        Piece(3, 0, 3, whole=False),
        Piece(4, 0, 4, whole=False),
        Piece(4, 4, 5, whole=False),
    ]


@pytest.mark.parametrize("seed", range(12))
def test_each_block_is_in_one_lane_of_an_epoch(seed: int) -> None:
    random = Random(seed)
    sizes = [random.choice([0, 1, random.randrange(5000), 4096]) for _ in range(random.randrange(1, 9))]
    whole = frozenset(index for index in range(len(sizes)) if sizes[index] and random.random() < 0.3)
    blocks, num_lanes = line(sizes, random.choice([64, 512, 999]), whole), random.randrange(1, 9)
    orders = []
    for epoch in range(3):
        lanes = [blocks.pieces(lane, num_lanes, seed=seed, epoch=epoch) for lane in range(num_lanes)]
        lengths = [len(pieces) for pieces in lanes]
        assert max(lengths) - min(lengths) <= 1
        order = [piece for pieces in lanes for piece in pieces]
        assert sorted(order) == blocks.blocks(np.arange(blocks.num_blocks))
        for shard, size in enumerate(sizes):
            ranges = sorted((piece.begin, piece.end) for piece in order if piece.shard == shard)
            ends = [0, *(end for _, end in ranges)]
            assert [begin for begin, _ in ranges] == ends[:-1]
            assert ends[-1] == size
        orders.append(order)
    assert blocks.num_blocks < 6 or orders[0] != orders[1] != orders[2] != orders[0]


def test_a_lane_s_blocks_are_a_sequence_that_is_computed_as_it_is_read() -> None:
    """100 TB in blocks of 256 KiB, of which nobody makes a list."""
    blocks = line([2**30] * 93_132, 2**18)
    assert blocks.num_blocks == 93_132 * 2**12
    pieces = blocks.pieces(61_439, 61_440, seed=0, epoch=5)
    assert len(pieces) == 6209
    assert pieces[150] == pieces[100:200][50] == list(pieces)[150]
    assert pieces[len(pieces) - 1] == pieces[-1]
    assert len(set(pieces)) == 6209
    assert pieces[6200:7000] == [pieces[index] for index in range(6200, 6209)]
    with pytest.raises(IndexError):
        pieces[6209]


def test_the_order_of_blocks_is_what_it_was() -> None:
    pieces = line([100, 50, 70], 10).pieces(1, 2, seed=3, epoch=2)
    assert [piece.shard for piece in pieces] == [2, 0, 0, 0, 2, 0, 2, 0, 0, 2, 1]
    assert [piece.begin // 10 for piece in pieces] == [6, 4, 8, 7, 3, 1, 5, 9, 5, 4, 0]


def test_blocks_of_a_small_corpus_are_small() -> None:
    shuffle = Shuffle()
    assert shuffle.block_bytes_of(2**40, 61_440) == 2**18
    assert shuffle.block_bytes_of(32 * 24 * 10_000, 24) == 10_000
    assert shuffle.block_bytes_of(1000, 24) == 4096


@pytest.mark.parametrize("value", ["documents", 10_000, 1, None, "true", 0, {"window": 8}, []])
def test_nothing_else_is_taken_for_an_order(value: object) -> None:
    with pytest.raises(ConfigError, match='must be True, "shards", False or a streampack.Shuffle'):
        as_order(value)


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (0, "; write False"),
        (np.int64(1), "; write True"),
        (10_000, "Shuffle(window=16) mixes more of them than True"),
        ({"window": 3}, "; write Shuffle(window=3)"),
        (Shuffle, "; write Shuffle(...)"),
        ("Shard", '; did you mean "shards"?'),
        ("true", "; did you mean True, without quotes?"),
        (np.array([1, 2]), "or a streampack.Shuffle"),
    ],
)
def test_what_stands_near_an_order_is_told_how_to_write_it(value: object, advice: str) -> None:
    with pytest.raises(ConfigError, match='must be True, "shards", False or a streampack.Shuffle') as caught:
        as_order(value)
    assert str(caught.value).endswith(advice)


@pytest.mark.parametrize(
    "given", [{"block_bytes": 4095}, {"block_bytes": 2**31}, {"window": 0}, {"window": True}, {"block_bytes": 1e6}]
)
def test_a_size_that_is_none_is_refused(given: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"shuffle\.(block_bytes|window)=.* must be a whole number"):
        Shuffle(**given)


def test_lanes_share_the_order_of_an_epoch() -> None:
    """It is made once, not for each of tens of thousands of lanes."""
    blocks = line([10**9], 4096)
    _order.cache_clear()
    found = [blocks.pieces(lane, 500, seed=2**40 + 7, epoch=3)[0] for lane in range(500)]
    assert _order.cache_info().misses == 1
    assert len(set(found)) == 500
