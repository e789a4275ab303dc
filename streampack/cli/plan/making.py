"""The plan of a run: everything that is shown of it, computed once.

In:  a dataset, the arguments of its loader, a topology, perhaps a state. Out: a `Plan`.
Invariants: the shards are listed, and a sample of some MB of them is read. What depends on their contents is an
estimate. With assumed bytes for each token nothing is read.
"""

import dataclasses
import inspect
from typing import Any

from streampack.cli.plan.advice import warn_of_blocks, warn_of_epochs, warn_of_lanes, warn_of_ranks, warn_of_sample
from streampack.cli.plan.estimates import Estimated, Plan, SourcePlan, corpus_plan, lane_plan, rank_plan
from streampack.cli.plan.measured import assumed, density_of, sample_plan
from streampack.cli.plan.mixing import mixing_plan
from streampack.cli.plan.position import position_of
from streampack.cli.plan.sampling import block_bytes_of, take_sample
from streampack.cli.plan.stages import StagePlan, stage_plans
from streampack.cli.plan.validation import validation_plan
from streampack.cli.replay import Replay
from streampack.corpus.partition import check_ranks
from streampack.corpus.shares import DEFAULT
from streampack.dataset.dataset import PackedDataset
from streampack.errors import ConfigError, ShardError
from streampack.lanes.run import RunSource
from streampack.loader.loader import PackedDataLoader

_ASSUMED_BYTES_PER_TOKEN = 4.0
"""Where the sample holds no document."""


def make_plan(
    config: str,
    dataset: PackedDataset,
    replay: Replay,
    arguments: dict[str, Any],  # Any: each argument of the loader has its own type
    *,
    ranks: int,
    tokens_per_second: float,
    bytes_per_token: float | None,
) -> Plan:
    """The plan for a dataset, its run from the start or from a state on, and the arguments of its loader."""
    defaults = {name: value.default for name, value in inspect.signature(PackedDataLoader).parameters.items()}
    settings = defaults | arguments
    warnings: list[str] = []
    errors: list[str] = []
    run, global_batch = replay.run, ranks * settings["batch_size"]
    estimated = [_estimate(source, dataset.seq_len, bytes_per_token, warnings, errors) for source in run.sources]
    sources, shares = {}, run.schedule.stages[0].shares
    for index, each in enumerate(estimated):
        lanes = lane_plan(dataset, each.corpus, each.density)
        about, wrong = list[str](), list[str]()
        if not dataset.is_validation:
            warn_of_lanes(about, wrong, dataset, each.corpus, each.shards, lanes)
        if each.sample is not None and not dataset.is_validation:
            warn_of_blocks(about, each.corpus, each.shards, lanes, each.sample)
        warnings += [_about(each.name, text) for text in about]
        errors += [_about(each.name, text) for text in wrong]
        sources[each.name] = SourcePlan(
            corpus=each.shards,
            sample=each.sample,
            bytes_per_token=each.shards.total_bytes / max(each.shards.estimated_tokens, 1),
            lanes=lanes,
            mixing=mixing_plan(
                each.corpus,
                each.sample,
                seq_len=dataset.seq_len,
                global_batch=global_batch,
                share=shares.share(index) if index in dict(shares.weights) else 0.0,
            ),
            max_epochs=dataset.sources[each.name].max_epochs,
        )
    first = sources[run.sources[0].name]
    densities = {each.name: each.density for each in estimated}
    tokens = {each.name: each.shards.estimated_tokens for each in estimated}
    stages: list[StagePlan] = []
    if not dataset.is_validation:
        stages = stage_plans(run, densities, tokens, global_batch=global_batch)
    warn_of_epochs(warnings, stages, sources)
    rank, validation, lanes = None, None, first.lanes
    topology = {"ranks": ranks, "batch_size": settings["batch_size"]}
    try:
        PackedDataLoader(dataset, **arguments)  # it checks the other arguments
        if dataset.is_validation:
            validation = validation_plan(run, densities, tokens, **topology, drop_last=settings["drop_last"])
        else:
            check_ranks(num_lanes=lanes.num_lanes, num_ranks=ranks)
            rank = rank_plan(
                dataset,
                estimated,
                lanes,
                **topology,
                num_workers=settings["num_workers"],
                prefetch_bytes=settings["prefetch_bytes"],
                tokens_per_second=tokens_per_second,
            )
            warn_of_ranks(warnings, rank, settings["num_workers"], lanes.num_lanes)
    except ConfigError as error:
        errors.append(str(error))
    return Plan(
        config=config,
        epochs=dataset.epochs,
        seq_len=dataset.seq_len,
        packing=str(dataset.pipeline.packing.kind),
        tokens_per_second=tokens_per_second,
        bytes_per_token=first.bytes_per_token,
        sample=first.sample,
        corpus=first.corpus,
        lanes=lanes,
        sources=sources,
        stages=stages,
        budget_packs=run.schedule.end,
        rank=rank,
        validation=validation,
        position=position_of(replay, tokens, global_batch=global_batch),
        warnings=warnings,
        errors=errors,
    )


def _estimate(
    source: RunSource, seq_len: int, bytes_per_token: float | None, warnings: list[str], errors: list[str]
) -> Estimated:
    """What a source's shards are, by a sample of them if no number is assumed."""
    density, sample = assumed(bytes_per_token or _ASSUMED_BYTES_PER_TOKEN, seq_len), None
    pipeline, about = source.pipelines[0], list[str]()
    corpus = dataclasses.replace(source.corpus, left=None)  # whole epochs, whatever lanes before these have left
    if bytes_per_token is None:
        try:
            sampled = take_sample(pipeline, corpus, block_bytes_of(corpus))
            warn_of_sample(about, pipeline, sampled)
            if sampled.kept_tokens:
                density = density_of(sampled, seq_len)
                sample = sample_plan(sampled, density, seq_len, corpus.table)
        except ShardError as error:
            errors.append(_about(source.name, str(error)))
    warnings += [_about(source.name, text) for text in about]
    return Estimated(source.name, corpus, density, corpus_plan(corpus, density), sample)


def _about(source: str, text: str) -> str:
    return text if source == DEFAULT else f"source {source}: {text}"
