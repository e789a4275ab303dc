"""`streampack plan`: what a configuration needs on so many ranks and workers, before anything runs.

In:  a config file, and a topology. Out: tables on stdout, or JSON; warnings and errors on stderr.
Invariants: the shards are listed, and a sample of some MB of them is read. What depends on their contents is an
estimate. With assumed bytes for each token nothing is read.
"""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from streampack.cli.arguments import Json, State, check_config, file_errors, make_dataset
from streampack.cli.console import output, print_error, print_json, print_warning
from streampack.cli.peek.choosing import Chosen, validation_views_of, views_of
from streampack.cli.peek.pieces import Pieces
from streampack.cli.peek.view import View
from streampack.cli.plan.drawing import draw
from streampack.cli.plan.estimates import Plan
from streampack.cli.plan.making import make_plan
from streampack.cli.plan.page import page
from streampack.cli.replay import Replay
from streampack.config.file import load_config
from streampack.dataset.dataset import PackedDataset
from streampack.errors import StreampackError

_SHOWN_PACKS = 10


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
    state: State = None,
    html: Annotated[
        Path | None,
        typer.Option(help="Also write a page to this file, with pictures and ten packs.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Show what a config needs on so many ranks and workers: lanes, batches, memory, requests."""
    check_config(config, "plan")
    dataset = make_dataset([config])
    asked = {"num_workers": workers, "batch_size": batch_size}
    arguments = load_config(config).loader_arguments() | {k: v for k, v in asked.items() if v is not None}
    replay = Replay.of(dataset, state)
    made = make_plan(
        config,
        dataset,
        replay,
        arguments,
        ranks=ranks,
        tokens_per_second=tokens_per_second,
        bytes_per_token=bytes_per_token,
    )
    if html is not None:
        views, pieces, why_none = _packs(dataset, replay)
        text = page(made, views, pieces, why_none)
        with file_errors("--html", html):
            html.write_text(text, "utf-8", "backslashreplace")
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


def _packs(dataset: PackedDataset, replay: Replay) -> tuple[list[View], Pieces, str]:
    """The next packs of the run, and why there are no more."""
    pieces, views = Pieces(dataset.pipeline.tokenizer), list[View]()
    shown = validation_views_of if dataset.is_validation else views_of
    try:
        views.extend(shown(replay, pieces, Chosen(num=_SHOWN_PACKS, first=replay.begin)))
    except StreampackError as error:
        return views, pieces, str(error)
    return views, pieces, ""


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


