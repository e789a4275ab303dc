"""How well a run's order mixes documents: what two documents of a pack, and the packs of a batch, have in common.

In:  the shards of a source as the run reads them, and what a sample says of its documents.
Out: a record of chances and of a variance.
Invariants: the blocks of the first windows are those of the run. A pack is taken to hold documents from anywhere in its
window, and blocks to hold documents in proportion to their bytes.

    chances     of two documents of a window to be from one block or shard: sums of squared shares of its bytes
    variance    1 + (n - 1) * (p - q) / (1 - q): of a shard's part in a batch, in times that of independent documents
                (the design effect of clusters: Kish, Survey Sampling, 1965), with n documents of a lane in a batch,
                p the chance above and q that of a full shuffle
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from streampack.cli.plan.measured import SamplePlan
from streampack.corpus.epochs import Corpus
from streampack.corpus.partition import Piece

_LANES = 64
"""So many lanes are looked at, from all over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixingPlan:
    """What documents of the first packs have in common; a full shuffle would draw each from anywhere."""

    window: int
    """Blocks whose documents are mixed; 0: documents come in the order of their shard."""
    window_bytes: int
    """Of those blocks, as a mean."""
    same_block: float | None
    """Of two documents of a pack; None: there are no blocks."""
    same_shard: float
    same_shard_shuffled: float
    """The same of a full shuffle."""
    shards_per_window: float
    documents_per_pack: float | None
    """None, here and below: nothing was sampled."""
    variance: float | None
    """Of a shard's part in a global batch, in times that of independent documents."""


def mixing_plan(
    corpus: Corpus, sample: SamplePlan | None, *, seq_len: int, global_batch: int, share: float
) -> MixingPlan:
    """The order of one source; `share`: its share of the packs."""
    count = min(corpus.num_lanes, _LANES)
    lanes = [index * corpus.num_lanes // count for index in range(count)]
    windows = [window for lane in lanes if (window := _first_window(corpus, lane))]
    of_blocks = [_same(((piece.shard, piece.begin), piece.end - piece.begin) for piece in each) for each in windows]
    of_shards = [_same((piece.shard, piece.end - piece.begin) for piece in each) for each in windows]
    sizes = [sum(piece.end - piece.begin for piece in each) for each in windows]
    shuffled = _same(zip(corpus.parts.shards.tolist(), corpus.parts.sizes.tolist(), strict=True))
    same_shard = _mean(of_shards)
    documents = variance = None
    if sample is not None:
        documents = seq_len / sample.mean_tokens
        together = max(documents * max(global_batch * share / corpus.num_lanes, 1.0), 1.0)
        more = max(same_shard - shuffled, 0.0) / (1 - shuffled) if shuffled < 1 else 0.0
        variance = 1 + (together - 1) * more
    return MixingPlan(
        window=corpus.window,
        window_bytes=round(_mean(sizes)) if corpus.window else 0,
        same_block=_mean(of_blocks) if corpus.window else None,
        same_shard=same_shard,
        same_shard_shuffled=shuffled,
        shards_per_window=_mean([len({piece.shard for piece in each}) for each in windows]),
        documents_per_pack=documents,
        variance=variance,
    )


def _first_window(corpus: Corpus, lane: int) -> list[Piece]:
    """What a lane mixes first: blocks up to the bytes that end a window, or one piece where nothing is mixed."""
    pieces = corpus.pieces(0, lane)
    if not corpus.window:
        return list(pieces[:1])
    most, found = corpus.window_bytes(members_expand=False), list[Piece]()
    for piece in pieces[: corpus.window]:
        left = most - sum(each.end - each.begin for each in found)
        if left <= 0:
            break
        found.append(piece._replace(end=min(piece.end, piece.begin + left)))
    return found


def _same(sizes: Iterable[tuple[object, int]]) -> float:
    """The chance that two documents are of one of the named parts, by their bytes."""
    of_parts = Counter[object]()
    for name, size in sizes:
        of_parts[name] += size
    total = max(of_parts.total(), 1)
    return sum((size / total) ** 2 for size in of_parts.values())


def _mean(values: list[float] | list[int]) -> float:
    return sum(values) / max(len(values), 1)
