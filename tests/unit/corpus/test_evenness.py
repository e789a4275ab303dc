"""How equal lanes are in tokens, where shards are not: by shards and by blocks."""

import numpy as np
import pytest

from streampack.corpus.epochs import Corpus
from streampack.corpus.options import Order, Shuffle
from streampack.corpus.table import ShardTable, Texts

LANES, BLOCKS, BLOCK_BYTES = 24, 300, 2**18


def fillers(order: Order, seed: int) -> float:
    """The share of one epoch's packs in 96 shards that differ by 15 % in tokens for each byte."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(15_000_000, 25_000_000, 96)
    sizes = sizes * (LANES * BLOCKS * BLOCK_BYTES) // sizes.sum()
    density = 0.25 * np.exp(rng.normal(0, 0.15, 96))
    names = Texts.of([f"{index}.tar" for index in range(96)])
    nothing = Texts.of([""] * 96)
    known, unknown = np.ones(96, bool), np.full(96, -1)
    table = ShardTable(
        urls=names, names=names, digests=nothing, etags=nothing, sizes=sizes, size_known=known, whole=~known,
        num_samples=unknown,
    )
    corpus = Corpus(table=table, num_lanes=LANES, seed=seed, shuffle=order)
    tokens = [
        sum((piece.end - piece.begin) * density[piece.shard] for piece in corpus.pieces(0, lane)[:])
        for lane in range(LANES)
    ]
    packs = np.ceil(np.array(tokens) / 4096)
    return float(1 - packs.mean() / packs.max())


@pytest.mark.parametrize("seed", range(5))
def test_lanes_of_300_blocks_make_few_fillers_where_shards_differ(seed: int) -> None:
    assert fillers(Shuffle(block_bytes=BLOCK_BYTES), seed) < 0.04
    assert fillers("shards", seed) > 0.08
