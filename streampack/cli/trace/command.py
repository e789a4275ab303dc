"""`streampack trace`: which documents are in a pack or a batch of a run, and where they are stored.

In:  a config, a global pack or a batch, perhaps a state before it. Out: the packs' documents on stdout, as tables, as
JSON, or as lines for `Stage(exclude=...)`.
Invariants: nothing but the lanes of these packs is read, from the state on, one lane after the other.
"""

from collections.abc import Sequence
from json import dumps
from typing import Annotated

import msgspec
import typer

from streampack.cli.arguments import GlobalBatch, Json, State, is_config, make_dataset
from streampack.cli.console import output, plural, print_json
from streampack.cli.peek.pieces import Pieces
from streampack.cli.progress import PackProgress
from streampack.cli.replay import Replay
from streampack.cli.trace.drawing import draw
from streampack.cli.trace.found import Place, TracedPack, TracedSegment, traced
from streampack.errors import ConfigError


def trace(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="The run's config file (.yaml).", show_default=False)],
    *,
    pack: Annotated[int | None, typer.Option(min=0, help="A global pack.", show_default=False)] = None,
    step: Annotated[
        int | None,
        typer.Option(min=0, help="A batch of the run, counted from 0, in place of a pack.", show_default=False),
    ] = None,
    global_batch: GlobalBatch = None,
    row: Annotated[
        int | None, typer.Option(min=0, help="With --step: one pack of the global batch.", show_default="all")
    ] = None,
    state: State = None,
    text: Annotated[bool, typer.Option("--text", help="Show the text of the rows, too.")] = False,
    exclude_lines: Annotated[
        bool, typer.Option("--exclude-lines", help="Print a line for each document, for a stage's `exclude` file.")
    ] = False,
    json: Json = False,
) -> None:
    """Show which documents are in a pack or a batch of a run, and where they are stored."""
    if not is_config([config]):
        raise ConfigError(f"CONFIG={config} must be the run's config file, .yaml or .yml")
    dataset = make_dataset([config])
    if dataset.is_validation:
        raise ConfigError(
            "trace follows a training run, and this config reads what is held out (HoldOut with part='val'): give the "
            "config of the training"
        )
    replay = Replay.of(dataset, state)
    places = _places(replay, pack=pack, step=step, global_batch=global_batch, row=row)
    pieces = Pieces(dataset.pipeline.tokenizer) if text else None
    found = _traced(replay, places, pieces)
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


def _places(
    replay: Replay, *, pack: int | None, step: int | None, global_batch: int | None, row: int | None
) -> list[Place]:
    """The packs that are asked for, which the run has and the replay can make."""
    if (pack is None) == (step is None):
        raise ConfigError("give one of --pack and --step: which pack, or which batch of the run")
    if pack is not None:
        if row is not None or global_batch is not None:
            raise ConfigError("--row and --global-batch go with --step, and this is --pack: leave them out")
        found = [Place(global_pack=pack)]
    else:
        assert step is not None, "one of the two is given"
        numbers = replay.batch(step, global_batch)
        if row is not None and row >= len(numbers):
            raise ConfigError(f"--row {row}: the batch of step {step:,} has {plural(len(numbers), 'pack')}, from 0 on")
        rows = range(len(numbers)) if row is None else [row]
        found = [Place(global_pack=numbers[each], step=step, row=each) for each in rows]
    for place in found:
        replay.check(place.global_pack)
    return found


def _traced(replay: Replay, places: Sequence[Place], pieces: Pieces | None) -> list[TracedPack]:
    """The packs, in order; the lanes that have them are made one after the other."""
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
                found[place.global_pack] = traced(replay.run, place, made, pieces)
    return [found[place.global_pack] for place in places]


def _exclude_line(replay: Replay, segment: TracedSegment) -> str:
    """The line that leaves out the record which a segment is of."""
    [source] = [each for each in replay.run.sources if each.name == segment.source]
    line: dict[str, str | int] = {"source": segment.source, "shard": segment.shard, "key": segment.key}
    if source.pipelines[0].documents.field.holds_many:
        line["record"] = segment.record
    return dumps(line)
