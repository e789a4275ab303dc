"""What is unwise in a plan, and what to do about it.

In:  what was estimated. Out: warnings and errors, a sentence or two each.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from streampack.cli.console import format_bytes, plural
from streampack.cli.plan.estimates import CorpusPlan, LanePlan, RankPlan, SourcePlan
from streampack.cli.plan.measured import SamplePlan
from streampack.cli.plan.sampling import Sampled
from streampack.cli.plan.stages import StagePlan
from streampack.corpus.epochs import Corpus
from streampack.corpus.options import BLOCKS_PER_LANE, Shuffle
from streampack.dataset.dataset import PackedDataset
from streampack.lanes.pipeline import Pipeline
from streampack.packing.options import Overflow

_DRIFT = 1.1
"""There is a warning where the largest lane has more than this times the mean."""
_CUT = 0.01
"""There is a warning where overflow takes away more than this share of the tokens."""
_LACKING = 0.02
"""There is a warning where more than this share of a source's packs is lost, as some lanes have too little of it."""
_SAMPLES_PER_BLOCK = 50
_UNEVEN = 1.04
"""Lanes of blocks of fewer samples are named where the largest lane has more than this times the mean."""


def warn_of_lanes(
    warnings: list[str],
    errors: list[str],
    dataset: PackedDataset,
    corpus: Corpus,
    shards: CorpusPlan,
    lanes: LanePlan,
) -> None:
    """Lanes without data, lanes of different sizes, fillers, and shards that cannot be divided."""
    endless = dataset.epochs is None
    stays = not corpus.shuffle or corpus.one_epoch
    if lanes.num_empty:
        what = f"{lanes.num_empty:,} of {plural(lanes.num_lanes, 'lane')} have no shard in epoch 0"
        if endless and stays:
            errors.append(
                f"{what}, nor in any other, since the order of shards stays: an endless run stops with an error. Use "
                "fewer lanes (num_lanes), plain .tar shards, or shuffle: true."
            )
        else:
            warnings.append(
                f"{what}: there are fewer shards that are read whole than lanes. Use fewer lanes, or plain .tar shards."
            )
    elif lanes.max_bytes > _DRIFT * lanes.mean_bytes and (endless or not stays):
        whole = f"since {plural(shards.num_whole, 'shard')} cannot be divided among lanes"
        warnings.append(
            f"lanes differ in size: the largest has {lanes.max_bytes / lanes.mean_bytes:.2f} times the mean in epoch "
            f"0, {whole if shards.num_whole else 'since lanes have few blocks'}. Lanes drift apart: some get epochs "
            "ahead of others."
        )
    if lanes.filler_share is not None and lanes.filler_share > 1 - 1 / _DRIFT:
        fewer = "Fewer lanes" if lanes.block_bytes else "shuffle: true (blocks from all shards), fewer lanes"
        warnings.append(
            f"about {lanes.filler_share:.0%} of the packs are fillers, since lanes end at different times. {fewer}, "
            "plain .tar shards or epoch_end: stop avoid them."
        )
    if lanes.unread_share is not None and lanes.unread_share > 1 - 1 / _DRIFT:
        warnings.append(
            f"about {lanes.unread_share:.0%} of the packs never come, since epoch_end: stop ends the run with its "
            "shortest lane. epoch_end: pad, fewer lanes or plain .tar shards avoid that."
        )
    if shards.num_estimated:
        warnings.append(
            f"{plural(shards.num_estimated, 'shard')} of unknown size: each is read whole, and counted with the mean "
            "size of the others. A manifest can give sizes."
        )
    if shards.num_compressed:
        warnings.append(
            f"{plural(shards.num_compressed, 'compressed shard')}: for each lane inside one, a resume "
            f"decompresses it from its start, up to {format_bytes(shards.largest_compressed_bytes)}."
        )


def warn_of_blocks(
    warnings: list[str], corpus: Corpus, shards: CorpusPlan, lanes: LanePlan, sample: SamplePlan
) -> None:
    """Blocks of so few samples that lanes become uneven."""
    few = 0 < sample.samples_per_block < _SAMPLES_PER_BLOCK
    if not few or not isinstance(corpus.shuffle, Shuffle) or lanes.max_tokens <= _UNEVEN * lanes.mean_tokens:
        return
    needed = _SAMPLES_PER_BLOCK * corpus.block_bytes / sample.samples_per_block
    most_lanes = shards.total_bytes / (BLOCKS_PER_LANE * needed)
    if most_lanes < 1:  # no number of lanes would help
        return
    advice = []
    if needed > corpus.shuffle.block_bytes:
        advice.append(f"larger blocks (shuffle: {{block_bytes: {2 ** math.ceil(math.log2(needed))}}})")
    if most_lanes < lanes.num_lanes:
        number = max(each for each in lanes.fitting_ranks if each <= most_lanes)
        advice.append(f"fewer lanes (num_lanes: {number}), since a lane has at least {BLOCKS_PER_LANE} blocks")
    warnings.append(
        f"about {sample.samples_per_block:.2g} samples begin in a block of {format_bytes(corpus.block_bytes)}, and "
        f"lanes of blocks of fewer than {_SAMPLES_PER_BLOCK} are uneven: the largest has about "
        f"{lanes.max_tokens / max(lanes.mean_tokens, 1):.2f} times the tokens of the mean. Use {' and '.join(advice)}."
    )


def warn_of_ranks(warnings: list[str], rank: RankPlan, workers: int, num_lanes: int) -> None:
    """Workers without lanes, lanes without memory, batches of neighbours."""
    if rank.workers < workers:
        warnings.append(
            f"{plural(workers, 'worker')} for the {plural(rank.lanes_per_rank, 'lane')} of a rank: only "
            f"{rank.workers} will be started."
        )
    if rank.parks_often:
        warnings.append(
            f"a lane's share of {format_bytes(rank.share_bytes)} holds less than two packs besides a range of its "
            "shard, so lanes are parked and read again all the time. Raise limits.buffer_bytes, or use more ranks."
        )
    if rank.global_batch > num_lanes:
        warnings.append(
            f"a global batch has {rank.global_batch:,} packs and there are {plural(num_lanes, 'lane')}: each batch "
            "has several consecutive packs of one lane, often of one document. More lanes mix better."
        )


def warn_of_sample(warnings: list[str], pipeline: Pipeline, sampled: Sampled) -> None:
    """Bad records in the sample, or nothing but those."""
    if sampled.bad:
        then = "stop at" if pipeline.on_error == "raise" else "skip"
        warnings.append(
            f"{plural(sampled.bad, 'bad record')} in the sample, which a run would {then}; the first one: "
            f"{sampled.first_bad} `streampack verify` finds all of them."
        )
    share = sampled.cut_tokens / max(sampled.tokens, 1)
    if share > _CUT or (sampled.cut_tokens and not sampled.kept_tokens):
        packing = pipeline.packing
        does = "drops" if packing.overflow is Overflow.DROP else "truncates"
        warnings.append(
            f'overflow="{packing.overflow}" {does} {plural(sampled.cut_documents, "document")} of '
            f"{len(sampled.document_tokens):,} in the sample, which have more rows than a pack of "
            f"{pipeline.seq_len:,}, and so takes away {share:.1%} of the tokens. A larger seq_len or "
            'overflow="split" keeps them.'
        )
    if not sampled.tokens:
        warnings.append(
            "the sample holds no document, so tokens are only assumed: is `field` right, and what does the transform "
            "leave out?"
        )


def warn_of_epochs(warnings: list[str], stages: Sequence[StagePlan], sources: Mapping[str, SourcePlan]) -> None:
    """Sources, and stages of which all sources, will be exhausted before the run ends."""
    empty = {}
    for number, stage in enumerate(stages):
        if (given := _given_of(stage, sources)) < 1:
            empty[number] = given
    for name, source in sources.items():
        for number, stage in enumerate(stages):
            epochs = stage.sources[name].epochs_by_end if name in stage.sources else None
            if source.max_epochs is not None and epochs is not None and epochs > source.max_epochs:
                if number not in empty:
                    warnings.append(
                        f"source {name} is exhausted in stage {number}: its share makes about {epochs:.2f} epochs by "
                        f"the end of it, and max_epochs is {source.max_epochs}. The other sources share the rest, or "
                        "with exhausted: error the run ends. A smaller weight or a larger max_epochs avoids that."
                    )
                break
        else:
            _warn_of_early_lanes(warnings, name, source, stages)
    last = max((number for number, stage in enumerate(stages) if stage.packs != 0), default=0)
    for number, given in empty.items():
        then = "the run ends before its budget" if number == last else "lanes give fillers until a later stage begins"
        warnings.append(
            f"all sources of stage {number} are exhausted before its end: with their max_epochs they give about "
            f"{given:.0%} of its packs. Then {then}; with exhausted: error it ends with an error. A larger max_epochs, "
            "another source or a shorter stage avoids that."
        )


def _warn_of_early_lanes(
    warnings: list[str], name: str, source: SourcePlan, stages: Sequence[StagePlan]
) -> None:
    """Lanes that have read `max_epochs` of a source which is enough for the mean lane."""
    given = [each.epochs_by_end for stage in stages if (each := stage.sources.get(name)) is not None]
    lanes, most = source.lanes, source.max_epochs
    if most is None or not given or given[-1] is None or not lanes.mean_tokens:
        return
    needed = given[-1]
    # Epochs are permuted by themselves, so their sum varies less from lane to lane than one of them.
    ratios = 1 + (np.array(lanes.tokens_of_lanes) / lanes.mean_tokens - 1) / math.sqrt(most)
    quantiles = np.linspace(0, 1, 101)
    epochs = most * np.interp(quantiles, np.linspace(0, 1, len(ratios)), ratios)
    lacking = float(np.maximum(needed - epochs, 0).mean()) / needed if needed else 0.0
    if lacking > _LACKING:
        early, smallest = float((epochs < needed).mean()), max(float(ratios[0]), 0.0)
        warnings.append(
            f"source {name} has {format_bytes(source.corpus.total_bytes)} for {plural(lanes.num_lanes, 'lane')}, and "
            f"the smallest lane has {smallest:.2f} times the mean: about {early:.0%} of the lanes are exhausted before "
            f"the run ends, although max_epochs={most} is enough for the mean ({needed:.2f} epochs are asked for). "
            f"There the other sources take its place, so that about {lacking:.0%} of its packs never come and "
            f"progress() stays at {needed * (1 - lacking):.2f} epochs. A larger max_epochs or fewer lanes (num_lanes) "
            "avoid that."
        )


def _given_of(stage: StagePlan, sources: Mapping[str, SourcePlan]) -> float:
    """The part of a stage's tokens that its sources have before they are exhausted; 1 or more: enough."""
    left = wanted = 0.0
    for name, each in stage.sources.items():
        most = sources[name].max_epochs
        if most is None or each.epochs is None or each.epochs_by_end is None or each.tokens is None:
            return 1.0
        left += max(most - (each.epochs_by_end - each.epochs), 0) * sources[name].corpus.estimated_tokens
        wanted += each.tokens
    return left / max(wanted, 1)
