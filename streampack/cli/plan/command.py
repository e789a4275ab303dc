"""`streampack plan`: what a configuration needs and gives on so many ranks and workers, before anything runs.

It lists the shards and reads none of them. What depends on the data's contents is an estimate, with what it assumes.
"""

import inspect
from typing import Annotated, Any

import msgspec
import typer

from streampack.cli.arguments import Json, make_dataset
from streampack.cli.console import format_bytes, output, plural, print_error, print_json, print_warning
from streampack.cli.plan.drawing import draw
from streampack.cli.plan.estimates import (
    CorpusPlan,
    LanePlan,
    Plan,
    RankPlan,
    corpus_plan,
    lane_bytes,
    lane_plan,
    rank_plan,
)
from streampack.config.file import load_config
from streampack.corpus.epochs import Corpus
from streampack.corpus.partition import check_ranks
from streampack.dataset.dataset import PackedDataset
from streampack.errors import ConfigError
from streampack.lanes.pool import check_budget
from streampack.loader.loader import PackedDataLoader

_DRIFT = 1.1
"""Lanes whose largest is so much above the mean get a warning."""


def plan(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A config file (.yaml).", show_default=False)],
    *,
    ranks: Annotated[int, typer.Option("--ranks", "-r", min=1, help="Data-parallel ranks.")] = 1,
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", min=0, help="Workers of each rank.", show_default="the config's")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", "-b", min=1, help="Packs, of each rank.", show_default="the config's")
    ] = None,
    tokens_per_second: Annotated[float, typer.Option(min=1, help="What each rank trains on; an assumption.")] = 10_000,
    bytes_per_token: Annotated[float, typer.Option(min=0.1, help="Of shards; an assumption.")] = 4.0,
    json: Json = False,
) -> None:
    """What a configuration needs and gives on so many ranks and workers."""
    dataset = make_dataset([config])
    asked = {"num_workers": workers, "batch_size": batch_size}
    arguments = load_config(config).loader_arguments() | {k: v for k, v in asked.items() if v is not None}
    made = make_plan(
        config, dataset, arguments, ranks=ranks, tokens_per_second=tokens_per_second, bytes_per_token=bytes_per_token
    )
    if json:
        print_json(msgspec.to_builtins(made))
    else:
        draw(output(), made)
        for warning in made.warnings:
            print_warning(warning)
    for error in made.errors:
        print_error(error)
    if made.errors:
        raise typer.Exit(1)


def make_plan(
    config: str,
    dataset: PackedDataset,
    arguments: dict[str, Any],  # Any: each argument of the loader has its own type
    *,
    ranks: int,
    tokens_per_second: float,
    bytes_per_token: float,
) -> Plan:
    """The plan for a dataset and the arguments of its loader."""
    corpus = dataset.corpus()
    defaults = {name: value.default for name, value in inspect.signature(PackedDataLoader).parameters.items()}
    settings = defaults | arguments
    warnings: list[str] = []
    errors: list[str] = []
    shards = corpus_plan(corpus, bytes_per_token)
    sizes, pieces = lane_bytes(corpus, 0)
    lanes = lane_plan(dataset, corpus, sizes)
    _warn_of_lanes(warnings, errors, dataset, corpus, shards, lanes)
    rank = None
    try:
        check_ranks(num_lanes=lanes.num_lanes, num_ranks=ranks)
        PackedDataLoader(dataset, **arguments)  # it checks the other arguments
        rank = rank_plan(
            dataset,
            shards,
            pieces,
            ranks=ranks,
            num_workers=settings["num_workers"],
            batch_size=settings["batch_size"],
            prefetch_bytes=settings["prefetch_bytes"],
            tokens_per_second=tokens_per_second,
            bytes_per_token=bytes_per_token,
        )
        _warn_of_ranks(warnings, rank, settings["num_workers"], lanes.num_lanes)
        check_budget(
            budget_bytes=rank.buffer_bytes,
            num_lanes=rank.lanes_per_worker,
            max_document_bytes=dataset.pipeline.documents.max_document_bytes,
        )
    except ConfigError as error:
        errors.append(str(error))
    return Plan(
        config=config,
        epochs=dataset.epochs,
        seq_len=dataset.seq_len,
        tokens_per_second=tokens_per_second,
        bytes_per_token=bytes_per_token,
        corpus=shards,
        lanes=lanes,
        rank=rank,
        warnings=warnings,
        errors=errors,
    )


def _warn_of_lanes(
    warnings: list[str],
    errors: list[str],
    dataset: PackedDataset,
    corpus: Corpus,
    shards: CorpusPlan,
    lanes: LanePlan,
) -> None:
    endless = dataset.epochs is None
    stays = not corpus.shuffle or corpus.one_epoch
    if lanes.num_empty:
        what = f"{lanes.num_empty:,} of {plural(lanes.num_lanes, 'lane')} have no shard in epoch 0"
        if endless and stays:
            errors.append(
                f"{what}, nor in any other, since the order of shards stays: an endless run stops with an error. Use "
                "fewer lanes (num_lanes), shards that can be cut (.tar), or shuffle: true."
            )
        else:
            warnings.append(f"{what}: there are too few shards that go whole. Fewer lanes, or plain .tar shards, help.")
    elif lanes.max_bytes > _DRIFT * lanes.mean_bytes and (endless or not stays):
        warnings.append(
            f"lanes differ in size: the largest has {lanes.max_bytes / lanes.mean_bytes:.2f} times the mean in epoch "
            f"0, since {plural(shards.num_whole, 'shard')} cannot be cut. Lanes drift apart: some get epochs ahead."
        )
    if lanes.filler_share is not None and lanes.filler_share > 1 - 1 / _DRIFT:
        warnings.append(
            f"about {lanes.filler_share:.0%} of the packs are fillers, since lanes end at different times. Fewer "
            "lanes, plain .tar shards, or epoch_end: stop avoid them."
        )
    if shards.num_estimated:
        warnings.append(
            f"{plural(shards.num_estimated, 'shard')} of unknown size: they go whole, and count as the mean of the "
            "others. A manifest can give sizes."
        )
    if shards.num_compressed:
        warnings.append(
            f"{plural(shards.num_compressed, 'compressed shard')}: a resume decompresses the shard that each lane "
            f"is in from its start, up to {format_bytes(shards.largest_compressed_bytes)} a lane."
        )


def _warn_of_ranks(warnings: list[str], rank: RankPlan, workers: int, num_lanes: int) -> None:
    if rank.workers < workers:
        warnings.append(
            f"{plural(workers, 'worker')} for the {plural(rank.lanes_per_rank, 'lane')} of a rank: only "
            f"{rank.workers} will be started."
        )
    if rank.parks_often:
        warnings.append(
            f"a lane's share of {format_bytes(rank.share_bytes)} holds less than two packs beside a range of its "
            "shard: lanes are parked and read again and again. Raise max_buffer_bytes, or use more ranks."
        )
    if rank.global_batch > num_lanes:
        warnings.append(
            f"a global batch has {rank.global_batch:,} packs and there are {plural(num_lanes, 'lane')}: each batch "
            "takes several packs in a row from one lane, often of one document. More lanes mix better."
        )
