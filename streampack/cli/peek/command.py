"""`streampack peek`: what is in the packs of a run, row by row.

In:  the command line. Out: packs on stdout, or JSON.
Invariants: the packs are those of the run, made by its own lanes, without sources or stages those of its first epoch;
with L lanes, global pack i is pack i // L of lane i % L.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
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
    Json,
    OneSource,
    PadToken,
    Shards,
    Tokenizer,
    TrainOn,
    check_source,
    is_config,
    make_dataset,
)
from streampack.cli.console import output, plural, print_json
from streampack.cli.peek.drawing import draw, draw_legend
from streampack.cli.peek.pieces import Pieces
from streampack.cli.peek.view import View, make_view
from streampack.cli.replay import LaneReplay, Replay
from streampack.config.file import load_config
from streampack.errors import ConfigError
from streampack.lanes.position import LanePack
from streampack.lanes.run import Run
from streampack.packing.policies import BoundaryPolicy


def peek(
    shards: Shards,
    *,
    source: OneSource = None,
    tokenizer: Tokenizer = None,
    seq_len: Annotated[int | None, typer.Option(help="Tokens of a pack.", show_default="256")] = None,
    num: Annotated[int, typer.Option("--num", "-n", min=1, help="How many packs to show.")] = 2,
    skip: Annotated[int, typer.Option(min=0, help="Packs to leave out first.")] = 0,
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
    dataset = make_dataset(
        shards,
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
        epochs=None if _has_own_course(shards) else 1,
    )
    replay, pipeline = Replay.of(dataset), dataset.pipeline
    if source is not None:
        check_source(source, dataset.sources)
    pieces = Pieces(pipeline.tokenizer)
    found = _packs(replay, source=source, lane=lane, skip=skip, num=num)
    views = (_view(replay.run, pieces, *each) for each in found)
    if json:
        heading = {
            "num_lanes": dataset.num_lanes,
            "seq_len": pipeline.seq_len,
            "boundary": dataset.fingerprint()["boundary"],
            "packing": str(pipeline.packing.kind),
        }
        print_json(heading | {"packs": [msgspec.to_builtins(view) for view in views]})
        return
    console = output()
    for view in views:
        draw(console, view, pieces)
    draw_legend(console, pieces)


def _view(run: Run, pieces: Pieces, number: int, pack: LanePack) -> View:
    source, stage = run.sources[pack.source], run.schedule.index_of(number)
    return make_view(source.pipelines[stage], pieces, number, run.num_lanes, pack, source=source.name)


def _packs(
    replay: Replay, *, source: str | None, lane: int | None, skip: int, num: int
) -> Iterator[tuple[int, LanePack]]:
    """`num` packs with their global numbers; only the lanes that these belong to are read."""
    run = replay.run
    num_lanes, end = run.num_lanes, run.schedule.end
    if lane is not None and lane >= num_lanes:
        raise ConfigError(f"--lane {lane}: there are {num_lanes} lanes, 0 to {num_lanes - 1}")
    lanes: dict[int, LaneReplay] = {}
    shown = 0
    for number in itertools.count(skip) if lane is None else itertools.count(lane + skip * num_lanes, num_lanes):
        if end is not None and number >= end:
            break
        at = number % num_lanes
        if at not in lanes:
            lanes[at] = replay.lane(at)
        pack = lanes[at].take(number // num_lanes)
        if isinstance(pack, LanePack) and source in (None, run.sources[pack.source].name):
            yield number, pack
            shown += 1
        if shown == num or sum(each.is_over for each in lanes.values()) == (num_lanes if lane is None else 1):
            break
    if not shown:
        which = plural(num_lanes, "lane") if lane is None else f"lane {lane}"
        if source is not None:
            raise ConfigError(f"no pack of source {source} to show on {which}, and --skip is {skip:,}")
        has = "an epoch has" if end is None else f"the run has {end:,} packs, and there are"
        made = sum(each.made for each in lanes.values())
        raise ConfigError(f"no pack to show: {has} {plural(made, 'pack')} on {which}, and --skip is {skip:,}")


def _has_own_course(shards: Sequence[str]) -> bool:
    """Whether a config has sources, stages or a budget, with which there is no `epochs`."""
    if not is_config(shards):
        return False
    given = load_config(shards[0]).dataset_arguments()
    return isinstance(given["data"], Mapping) or not given.keys().isdisjoint({"stages", "num_tokens", "num_packs"})
