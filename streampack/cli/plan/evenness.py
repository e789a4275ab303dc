"""How many tokens and packs each lane has in the epochs of a run, estimated: lanes are equal in bytes, not in tokens.

In:  the corpus, and its `Density`. Out: tokens of each lane; the share of fillers.
Invariants: no draw by chance, the same estimate for the same sample. Where pieces can be listed, a lane's bytes are
those of the run; where all blocks of the corpus were read, its tokens too. Else a shard of which no place was measured
has the ratio of one that was, and what a lane's blocks have beside it spreads over the lanes as a normal distribution
does.
"""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack.cli.plan.measured import Density
from streampack.corpus.epochs import Corpus
from streampack.hashing import hash_range, permutation

_SEED = 0x6C616E65
_MOST_PIECES = 200_000
"""So many blocks are listed at most."""


class LaneSizes(NamedTuple):
    """What each lane has in an epoch."""

    bytes: NDArray[np.float64]
    """Of shards, float [lanes]."""
    tokens: NDArray[np.float64]
    """Estimated, float [lanes]."""


def lane_sizes(corpus: Corpus, density: Density, epoch: int) -> LaneSizes:
    """Bytes and tokens of each lane in an epoch."""
    table = corpus.table
    tokens_per_byte = np.where(table.whole, density.whole, density.cut) * shard_ratios(density, len(table))
    scores = _scores(corpus.num_lanes, epoch)
    if corpus.block_bytes and (corpus.parts.sizes / corpus.block_bytes).sum() > _MOST_PIECES:
        return _drawn(corpus, tokens_per_byte, density, scores)
    by_lane = [corpus.pieces(epoch, lane)[:] for lane in range(corpus.num_lanes)]
    lanes = np.repeat(np.arange(corpus.num_lanes), [len(pieces) for pieces in by_lane])
    shards = np.array([piece.shard for pieces in by_lane for piece in pieces], np.int64)
    of_pieces = np.array([piece.end - piece.begin for pieces in by_lane for piece in pieces], np.float64)
    if density.known and density.block_bytes == corpus.block_bytes:  # the sample's blocks are those of the run
        tokens = np.array([density.known[piece.shard, piece.begin] for pieces in by_lane for piece in pieces])
        variance = np.zeros(len(tokens))
    else:
        tokens = tokens_per_byte[shards] * of_pieces
        variance = _variance(tokens_per_byte[shards], np.where(table.whole[shards], 0.0, of_pieces), density)
    in_lane, mean, chance = (
        np.bincount(lanes, each, corpus.num_lanes).astype(np.float64) for each in (of_pieces, tokens, variance)
    )
    return LaneSizes(in_lane, np.maximum(mean + chance**0.5 * scores, 0.0))


def _drawn(
    corpus: Corpus, tokens_per_byte: NDArray[np.float64], density: Density, scores: NDArray[np.float64]
) -> LaneSizes:
    """The same for blocks that are too many to be listed: each lane has as many of them, from anywhere."""
    parts, block_bytes = corpus.parts, corpus.block_bytes
    sizes, tokens_per_byte = parts.sizes.astype(np.float64), tokens_per_byte[parts.shards]
    full = np.where(parts.whole, 0, sizes // block_bytes)  # blocks of each part, and what is left of it
    rest = sizes - full * block_bytes
    num_blocks = float(full.sum() + np.count_nonzero(rest))
    share, of_lane = 1 / corpus.num_lanes, num_blocks / corpus.num_lanes

    def spread_out(weights: NDArray[np.float64], chance: float) -> NDArray[np.float64]:
        total = float((weights * sizes).sum())
        squares = float((weights**2 * (full * block_bytes**2 + rest**2)).sum())
        variance = of_lane * (squares / num_blocks - (total / num_blocks) ** 2) * (1 - share) + chance * share
        lanes: NDArray[np.float64] = np.maximum(total * share + max(variance, 0.0) ** 0.5 * scores, 0.0)
        return lanes

    chance = float(_variance(tokens_per_byte, full * block_bytes, density).sum())
    return LaneSizes(spread_out(np.ones(len(sizes)), 0.0), spread_out(tokens_per_byte, chance))


def _variance(
    tokens_per_byte: NDArray[np.float64], sizes: NDArray[np.float64], density: Density
) -> NDArray[np.float64]:
    """Of the tokens of so many bytes of shards that can be cut: each stretch as large as a block varies by itself."""
    of_block = density.cut * density.block_bytes
    variance: NDArray[np.float64] = density.block_spread**2 * of_block * tokens_per_byte * sizes
    return variance


def shard_ratios(density: Density, num_shards: int) -> NDArray[np.float64]:
    """Tokens for each byte of each shard, as a multiple of the mean: float [shards]."""
    ratios = density.ratios
    chosen = (hash_range(_SEED, num_shards, count=num_shards) % np.uint64(len(ratios))).astype(np.int64)
    of_shard = ratios[chosen]
    of_shard[density.shards] = ratios[: len(density.shards)]
    return of_shard


def packs_of(tokens: NDArray[np.float64], tokens_per_pack: float) -> NDArray[np.float64]:
    """Packs of each lane, float [lanes]: the last one may be padded."""
    packs: NDArray[np.float64] = np.ceil(tokens / tokens_per_pack)
    return packs


def filler_share_of(tokens: NDArray[np.float64], tokens_per_pack: float) -> float:
    """Fillers among all packs where every lane goes on until the largest one ends; `tokens` float [lanes]."""
    packs = packs_of(tokens, tokens_per_pack)
    return float(1 - packs.mean() / packs.max()) if packs.max() else 0.0


def unread_share_of(tokens: NDArray[np.float64], tokens_per_pack: float) -> float:
    """The share of all packs that never comes, where the run ends with its shortest lane."""
    packs = packs_of(tokens, tokens_per_pack)
    return float(1 - packs.min() / packs.mean()) if packs.max() else 0.0


def _scores(count: int, epoch: int) -> NDArray[np.float64]:
    """The expected values of `count` sorted draws from the standard normal distribution (Blom), in a hashed order."""
    if count == 1:
        return np.zeros(1)
    share = (np.arange(count) + 0.625) / (count + 0.25)
    scores = np.array([NormalDist().inv_cdf(each) for each in share.tolist()])
    return scores[permutation(_SEED, epoch, count=count)]
