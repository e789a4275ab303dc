"""What follows from the sizes of shards and the number of ranks and workers.

In:  a dataset, its shards, what a sample of them says, and a topology. Out: the records of a `Plan`.
Invariants: the lanes are those of the run, so bytes and requests are exact; tokens are estimated from bytes, by what a
sample says.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np

from streampack.cli.plan.evenness import filler_share_of, lane_sizes, packs_of, unread_share_of
from streampack.cli.plan.measured import Density, SamplePlan
from streampack.cli.plan.mixing import MixingPlan
from streampack.cli.plan.position import RunPosition
from streampack.cli.plan.stages import StagePlan, step_of
from streampack.cli.plan.validation import ValidationPlan
from streampack.corpus.epochs import Corpus
from streampack.corpus.partition import Piece, fitting_ranks
from streampack.dataset.dataset import PackedDataset
from streampack.lanes.budget import STREAM_BYTES, LaneNeeds, worker_bytes
from streampack.lanes.pool import range_bytes
from streampack.state.checkpoint import Committed
from streampack.storage.clients import local_path
from streampack.storage.ranges import LOCAL_RANGE_BYTES
from streampack.tar.codecs import is_compressed
from streampack.tar.cuts import LOOK_BYTES
from streampack.tokenizers.libraries import libraries_of

_FIRST_RANGE_BYTES = 512 * 2**10
"""The first request for each piece of a shard; the next ones are larger."""
_MEASURED_LANES = 100_000
"""At most so many lanes times epochs are added up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusPlan:
    """What is read of the shards, where cells of them are held out; else all of them."""

    num_shards: int
    total_bytes: int
    num_estimated: int
    """Shards whose size is not known."""
    num_cut: int
    """Shards that can be divided among lanes."""
    cut_bytes: int
    num_whole: int
    whole_bytes: int
    num_compressed: int
    largest_compressed_bytes: int
    estimated_tokens: int
    """Of one epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LanePlan:
    """How the shards are divided among lanes."""

    num_lanes: int
    auto: bool
    num_empty: int
    """Lanes without a byte in epoch 0."""
    min_bytes: int
    """In epoch 0, as `mean_bytes` and `max_bytes`."""
    mean_bytes: float
    max_bytes: int
    fitting_ranks: list[int]
    state_bytes: int
    """Bytes of the state of all lanes, at the start of a run."""
    block_bytes: int
    """Of a block in this corpus; 0: the pieces are no blocks."""
    window: int
    """Blocks whose records are permuted together; 0 without."""
    min_tokens: int
    """In epoch 0, estimated, as `mean_tokens` and `max_tokens`."""
    mean_tokens: int
    max_tokens: int
    filler_share: float | None
    """Of the packs of a finite run with epoch_end="pad", estimated."""
    tokens_of_lanes: list[int]
    """In epoch 0, estimated: of the smallest lane, of that which a tenth of the lanes do not exceed, and so on up to
    the largest one; 11 numbers."""
    unread_share: float | None
    """Of the packs of a finite run with epoch_end="stop", estimated: those that come after its end."""
    packs_per_epoch: float
    """Of each lane, estimated: in a finite run those of the lane that decides when it ends, else the mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePlan:
    """One source of a run."""

    corpus: CorpusPlan
    sample: SamplePlan | None
    """None where no sample was taken, or it holds no document."""
    bytes_per_token: float
    """Bytes of shards for each token: measured, or where `sample` is None an assumption."""
    lanes: LanePlan
    mixing: MixingPlan
    max_epochs: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """What one rank does."""

    ranks: int
    lanes_per_rank: int
    workers: int
    """Workers that are started."""
    lanes_per_worker: int
    """Lanes of the worker that has most."""
    batch_size: int
    global_batch: int
    """Packs of all ranks' batches."""
    batches_per_epoch: int | None
    """Of each rank, estimated; in a finite run with its fillers, or up to the end of the shortest lane. None, here and
    in `requests_per_epoch`, with several sources, each of which has its own epochs."""
    batches: int | None
    """Of each rank in the whole run, with a budget; in no run with `epochs`."""
    buffer_bytes: int
    """Of each worker."""
    needed_bytes: int
    """The smallest `limits.buffer_bytes` with which the lanes of a rank can be read by these workers."""
    sources_at_once: int
    """Sources that a lane reads in the stage that needs most memory."""
    shuffle_window_bytes: int
    """What a lane holds of its shuffle windows, over these sources; 0 without."""
    packing_window_bytes: int
    """What a lane holds of its packing windows, over these sources; 0 without."""
    share_bytes: int
    """Of each lane."""
    range_bytes: int
    """The largest request of a lane."""
    spare_tokens: int
    """Tokens that each lane may hold besides its range and its windows, before lanes are parked."""
    parks_often: bool
    """Whether `spare_tokens` are fewer than two packs, so that lanes are parked all the time; with a shuffle window
    they never are."""
    prefetch_bytes: int
    request_bytes: float
    """Mean bytes of a request."""
    requests_per_epoch: int | None
    """Over all ranks, as those that follow."""
    requests_per_s: float
    """In the first stage."""
    requests_at_start: int
    """Before the first batches, also of a resume."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that is shown."""

    config: str
    epochs: int | None
    seq_len: int
    packing: str
    tokens_per_second: float
    """Of each rank: an assumption."""
    bytes_per_token: float
    """Of the first source, as `sample`, `corpus` and `lanes`."""
    sample: SamplePlan | None
    corpus: CorpusPlan
    lanes: LanePlan
    sources: dict[str, SourcePlan]
    stages: list[StagePlan]
    budget_packs: int | None
    """All packs of the run; None: it has no budget."""
    rank: RankPlan | None
    """None where the ranks do not fit the lanes, and of a validation set."""
    validation: ValidationPlan | None
    """None: it is no validation set. It has no stages, and lanes that say nothing."""
    position: RunPosition | None
    """None: no state was given."""
    warnings: list[str]
    errors: list[str]


class Estimated(NamedTuple):
    """What is known of a source before lanes are planned."""

    name: str
    corpus: Corpus
    density: Density
    shards: CorpusPlan
    sample: SamplePlan | None


def corpus_plan(corpus: Corpus, density: Density) -> CorpusPlan:
    """What the shards are."""
    table, parts = corpus.table, corpus.parts
    shards = np.unique(parts.shards)
    compressed = [int(table.sizes[shard]) for shard in shards.tolist() if is_compressed(table.urls[shard])]
    cut_bytes, whole_bytes = (int(parts.sizes[parts.whole == whole].sum()) for whole in (False, True))
    num_whole = int(table.whole[shards].sum())
    return CorpusPlan(
        num_shards=len(shards),
        total_bytes=parts.total_bytes,
        num_estimated=int((~table.size_known[shards]).sum()),
        num_cut=len(shards) - num_whole,
        cut_bytes=cut_bytes,
        num_whole=num_whole,
        whole_bytes=whole_bytes,
        num_compressed=len(compressed),
        largest_compressed_bytes=max(compressed, default=0),
        estimated_tokens=round(cut_bytes * density.cut + whole_bytes * density.whole),
    )


def lane_plan(dataset: PackedDataset, corpus: Corpus, density: Density) -> LanePlan:
    """How even the lanes are."""
    first = lane_sizes(corpus, density, 0)
    filler_share = unread_share = None
    packs_per_epoch = float(first.tokens.mean()) / density.tokens_per_pack
    if dataset.epochs is not None:
        # Lanes go from epoch to epoch by themselves, so only the sum over the epochs must be equal.
        measured = min(dataset.epochs, max(_MEASURED_LANES // corpus.num_lanes, 1))
        tokens = first.tokens.copy()
        for epoch in range(1, measured):
            tokens += lane_sizes(corpus, density, epoch).tokens
        tokens *= dataset.epochs / measured
        packs = packs_of(tokens, density.tokens_per_pack)
        if dataset.epoch_end == "pad":
            filler_share = filler_share_of(tokens, density.tokens_per_pack)
            packs_per_epoch = float(packs.max()) / dataset.epochs
        else:
            unread_share = unread_share_of(tokens, density.tokens_per_pack)
            packs_per_epoch = float(packs.min()) / dataset.epochs
    libraries = libraries_of(dataset.pipeline.tokenizer)
    fresh = Committed.fresh(range(corpus.num_lanes), corpus.num_lanes, tuple(dataset.sources))
    state = fresh.to_state(dataset.fingerprint(), libraries)
    return LanePlan(
        num_lanes=corpus.num_lanes,
        auto=dataset.auto_lanes,
        num_empty=int((first.bytes == 0).sum()),
        min_bytes=round(first.bytes.min()),
        mean_bytes=float(first.bytes.mean()),
        max_bytes=round(first.bytes.max()),
        fitting_ranks=fitting_ranks(corpus.num_lanes),
        state_bytes=sum(len(key) + _size(value) for key, value in state.items()),
        block_bytes=corpus.block_bytes,
        window=corpus.window,
        min_tokens=round(first.tokens.min()),
        mean_tokens=round(first.tokens.mean()),
        max_tokens=round(first.tokens.max()),
        tokens_of_lanes=[round(each) for each in np.quantile(first.tokens, np.linspace(0, 1, 11)).tolist()],
        filler_share=filler_share,
        unread_share=unread_share,
        packs_per_epoch=packs_per_epoch,
    )


def _size(value: object) -> int:
    return int(getattr(value, "nbytes", 0)) or len(str(value))


def rank_plan(
    dataset: PackedDataset,
    sources: Sequence[Estimated],
    lanes: LanePlan,
    *,
    ranks: int,
    num_workers: int,
    batch_size: int,
    prefetch_bytes: int,
    tokens_per_second: float,
) -> RankPlan:
    """What a rank does and holds; the ranks divide the lanes."""
    lanes_per_rank = lanes.num_lanes // ranks
    workers = min(num_workers, lanes_per_rank)
    processes = max(workers, 1)
    lanes_per_worker = -(-lanes_per_rank // processes)
    run = dataset.run(lanes.num_lanes)
    buffer_bytes = worker_bytes(dataset.limits.buffer_bytes, run, num_lanes=lanes_per_rank, num_workers=workers)
    share_bytes = buffer_bytes // lanes_per_worker
    needs = LaneNeeds.of(run)
    most_bytes = range_bytes(share_bytes, needs)
    spare_tokens = max(share_bytes - needs.windows - needs.sources * STREAM_BYTES - most_bytes, 0) // 4
    windows = [each.corpus.window for each in sources]
    only = epoch_requests(sources[0].corpus, most_bytes) if len(sources) == 1 else None
    requests_per_s = bytes_per_s = 0.0
    shares, rows_per_s = run.schedule.stages[0].shares, ranks * tokens_per_second
    for index, _ in shares.weights:
        each = sources[index]
        rows = max(each.shards.estimated_tokens / each.density.tokens_per_pack * dataset.seq_len, 1e-9)  # of an epoch
        epochs_per_s = shares.share(index) * rows_per_s / rows
        requests_per_s += epochs_per_s * epoch_requests(each.corpus, most_bytes)
        bytes_per_s += epochs_per_s * (each.shards.cut_bytes + each.shards.whole_bytes)
    end, global_batch = run.schedule.end, ranks * batch_size
    return RankPlan(
        ranks=ranks,
        lanes_per_rank=lanes_per_rank,
        workers=workers,
        lanes_per_worker=lanes_per_worker,
        batch_size=batch_size,
        global_batch=global_batch,
        batches_per_epoch=None if only is None else math.ceil(lanes.packs_per_epoch * lanes_per_rank / batch_size),
        batches=None if end is None else step_of(run.schedule, end, global_batch=global_batch),
        buffer_bytes=buffer_bytes,
        needed_bytes=processes * lanes_per_worker * needs.bytes,
        sources_at_once=needs.sources,
        shuffle_window_bytes=needs.shuffle,
        packing_window_bytes=needs.packing,
        share_bytes=share_bytes,
        range_bytes=most_bytes,
        spare_tokens=spare_tokens,
        parks_often=not any(windows) and spare_tokens < 2 * dataset.seq_len,
        prefetch_bytes=prefetch_bytes,
        request_bytes=bytes_per_s / max(requests_per_s, 1e-9),
        requests_per_epoch=only,
        requests_per_s=requests_per_s,
        requests_at_start=dataset.num_lanes * sum(max(windows[index], 1) for index, _ in shares.weights),
    )


def epoch_requests(corpus: Corpus, most_bytes: int) -> int:
    """Ranged reads in an epoch."""
    table, parts = corpus.table, corpus.parts
    requests = 0
    if corpus.block_bytes:
        requests = int((-(-parts.sizes[~parts.whole] // corpus.block_bytes)).sum())
        uncut = parts.shards[parts.whole].tolist()
        lanes = [[Piece(shard, 0, int(table.sizes[shard]), whole=True) for shard in uncut]]
    else:
        lanes = [list(corpus.pieces(0, lane)) for lane in range(corpus.num_lanes)]
    for piece in chain.from_iterable(lanes):
        is_local = local_path(table.urls[piece.shard]) is not None
        largest = min(most_bytes, LOCAL_RANGE_BYTES) if is_local else most_bytes
        requests += num_requests(piece, int(table.sizes[piece.shard]), largest)
    return requests


def num_requests(piece: Piece, shard_bytes: int, most_bytes: int) -> int:
    """Ranged reads for one piece: sizes double up to the lane's range.

    Each cut costs a read to find the sample there: at the piece's begin as many as show what follows it, and at its end
    another for that sample's last bytes.
    """
    looked_at = min(LOOK_BYTES, piece.end - piece.begin)
    at_begin = -(-looked_at // most_bytes) if piece.begin > 0 else 0
    cuts = 0 if piece.whole else at_begin + 2 * (piece.end < shard_bytes)
    left, size, requests = piece.end - piece.begin, min(_FIRST_RANGE_BYTES, most_bytes), 0
    while left > 0 and size < most_bytes:
        left, size, requests = left - size, min(2 * size, most_bytes), requests + 1
    return cuts + requests + -(-max(left, 0) // most_bytes)
