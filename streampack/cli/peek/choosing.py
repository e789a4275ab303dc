"""Which packs are shown: some of a run, in their global order, or of one lane or source; or of a validation set.

In:  the replay of a run, from its start or from a state on. Out: a `View` of each.
Invariants: the packs are those of the run, made by its own lanes; only the lanes that they belong to are read. With L
lanes, global pack i is pack i // L of lane i % L. The packs of a validation set come lane by lane, source by source.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from streampack.cli.console import plural
from streampack.cli.peek.pieces import Pieces
from streampack.cli.peek.roles import Roles
from streampack.cli.peek.view import View, make_view
from streampack.cli.replay import LaneReplay, Replay
from streampack.errors import ConfigError
from streampack.lanes.position import LanePack
from streampack.loader.counting import active_sources, validation_run
from streampack.loader.stretches import only


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What is asked for."""

    num: int
    first: int = 0
    """The global pack to begin with, before any is skipped."""
    skip: int = 0
    """Packs to leave out: of the lane, or of all."""
    lane: int | None = None
    source: str | None = None


def views_of(replay: Replay, pieces: Pieces, chosen: Chosen) -> Iterator[View]:
    """The packs of a run."""
    num_lanes, end, lane = replay.run.num_lanes, replay.run.schedule.end, chosen.lane
    if lane is not None and lane >= num_lanes:
        raise ConfigError(f"--lane {lane}: there are {num_lanes} lanes, 0 to {num_lanes - 1}")
    roles = Roles()
    replay = replace(replay, run=roles.watching(replay.run))
    lanes: dict[int, LaneReplay] = {}
    first, step = chosen.first + chosen.skip, 1
    if lane is not None:
        first, step = chosen.first + (lane - chosen.first) % num_lanes + chosen.skip * num_lanes, num_lanes
    shown = 0
    for number in itertools.count(first, step):
        if end is not None and number >= end:
            break
        at = number % num_lanes
        if at not in lanes:
            lanes[at] = replay.lane(at)
        pack = lanes[at].take(number // num_lanes)
        if isinstance(pack, LanePack) and chosen.source in (None, replay.run.sources[pack.source].name):
            yield _view(replay, pieces, roles, number, pack)
            shown += 1
        if shown == chosen.num or sum(each.is_over for each in lanes.values()) == (num_lanes if lane is None else 1):
            break
    if not shown:
        which = plural(num_lanes, "lane") if lane is None else f"lane {lane}"
        if chosen.source is not None:
            raise ConfigError(f"no pack of source {chosen.source} to show on {which}, and --skip is {chosen.skip:,}")
        has = "an epoch has" if end is None else f"the run has {end:,} packs, and there are"
        made = sum(each.made for each in lanes.values())
        raise ConfigError(f"no pack to show: {has} {plural(made, 'pack')} on {which}, and --skip is {chosen.skip:,}")


def validation_views_of(replay: Replay, pieces: Pieces, chosen: Chosen) -> Iterator[View]:
    """The packs of a validation set, numbered as an iteration without a budget gives them."""
    roles = Roles()
    run = validation_run(roles.watching(replay.run))
    number = shown = 0
    for index in active_sources(run):
        source = run.sources[index]
        if chosen.source not in (None, source.name):
            continue
        alone = replace(replay, run=only(run, index))
        for lane in range(source.corpus.num_lanes):
            of_lane = alone.lane(lane)
            for lane_pack in itertools.count():
                pack = of_lane.take(lane_pack)
                if not isinstance(pack, LanePack):
                    break
                if number >= chosen.skip and chosen.lane in (None, lane):
                    found = _view(alone, pieces, roles, number, pack)
                    yield replace(found, lane=lane, lane_pack=lane_pack)
                    shown += 1
                number += 1
                if shown == chosen.num:
                    return
    if not shown:
        has = f"the validation set has {plural(number, 'pack')}"
        raise ConfigError(f"no pack to show: {has} on what was asked for, and --skip is {chosen.skip:,}")


def _view(replay: Replay, pieces: Pieces, roles: Roles, number: int, pack: LanePack) -> View:
    source, stage = replay.run.sources[pack.source], replay.run.schedule.index_of(number)
    pipeline = source.pipelines[stage]
    view = make_view(pipeline, pieces, number, replay.run.num_lanes, pack, source=source.name)
    if pipeline.documents.chat is None:
        return view
    found = [""] * len(view.tokens)
    for segment in view.segments:
        rows = slice(segment.first_row, segment.first_row + segment.num_rows)
        found[rows] = roles.of(view.tokens[rows], segment.document_row) or found[rows]
    return replace(view, roles=found)
