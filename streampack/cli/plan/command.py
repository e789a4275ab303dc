"""`streampack plan`: what a configuration needs on so many ranks and workers, before anything runs.

In:  a config file, and a topology. Out: tables on stdout, or JSON; warnings and errors on stderr.
Invariants: the shards are listed, and not read. What depends on their contents is an estimate, shown with what it
assumes.
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
from streampack.loader.loader import PackedDataLoader

_DRIFT = 1.1
"""There is a warning where the largest lane has more than this times the mean."""


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
    bytes_per_token: Annotated[float, typer.Option(min=0.1, help="Assumed bytes of shards for each token.")] = 4.0,
    json: Json = False,
) -> None:
    """Show what a config needs on so many ranks and workers: lanes, batches, memory, requests."""
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
                "fewer lanes (num_lanes), plain .tar shards, or shuffle: true."
            )
        else:
            warnings.append(
                f"{what}: there are fewer shards that are read whole than lanes. Use fewer lanes, or plain .tar shards."
            )
    elif lanes.max_bytes > _DRIFT * lanes.mean_bytes and (endless or not stays):
        warnings.append(
            f"lanes differ in size: the largest has {lanes.max_bytes / lanes.mean_bytes:.2f} times the mean in epoch "
            f"0, since {plural(shards.num_whole, 'shard')} cannot be divided among lanes. Lanes drift apart: some get "
            "epochs ahead of others."
        )
    if lanes.filler_share is not None and lanes.filler_share > 1 - 1 / _DRIFT:
        warnings.append(
            f"about {lanes.filler_share:.0%} of the packs are fillers, since lanes end at different times. Fewer "
            "lanes, plain .tar shards or epoch_end: stop avoid them."
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


def _warn_of_ranks(warnings: list[str], rank: RankPlan, workers: int, num_lanes: int) -> None:
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
