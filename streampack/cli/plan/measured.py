"""What a sample tells of the corpus: tokens for each byte, their variation, sizes of documents, documents a block.

In:  a `Sampled`; or an assumed number of bytes for each token. Out: a `Density`, which lanes are estimated with, and
the numbers that are shown.
Invariants: pure arithmetic. With T tokens and B bytes of the sample's documents (sample i of place p has t_i tokens
and b_i bytes), the ratio T / B estimates tokens for each byte, and a place's own ratio d_p varies for two reasons:

    between places    var(d_p) - mean of noise_p                                as shards differ in language, say;
                                                                                a part of it may be inside shards
    noise_p           sum of (t_i - d_p b_i)^2 / B_p^2 * n / (n - 1)            as few documents are in a block

Tokens of a whole block vary besides by where documents begin: a block of few documents may have one more or less.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from streampack.cli.count.lengths import Lengths
from streampack.cli.plan.sampling import Place, Sampled
from streampack.corpus.table import ShardTable

_ENOUGH_PAIRS = 8
"""Places in shards that have one already, from which on the spread inside shards is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Density:
    """Tokens of the corpus by its bytes; all spreads are standard deviations, relative to the mean."""

    cut: float
    """Tokens for each byte of the shards that can be cut."""
    whole: float
    """The same of those that are read whole."""
    spread: float = 0.0
    """Of tokens for each byte between places of the corpus."""
    shards: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 [n]: shards of which places were read."""
    ratios: NDArray[np.float64] = field(default_factory=lambda: np.ones(1))
    """float [n]: how many times as many tokens for each byte as the mean each of these has; [1] for none."""
    block_spread: float = 0.0
    """Of the tokens of a block beside what its shard's ratio says: neighbours are alike, and documents are few."""
    block_bytes: int = 1
    """The size of block that `block_spread` is for."""
    tokens_per_pack: float
    known: dict[tuple[int, int], float] = field(default_factory=dict)
    """Where all of the corpus was read: the tokens of each block and whole shard, by shard and first byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthBin:
    """The documents of some lengths."""

    first: int
    """In tokens, as `last`; both are of this bin."""
    last: int
    documents: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSample:
    """What was read of one shard."""

    url: str
    bytes: int
    """Of its samples, headers included."""
    tokens: int
    """Those that are rows of packs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackingFill:
    """What a packing makes of the documents of the sample."""

    packs: int
    fill: float
    """The share of the packs' rows that hold a token."""
    cut_documents: int
    """Those that are in several packs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePlan:
    """What was measured."""

    documents: int
    bytes: int
    """Of shards."""
    tokens: int
    is_complete: bool
    """Whether it is all of the corpus."""
    bytes_per_token: float
    spread: float
    """Standard deviation of tokens for each byte between places of the corpus, relative to the mean."""
    mean_tokens: float
    """Of a document, as those that follow."""
    median_tokens: int
    p99_tokens: int
    max_tokens: int
    block_bytes: int
    samples_per_block: float
    """Samples that begin in a block of a shard that can be cut; 0 where none can."""
    documents_per_block: float
    cut_documents: int
    """Those that `overflow` truncates or drops."""
    cut_share: float
    """Of the tokens, what it takes away."""
    pack_fill: float
    """The share of the packs' rows that hold a token."""
    bad_records: int
    lengths: list[LengthBin]
    shards: list[ShardSample]
    """In the order of their tokens for each byte, the fewest first."""
    packings: dict[str, PackingFill]


def assumed(bytes_per_token: float, seq_len: int) -> Density:
    """What is known without a sample."""
    return Density(cut=1 / bytes_per_token, whole=1 / bytes_per_token, tokens_per_pack=seq_len)


def density_of(sampled: Sampled, seq_len: int) -> Density:
    """What lanes are estimated with; packs hold at least one token of the sample."""
    kinds = [[place for place in sampled.places if place.whole is whole] for whole in (False, True)]
    both = _ratio(sampled.places)
    cut, whole = (_ratio(places, per_size=sampled.is_complete) or both for places in kinds)
    total, shards, ratios = _shard_ratios(*_of_places(kinds))
    block_spread = 0.0
    if len(kinds[0]) > 1:
        tokens, sizes = (np.array(column) for column in zip(*((p.tokens.sum(), p.size) for p in kinds[0]), strict=True))
        expected = tokens.sum() / sizes.sum() * sizes
        # The last block of a shard is smaller, and varies more: in proportion to the root of its size.
        variance = float(((tokens - expected) ** 2 / sizes).sum()) / (len(sizes) - 1) * sampled.block_bytes
        variance /= max(float(tokens.sum() / sizes.sum()) * sampled.block_bytes, 1e-9) ** 2
        block_spread = max(variance - float(ratios.var()), 0.0) ** 0.5
    return Density(
        cut=cut,
        whole=whole,
        spread=total**0.5,
        shards=shards,
        ratios=ratios,
        block_spread=block_spread,
        block_bytes=sampled.block_bytes,
        # Packs without a target are never given, so that packs hold fewer rows than were fed.
        tokens_per_pack=seq_len * _fill(sampled, seq_len) * sampled.kept_tokens / max(sampled.rows, 1),
        known={
            (place.shard, place.begin): float(place.tokens.sum()) for place in sampled.places if sampled.is_complete
        },
    )


def sample_plan(sampled: Sampled, density: Density, seq_len: int, table: ShardTable) -> SamplePlan:
    """What is shown of a sample with at least one token; `table` has the names of its shards."""
    lengths, histogram = np.array(sampled.document_tokens), Lengths()
    for length in sampled.document_tokens:
        histogram.add(length)
    blocks = [place for place in sampled.places if not place.whole]
    samples = float(np.mean([len(place.tokens) for place in blocks])) if blocks else 0.0
    every_sample = sum(len(place.tokens) for place in sampled.places)
    return SamplePlan(
        documents=len(lengths),
        bytes=round(sampled.bytes),
        tokens=sampled.tokens,
        is_complete=sampled.is_complete,
        bytes_per_token=sampled.bytes / sampled.tokens,
        spread=density.spread,
        mean_tokens=float(lengths.mean()),
        median_tokens=int(np.median(lengths)),
        p99_tokens=int(np.percentile(lengths, 99)),
        max_tokens=int(lengths.max()),
        block_bytes=sampled.block_bytes,
        samples_per_block=samples,
        documents_per_block=samples * len(lengths) / every_sample,
        cut_documents=sampled.cut_documents,
        cut_share=sampled.cut_tokens / sampled.tokens,
        pack_fill=_fill(sampled, seq_len),
        bad_records=sampled.bad,
        lengths=[
            LengthBin(first=first, last=last, documents=documents, tokens=tokens)
            for first, last, documents, tokens in histogram.octaves()
        ],
        shards=_shard_samples(sampled, table),
        packings={
            str(kind): PackingFill(
                packs=each.packs(seq_len), fill=each.efficiency(seq_len), cut_documents=each.split_documents
            )
            for kind, each in sampled.packed.items()
        },
    )


def _shard_samples(sampled: Sampled, table: ShardTable) -> list[ShardSample]:
    bytes_of, tokens_of = Counter[int](), Counter[int]()
    for place in sampled.places:
        bytes_of[place.shard] += round(float(place.bytes.sum()))
        tokens_of[place.shard] += round(float(place.tokens.sum()))
    found = [
        ShardSample(url=table.urls[shard], bytes=size, tokens=tokens_of[shard])
        for shard, size in bytes_of.items()
        if size
    ]
    return sorted(found, key=lambda each: (each.tokens / each.bytes, each.url))


def _fill(sampled: Sampled, seq_len: int) -> float:
    """Of the packs that are full as far as their packing allows; 1 where the sample fills none."""
    return sampled.rows_in_full_packs / (sampled.full_packs * seq_len) if sampled.full_packs else 1.0


def _ratio(places: Sequence[Place], *, per_size: bool = False) -> float:
    """Tokens for each byte of the samples, or of the blocks (also of archives' ends); 0 for no sample."""
    total = sum(float(place.size if per_size else place.bytes.sum()) for place in places)
    return sum(float(place.tokens.sum()) for place in places) / total if total else 0.0


def _of_places(kinds: Sequence[Sequence[Place]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Places with samples: the shards, int64 [n], and float [n, 3].

    These are a place's tokens for each byte as a multiple of the mean of its kind, the variance of that by chance, and
    the bytes of its samples.
    """
    shards, rows = [], []
    for places in kinds:
        mean = _ratio(places)
        for place in places:
            size, tokens, count = float(place.bytes.sum()), float(place.tokens.sum()), len(place.bytes)
            if size and mean:
                rest = place.tokens - tokens / size * place.bytes
                noise = float((rest**2).sum()) / (size * mean) ** 2 * count / max(count - 1, 1)
                shards.append(place.shard)
                rows.append((tokens / size / mean, noise, size))
    return np.array(shards, np.int64), np.array(rows, np.float64).reshape(-1, 3)


def _shard_ratios(
    shards: NDArray[np.int64], places: NDArray[np.float64]
) -> tuple[float, NDArray[np.int64], NDArray[np.float64]]:
    """(variance between places, the shards, the ratio of each), without the part of chance; all by bytes.

    Where enough shards have two places or more, their difference tells which part of the variance is inside shards.
    """
    found, index = np.unique(shards, return_inverse=True)
    count, again = len(shards), len(shards) - len(found)
    if count < 2:
        return 0.0, found, np.ones(max(len(found), 1))
    ratios, noise, sizes = places.T
    of_shards = np.bincount(index, sizes)
    means = np.bincount(index, ratios * sizes) / of_shards
    chance = float(np.average(noise, weights=sizes))
    total = max(float(np.average((ratios - 1) ** 2, weights=sizes)) * count / (count - 1) - chance, 0.0)
    inside = 0.0
    if again >= _ENOUGH_PAIRS:
        inside = float(np.average((ratios - means[index]) ** 2, weights=sizes)) * count / again
        inside = min(max(inside - chance, 0.0), total)
    shown = float(np.average((means - 1) ** 2, weights=of_shards))
    scale = ((total - inside) / shown) ** 0.5 if shown else 0.0
    return total, found, 1 + (means - 1) * min(scale, 1.0)
