"""`streampack trace`: which documents are in a pack or a batch of a run, and where they are stored.

In:  a config, a global pack or a batch, perhaps a state before it; or packs of a validation set.
Out: their documents on stdout, as tables, as JSON, or as lines for `Stage(exclude=...)`.
Invariants: of a run, nothing but the lanes of these packs is read, from the state on, one lane after the other.
"""

from collections.abc import Sequence
from json import dumps
from typing import Annotated

import msgspec
import typer

from streampack.cli.arguments import GlobalBatch, HeldOutPart, Json, State, check_config, make_dataset
from streampack.cli.console import output, plural, print_json
from streampack.cli.peek.pieces import Pieces
from streampack.cli.progress import PackProgress
from streampack.cli.replay import Replay
from streampack.cli.trace.drawing import draw
from streampack.cli.trace.found import Place, TracedPack, TracedSegment, traced
from streampack.cli.trace.held_out import traced_held_out
from streampack.errors import ConfigError


def trace(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="The run's config file (.yaml).", show_default=False)],
    *,
    pack: Annotated[
        int | None,
        typer.Option(
            min=0, help="A global pack; with --global-batch, the batch that begins with it.", show_default=False
        ),
    ] = None,
    step: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="In place of --pack: a batch of the run, counted from 0, if all have --global-batch packs.",
            show_default=False,
        ),
    ] = None,
    global_batch: GlobalBatch = None,
    row: Annotated[
        int | None, typer.Option(min=0, help="With --global-batch: one pack of the batch.", show_default="all")
    ] = None,
    state: State = None,
    part: HeldOutPart = None,
    text: Annotated[bool, typer.Option("--text", help="Show the text of the rows, too.")] = False,
    exclude_lines: Annotated[
        bool, typer.Option("--exclude-lines", help="Print a line for each document, for a stage's `exclude` file.")
    ] = False,
    json: Json = False,
) -> None:
    """Show which documents are in a pack or a batch of a run or a validation set, and where they are stored."""
    check_config(config, "trace")
    if exclude_lines and (json or text):
        raise ConfigError(
            "--exclude-lines prints nothing but its lines, without --json and --text: leave those out, or run twice"
        )
    dataset = make_dataset([config], part=part)
    if dataset.is_validation and state is not None:
        raise ConfigError(
            "--state is of a training run, and this is a validation set, of which each iteration begins at the "
            "beginning: leave --state out"
        )
    replay = Replay.of(dataset, state)
    pieces = Pieces(dataset.pipeline.tokenizer) if text else None
    if (pack is None) == (step is None):
        raise ConfigError("give one of --pack and --step: which pack, or which batch of the run")
    if row is not None and global_batch is None:
        raise ConfigError("--row needs --global-batch, with which --pack is the first pack of a batch")
    if dataset.is_validation:
        found = traced_held_out(dataset, pack=pack, global_batch=global_batch, row=row, pieces=pieces)
    else:
        found = _traced(replay, _places(replay, pack=pack, step=step, global_batch=global_batch, row=row), pieces)
    if exclude_lines:
        for line in dict.fromkeys(_exclude_line(replay, each) for of_pack in found for each in of_pack.segments):
            typer.echo(line)
    elif json:
        heading = {"num_lanes": replay.run.num_lanes, "state_global_pack": None if state is None else replay.begin}
        print_json(heading | {"packs": [msgspec.to_builtins(each) for each in found]})
    else:
        console = output()
        for each in found:
            draw(console, each)
        if step is not None:
            console.print(
                f"step {step:,} is counted from pack 0 on, in batches of {global_batch:,} packs; if the run had others "
                "before, give the first pack of the batch (--pack)",
                style="dim",
            )


def _places(
    replay: Replay, *, pack: int | None, step: int | None, global_batch: int | None, row: int | None
) -> list[Place]:
    """The packs that are asked for, which the run has and the replay can make."""
    if pack is not None and global_batch is None:
        found = [Place(global_pack=pack)]
    else:
        if pack is not None:
            assert global_batch is not None, "without one it is a single pack"
            numbers, which = replay.batch_from(pack, global_batch), f"from pack {pack:,} on"
        else:
            assert step is not None, "one of the two is given"
            numbers, which = replay.batch(step, global_batch), f"of step {step:,}"
        if row is not None and row >= len(numbers):
            raise ConfigError(f"--row {row}: the batch {which} has {plural(len(numbers), 'pack')}, rows count from 0")
        rows = range(len(numbers)) if row is None else [row]
        found = [Place(global_pack=numbers[each], step=step, row=each) for each in rows]
    for place in found:
        replay.check(place.global_pack)
    return found


def _traced(replay: Replay, places: Sequence[Place], pieces: Pieces | None) -> list[TracedPack]:
    """The packs, in order; the lanes that have them are made one after the other.

    Raises:
        ConfigError: all of them come after the ends of their lanes.
    """
    num_lanes = replay.run.num_lanes
    by_lane: dict[int, list[Place]] = {}
    for place in places:
        by_lane.setdefault(place.global_pack % num_lanes, []).append(place)
    lanes = {number: replay.lane(number) for number in by_lane}
    last = {number: of_lane[-1].global_pack // num_lanes for number, of_lane in by_lane.items()}
    found: dict[int, TracedPack] = {}
    with PackProgress("tracing", sum(last[number] + 1 - lane.made for number, lane in lanes.items())) as progress:
        for number, of_lane in by_lane.items():
            lane = lanes.pop(number)
            for place in of_lane:
                made = lane.take(place.global_pack // num_lanes, progress.advance)
                ended_after = lane.made if lane.is_over else None
                found[place.global_pack] = traced(replay.run, place, made, pieces, ended_after=ended_after)
    ends = [each.lane_ended_after for each in found.values()]
    if None not in ends:
        begin, end = places[0].global_pack, places[-1].global_pack
        which = f"pack {begin:,} comes after the end of its lane"
        if begin != end:
            which = f"packs {begin:,} to {end:,} come after the ends of their lanes"
        ended = found[begin]
        raise ConfigError(
            f"{which}: lane {ended.lane} has no more than {ended.lane_ended_after:,} packs. A run with epochs or "
            "max_epochs ends where its sources do: ask for a pack before that"
        )
    return [found[place.global_pack] for place in places]


def _exclude_line(replay: Replay, segment: TracedSegment) -> str:
    """The line that leaves out the record which a segment is of."""
    [source] = [each for each in replay.run.sources if each.name == segment.source]
    line: dict[str, str | int] = {"source": segment.source, "shard": segment.shard, "key": segment.key}
    if source.pipelines[0].documents.field.holds_many:
        line["record"] = segment.record
    return dumps(line)
