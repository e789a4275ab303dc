"""How many tokens and packs each lane has in the epochs of a run, estimated: lanes are equal in bytes, not in tokens.

In:  the corpus, and its `Density`. Out: tokens of each lane; the share of fillers.
Invariants: no draw by chance, the same estimate for the same sample. Where pieces can be listed, a lane's bytes are
those of the run. A shard of which no place was measured has the ratio of one that was; what a lane's blocks have
beside it spreads over the lanes as a normal distribution does.
"""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack.cli.plan.measured import Density
from streampack.corpus.epochs import Corpus
from streampack.corpus.partition import Piece
from streampack.corpus.table import ShardTable
from streampack.hashing import hash_range, permutation

_SEED = 0x6C616E65


class LanePieces(NamedTuple):
    """The pieces of all lanes in an epoch."""

    num_lanes: int
    pieces: list[Piece]
    lanes: NDArray[np.int64]
    """int64 [n]: whose each of them is."""
    shards: NDArray[np.int64]
    """int64 [n]."""
    bytes: NDArray[np.int64]
    """int64 [n]."""

    @property
    def lane_bytes(self) -> NDArray[np.int64]:
        """Of each lane, int64 [lanes]."""
        sizes = np.zeros(self.num_lanes, np.int64)
        np.add.at(sizes, self.lanes, self.bytes)
        return sizes


def lane_pieces(corpus: Corpus, epoch: int) -> LanePieces:
    """What each lane reads in an epoch."""
    by_lane = [corpus.pieces(epoch, lane) for lane in range(corpus.num_lanes)]
    pieces = [piece for lane in by_lane for piece in lane]
    return LanePieces(
        corpus.num_lanes,
        pieces,
        np.repeat(np.arange(corpus.num_lanes), [len(lane) for lane in by_lane]),
        np.array([piece.shard for piece in pieces], np.int64),
        np.array([piece.end - piece.begin for piece in pieces], np.int64),
    )


def lane_tokens(table: ShardTable, pieces: LanePieces, density: Density, epoch: int) -> NDArray[np.float64]:
    """Tokens of each lane in an epoch, float [lanes]."""
    of_shard = np.where(table.whole, density.whole, density.cut) * shard_ratios(density, len(table))
    tokens = of_shard[pieces.shards] * pieces.bytes
    mean = np.bincount(pieces.lanes, tokens, pieces.num_lanes)
    # Each stretch of block_bytes varies by itself.
    variance = (tokens * density.block_spread) ** 2 * density.block_bytes / np.maximum(pieces.bytes, 1)
    deviation = np.bincount(pieces.lanes, variance, pieces.num_lanes) ** 0.5
    return np.maximum(mean + deviation * _scores(pieces.num_lanes, epoch), 0.0)


def shard_ratios(density: Density, num_shards: int) -> NDArray[np.float64]:
    """Tokens for each byte of each shard, as a multiple of the mean: float [shards]."""
    ratios = density.ratios
    chosen = (hash_range(_SEED, num_shards, count=num_shards) % np.uint64(len(ratios))).astype(np.int64)
    of_shard = ratios[chosen]
    if len(density.shards):
        count = np.bincount(density.shards, minlength=num_shards)
        total = np.bincount(density.shards, ratios, num_shards)
        of_shard = np.where(count > 0, total / np.maximum(count, 1), of_shard)
    return of_shard


def filler_share_of(tokens: NDArray[np.float64], tokens_per_pack: float) -> float:
    """Fillers among all packs where every lane goes on until the largest one ends; `tokens` float [lanes]."""
    packs = np.ceil(tokens / tokens_per_pack)
    return float(1 - packs.mean() / packs.max()) if packs.max() else 0.0


def _scores(count: int, epoch: int) -> NDArray[np.float64]:
    """The expected values of `count` sorted draws from the standard normal distribution (Blom), in a hashed order."""
    if count == 1:
        return np.zeros(1)
    share = (np.arange(count) + 0.625) / (count + 0.25)
    scores = np.array([NormalDist().inv_cdf(each) for each in share.tolist()])
    return scores[permutation(_SEED, epoch, count=count)]
