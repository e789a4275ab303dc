"""`streampack plan`: what a configuration needs on so many ranks and workers, before anything runs.

In:  a config file, and a topology. Out: tables on stdout, or JSON; warnings and errors on stderr.
Invariants: the shards are listed, and a sample of some MB of them is read. What depends on their contents is an
estimate. With assumed bytes for each token nothing is read.
"""

import inspect
from typing import Annotated, Any

import msgspec
import typer

from streampack.cli.arguments import Json, check_config, make_dataset
from streampack.cli.console import output, print_error, print_json, print_warning
from streampack.cli.plan.advice import warn_of_blocks, warn_of_epochs, warn_of_lanes, warn_of_ranks, warn_of_sample
from streampack.cli.plan.drawing import draw
from streampack.cli.plan.estimates import Estimated, Plan, SourcePlan, corpus_plan, lane_plan, rank_plan
from streampack.cli.plan.measured import assumed, density_of, sample_plan
from streampack.cli.plan.sampling import block_bytes_of, take_sample
from streampack.cli.plan.stages import StagePlan, stage_plans
from streampack.cli.plan.validation import validation_plan
from streampack.config.file import load_config
from streampack.corpus.partition import check_ranks
from streampack.corpus.shares import DEFAULT
from streampack.dataset.dataset import PackedDataset
from streampack.errors import ConfigError, ShardError
from streampack.lanes.run import RunSource
from streampack.loader.loader import PackedDataLoader

_ASSUMED_BYTES_PER_TOKEN = 4.0
"""Where the sample holds no document."""


def plan(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A config file (.yaml).", show_default=False)],
    *,
    ranks: Annotated[int, typer.Option("--ranks", "-r", min=1, help="Data-parallel ranks.")] = 1,
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", min=0, help="Workers of each rank.", show_default="the config's")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", "-b", min=1, help="Packs in a batch of each rank.", show_default="the config's"),
    ] = None,
    tokens_per_second: Annotated[
        float, typer.Option(min=1, help="Assumed speed of the training on each rank.")
    ] = 10_000,
    bytes_per_token: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Assumed bytes of shards for each token; no shard is read then.",
            show_default="measured on a sample",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show what a config needs on so many ranks and workers: lanes, batches, memory, requests."""
    check_config(config, "plan")
    dataset = make_dataset([config])
    asked = {"num_workers": workers, "batch_size": batch_size}
    arguments = load_config(config).loader_arguments() | {k: v for k, v in asked.items() if v is not None}
    made = make_plan(
        config, dataset, arguments, ranks=ranks, tokens_per_second=tokens_per_second, bytes_per_token=bytes_per_token
    )
    if json:
        print_json(as_json(made))
    else:
        draw(output(), made)
        for warning in made.warnings:
            print_warning(warning)
    for error in made.errors:
        print_error(error)
    if made.errors:
        raise typer.Exit(1)


def as_json(made: Plan) -> dict[str, Any]:  # Any: JSON
    """The plan as plain values. What each source has of its own is null for the run if there are several."""
    found: dict[str, Any] = msgspec.to_builtins(made)
    if made.validation is not None:
        found["lanes"] = None
        for source in found["sources"].values():
            source["lanes"] = None
    if len(made.sources) > 1:
        found |= dict.fromkeys(("bytes_per_token", "sample", "corpus", "lanes"))
    return found


def make_plan(
    config: str,
    dataset: PackedDataset,
    arguments: dict[str, Any],  # Any: each argument of the loader has its own type
    *,
    ranks: int,
    tokens_per_second: float,
    bytes_per_token: float | None,
) -> Plan:
    """The plan for a dataset and the arguments of its loader."""
    defaults = {name: value.default for name, value in inspect.signature(PackedDataLoader).parameters.items()}
    settings = defaults | arguments
    warnings: list[str] = []
    errors: list[str] = []
    run = dataset.run()
    estimated = [_estimate(source, dataset.seq_len, bytes_per_token, warnings, errors) for source in run.sources]
    sources = {}
    for each in estimated:
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
            max_epochs=dataset.sources[each.name].max_epochs,
        )
    first = sources[run.sources[0].name]
    densities = {each.name: each.density for each in estimated}
    tokens = {each.name: each.shards.estimated_tokens for each in estimated}
    stages: list[StagePlan] = []
    if not dataset.is_validation:
        stages = stage_plans(run, densities, tokens, global_batch=ranks * settings["batch_size"])
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
        warnings=warnings,
        errors=errors,
    )


def _estimate(
    source: RunSource, seq_len: int, bytes_per_token: float | None, warnings: list[str], errors: list[str]
) -> Estimated:
    """What a source's shards are, by a sample of them if no number is assumed."""
    density, sample = assumed(bytes_per_token or _ASSUMED_BYTES_PER_TOKEN, seq_len), None
    pipeline, corpus, about = source.pipelines[0], source.corpus, list[str]()
    if bytes_per_token is None:
        try:
            sampled = take_sample(pipeline, corpus, block_bytes_of(corpus))
            warn_of_sample(about, pipeline, sampled)
            if sampled.kept_tokens:
                density = density_of(sampled, seq_len)
                sample = sample_plan(sampled, density, seq_len)
        except ShardError as error:
            errors.append(_about(source.name, str(error)))
    warnings += [_about(source.name, text) for text in about]
    return Estimated(source.name, corpus, density, corpus_plan(corpus, density), sample)


def _about(source: str, text: str) -> str:
    return text if source == DEFAULT else f"source {source}: {text}"
