"""Which packs are shown: some of a run, in their global order, or of one lane or source.

In:  the replay of a run, from its start or from a state on. Out: a `View` of each.
Invariants: the packs are those of the run, made by its own lanes; only the lanes that they belong to are read. With L
lanes, global pack i is pack i // L of lane i % L.
"""

import itertools
from collections.abc import Iterator

from streampack.cli.console import plural
from streampack.cli.peek.pieces import Pieces
from streampack.cli.peek.view import View, make_view
from streampack.cli.replay import LaneReplay, Replay
from streampack.errors import ConfigError
from streampack.lanes.position import LanePack


def views_of(
    replay: Replay, pieces: Pieces, *, source: str | None = None, lane: int | None = None, skip: int, num: int
) -> Iterator[View]:
    """`num` packs from global pack `skip` on; of one lane from its pack `skip` on."""
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
            of, stage = run.sources[pack.source], run.schedule.index_of(number)
            yield make_view(of.pipelines[stage], pieces, number, num_lanes, pack, source=of.name)
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
