"""`streampack peek`: what is in the packs of a run, row by row.

In:  the command line. Out: packs on stdout, or JSON.
Invariants: the packs are those of the run, made by its own lanes, without sources or stages those of its first epoch;
with L lanes, global pack i is pack i // L of lane i % L.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
import typer

from streampack.cli.arguments import (
    AddBos,
    AddEos,
    BosToken,
    Chat,
    EosToken,
    Field,
    GlobalBatch,
    HeldOutPart,
    Json,
    OneSource,
    PadToken,
    Shards,
    State,
    Tokenizer,
    TrainOn,
    check_source,
    is_config,
    make_dataset,
)
from streampack.cli.console import output, print_json
from streampack.cli.peek.choosing import Chosen, validation_views_of, views_of
from streampack.cli.peek.drawing import draw, draw_legend
from streampack.cli.peek.marks import Looking
from streampack.cli.peek.pieces import Pieces
from streampack.cli.replay import Replay
from streampack.config.file import load_config
from streampack.errors import ConfigError
from streampack.packing.policies import BoundaryPolicy


def peek(
    shards: Shards,
    *,
    source: OneSource = None,
    tokenizer: Tokenizer = None,
    seq_len: Annotated[int | None, typer.Option(help="Tokens of a pack.", show_default="256")] = None,
    num: Annotated[int, typer.Option("--num", "-n", min=1, help="How many packs to show.")] = 2,
    skip: Annotated[int, typer.Option(min=0, help="Packs to leave out first.")] = 0,
    step: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Begin with this batch of the run, counted from 0, if all have --global-batch packs.",
            show_default="the first one",
        ),
    ] = None,
    global_batch: GlobalBatch = None,
    state: State = None,
    part: HeldOutPart = None,
    view: Annotated[
        Looking,
        typer.Option(help="What is marked: rows, those that are masked; or targets, the tokens that are trained."),
    ] = Looking.ROWS,
    lane: Annotated[
        int | None, typer.Option(min=0, help="Show packs of this lane only.", show_default="all, in the global order")
    ] = None,
    num_lanes: Annotated[
        int | None, typer.Option(min=1, help="Number of lanes of the run.", show_default="auto")
    ] = None,
    field: Field = None,
    chat: Chat = None,
    train_on: TrainOn = None,
    boundary: Annotated[
        str | None,
        typer.Option(
            help="What the last row of a document is trained on: mask, keep, trim, mask_bos_target, mask_eos_input or "
            "replace:ID.",
            show_default=BoundaryPolicy.MASK,
        ),
    ] = None,
    packing: Annotated[
        str | None, typer.Option(help="wrap, next_fit or best_fit.", show_default="wrap; next_fit for conversations")
    ] = None,
    bos: AddBos = None,
    eos: AddEos = None,
    bos_token: BosToken = None,
    eos_token: EosToken = None,
    pad_token: PadToken = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the order.", show_default="0")] = None,
    shuffle: Annotated[
        bool | None,
        typer.Option("--shuffle/--listed", help="Documents in shuffled or in listed order.", show_default="shuffle"),
    ] = None,
    json: Json = False,
) -> None:
    """Show packs: their text, where documents meet, and which labels are masked."""
    is_of_run = step is not None or state is not None
    dataset = make_dataset(
        shards,
        part=part,
        tokenizer=tokenizer,
        seq_len=256 if seq_len is None and not is_config(shards) else seq_len,
        field=field,
        chat=chat,
        train_on=train_on,
        boundary=boundary,
        packing=packing,
        add_bos=bos,
        add_eos=eos,
        bos_token=bos_token,
        eos_token=eos_token,
        pad_token=pad_token,
        num_lanes=num_lanes,
        seed=seed,
        shuffle=shuffle,
        epochs=None if is_of_run or _has_own_course(shards) else 1,
    )
    if dataset.is_validation and (is_of_run or global_batch is not None):
        raise ConfigError(
            "--step, --global-batch and --state follow a training run, and this is what is held out: leave them out"
        )
    replay, pipeline = Replay.of(dataset, state), dataset.pipeline
    first = replay.begin if step is None else replay.batch(step, global_batch).start
    if step is not None:
        replay.check(first)
    elif global_batch is not None:
        raise ConfigError("--global-batch is for --step: give both, or neither")
    if source is not None:
        check_source(source, dataset.sources)
    pieces = Pieces(pipeline.tokenizer)
    chosen = Chosen(num=num, first=first, skip=skip, lane=lane, source=source)
    views = (validation_views_of if dataset.is_validation else views_of)(replay, pieces, chosen)
    if json:
        heading = {
            "num_lanes": replay.run.num_lanes,
            "seq_len": pipeline.seq_len,
            "boundary": dataset.fingerprint()["boundary"],
            "packing": str(pipeline.packing.kind),
        }
        print_json(heading | {"packs": [msgspec.to_builtins(each) for each in views]})
        return
    console = output()
    roles = set[str]()
    for each in views:
        draw(console, each, pieces, view)
        roles |= set(each.roles or ())
    draw_legend(console, pieces, view, roles)


def _has_own_course(shards: Sequence[str]) -> bool:
    """Whether a config has sources, stages or a budget, with which there is no `epochs`."""
    if not is_config(shards):
        return False
    given = load_config(shards[0]).dataset_arguments()
    return isinstance(given["data"], Mapping) or not given.keys().isdisjoint({"stages", "num_tokens", "num_packs"})
