"""All lanes of one worker inside one memory budget, each of them a stream for each source.

In:    where each lane continues; the number of a lane whose pack is wanted.
Out:   that lane's next pack, of the source whose turn it is.
Never: more memory than the budget because there are many lanes or sources; it may be exceeded by one document, the one
       that is being tokenized, as a document is tokenized whole. A source for a lane's pack that depends on anything
       but the lane, its number of packs and which of its sources are exhausted.

    lane 3     packs    0    1    2    3    4    5    6         the stage's shares say which source has pack k of a lane
               web      a0   a1        a2        a3   a4          each source goes on where it was in the lane
               code               b0        b1                  its last epoch ends: from here on all packs are web's

Streams take turns, so the one that has just given a pack is the one that is needed last: when the streams together hold
more than the budget, that one is **parked**. It makes as many packs as its share of the budget holds, then drops its
range of the shard and its tokens; it wakes at its position after the last of these packs once they are used up. A
long document is thus tokenized once for many packs, never once for each. A stream inside a compressed shard is not
parked: it would have to decompress the shard from its start to wake. Nor is one with windows, of the shuffle or of the
packing, which would have to read or tokenize its window again: what they take is known before, and the budget must have
it. A source without weight in the present stage holds nothing.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from streampack.corpus.partition import packs_before
from streampack.corpus.shares import Shares
from streampack.errors import ConfigError
from streampack.lanes.budget import MIN_SHARE_BYTES, STREAM_BYTES, LaneNeeds, check_budget
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.position import LaneEnd, LaneFiller, LanePack, LanePosition
from streampack.lanes.run import LaneStart, Run
from streampack.lanes.stream import LaneStream
from streampack.metrics import clock, heartbeat

MAX_RANGE_BYTES = 8 * 2**20
_PACK_OBJECTS_BYTES = 1024
"""What a pack takes besides its tokens, with a few segments."""
_NEVER = 2**63


@dataclass(slots=True, eq=False)
class _Source:
    """One source in one lane, cut in one way."""

    lane: int
    index: int
    pipeline: Pipeline
    wake: LanePosition
    """Where its stream begins."""
    stage: int = 0
    """The first stage in which the source is cut in this way."""
    stream: LaneStream | None = None
    made: deque[LanePack | LaneEnd | Exception] = field(default_factory=deque)
    """Packs that were made and not taken; the last item may be the source's end, or what was raised in a pack's
    place."""
    before_made: LanePosition | None = None
    """Where the first of `made` begins."""
    held_bytes: int = 0

    @property
    def position(self) -> LanePosition:
        """Where the lane continues in the source after the last pack that was taken."""
        if self.made:
            assert self.before_made is not None, "what was made was made from somewhere"
            return self.before_made
        return self.wake if self.stream is None else self.stream.position

    @property
    def is_over(self) -> bool:
        """Whether nothing can be made after what was made."""
        return bool(self.made) and not isinstance(self.made[-1], LanePack)

    def make(self) -> None:
        """Make one more."""
        assert self.stream is not None, "only a stream that is awake makes packs"
        if not self.made:
            self.before_made = self.stream.position
        self.made.append(self.stream.next())

    def take_made(self) -> LanePack | LaneEnd:
        """The first of what was made; an end and an error stay."""
        first = self.made[0]
        if isinstance(first, Exception):
            raise first
        if isinstance(first, LanePack):
            self.made.popleft()
            if self.made:
                assert self.before_made is not None, "what was made was made from somewhere"
                self.before_made = self.before_made.after(first)
        return first


@dataclass(slots=True)
class _Lane:
    """A lane in the stage that it is in."""

    packs: int
    """How many it has given."""
    positions: list[LanePosition]
    """Where it continues in each source that is not in `open`."""
    exhausted: set[int]
    """Sources that have no more packs: the lane is at their end, or nothing came after where it was."""
    open: dict[int, _Source] = field(default_factory=dict)
    first: int = 0
    """The number of packs with which the stage begins."""
    until: int = -1
    """That with which the next one begins."""
    shares: Shares | None = None
    """Of the sources that are not exhausted; None: there is none."""
    untold: tuple[LaneEnd, ...] = ()
    """Ends that were found and are given with what comes next."""


class LanePool:
    """Packs of any of the given lanes, each lane in its own order."""

    def __init__(
        self, run: Run, starts: Mapping[int, LaneStart], *, budget_bytes: int, with_provenance: bool = False
    ) -> None:
        needs = LaneNeeds.of(run)
        check_budget(budget_bytes=budget_bytes, num_lanes=len(starts), needs=needs)
        self._run = run
        self._budget_bytes = budget_bytes
        lane_bytes = budget_bytes // max(len(starts), 1)
        self._share_bytes = lane_bytes // needs.sources
        self._range_bytes = range_bytes(lane_bytes, needs)
        self._may_park = not any(source.corpus.window for source in run.sources)
        self._with_provenance = with_provenance
        self._end_epochs = [None if run.fails_exhausted else source.end_epoch for source in run.sources]
        self._lanes = {lane: self._begun(start) for lane, start in starts.items()}
        self._held_bytes = 0
        self._served: dict[_Source, None] = {}
        """Those that are awake; the one served last is at the end."""

    def take(self, lane: int) -> LanePack | LaneFiller:
        """The lane's next pack; `LaneFiller` in its place where no source has one, which counts as a pack of the lane.

        A lane is over where no stage that begins later in the run has a source for it; until then it waits.

        What another lane raises while it is being parked is raised when that lane is taken.

        Raises:
            ConfigError: a source is exhausted, and the run is to end then.
        """
        state = self._lanes[lane]
        if state.packs >= state.until:
            self._begin_stage(lane, state)
        while state.shares is not None:
            index = state.shares.source(lane, state.packs - state.first)
            pack = self._take(state.open.get(index) or self._opened(lane, state, index))
            if isinstance(pack, LanePack):
                state.packs += 1
                end_epoch = self._end_epochs[index]
                if end_epoch is not None and pack.cursor.epoch >= end_epoch:
                    self._exhaust(lane, state, index)
                if state.untold:
                    pack, state.untold = pack._replace(ends=state.untold), ()
                return pack
            if self._run.fails_exhausted:
                raise self._exhausted_error(lane, index)
            at_end = state.open[index].position.cursor.epoch == self._end_epochs[index]
            if pack.adds or not at_end:
                state.untold += (pack,)
            self._exhaust(lane, state, index)
        later = self._run.schedule.reached(lane + state.packs * self.num_lanes)[1:]
        waits = any(stage.shares.without(state.exhausted) for stage in later)
        state.packs += 1
        ends, state.untold = state.untold, ()
        return LaneFiller(ends, waits)

    @property
    def num_lanes(self) -> int:
        """Of the run."""
        return self._run.num_lanes

    @property
    def parked(self) -> int:
        """How many lanes that have begun and are not over hold no stream."""
        begun = (lane for lane in self._lanes.values() if lane.shares is not None)
        return sum(all(each.stream is None for each in lane.open.values()) for lane in begun)

    # -- which source ----------------------------------------------------------------------------------------------

    def _begun(self, start: LaneStart) -> _Lane:
        exhausted = {
            index
            for index, (end_epoch, position) in enumerate(zip(self._end_epochs, start.positions, strict=True))
            if end_epoch is not None and position.cursor.epoch >= end_epoch
        }
        return _Lane(start.packs, list(start.positions), exhausted)

    def _begin_stage(self, lane: int, state: _Lane) -> None:
        """Go to the stage of the lane's next pack; close what it does not read, or cuts in another way."""
        schedule, num_lanes = self._run.schedule, self._run.num_lanes
        number = schedule.index_of(lane + state.packs * num_lanes)
        stage, *after = schedule.stages[number : number + 2]
        state.first = packs_before(stage.first_pack, lane, num_lanes)
        state.until = packs_before(after[0].first_pack, lane, num_lanes) if after else _NEVER
        state.shares = stage.shares.without(state.exhausted) if state.exhausted else stage.shares
        active = set() if state.shares is None else {index for index, _ in state.shares.weights}
        for index, each in list(state.open.items()):
            if index not in active or each.pipeline is not self._run.sources[index].pipelines[number]:
                self._close(state, each)

    def _exhaust(self, lane: int, state: _Lane, index: int) -> None:
        """Go on without a source that has no more packs."""
        state.exhausted.add(index)
        self._close(state, state.open[index])
        state.shares = None if state.shares is None else state.shares.without(state.exhausted)

    def _exhausted_error(self, lane: int, index: int) -> ConfigError:
        source = self._run.sources[index]
        return ConfigError(
            f"source {source.name!r} has no more packs in lane {lane}: its max_epochs={source.end_epoch} is used up "
            'there, and exhausted="error" ends the run. A larger max_epochs may be given when the run is resumed; with '
            'exhausted="skip" the other sources share its part.'
        )

    # -- packs of one source in one lane ---------------------------------------------------------------------------

    def _opened(self, lane: int, state: _Lane, index: int) -> _Source:
        number = self._run.schedule.index_of(lane + state.packs * self._run.num_lanes)
        pipeline = self._run.sources[index].pipelines[number]
        state.open[index] = _Source(lane, index, pipeline, state.positions[index], self._first_stage(index, number))
        return state.open[index]

    def _first_stage(self, index: int, number: int) -> int:
        """The first stage that reads a source and cuts it as stage `number` does, with the same object."""
        pipelines, stages = self._run.sources[index].pipelines, self._run.schedule.stages
        return next(
            stage
            for stage, pipeline in enumerate(pipelines)
            if pipeline is pipelines[number] and index in dict(stages[stage].shares.weights)
        )

    def _close(self, state: _Lane, each: _Source) -> None:
        state.positions[each.index] = each.position
        del state.open[each.index]
        self._served.pop(each, None)
        self._held_bytes -= each.held_bytes
        if each.stream is not None:
            each.stream.close()

    def _take(self, each: _Source) -> LanePack | LaneEnd:
        if not each.made:
            stream = self._awake(each)
            if stream.has_pack:  # the stream holds no more memory after giving it
                return stream.next()
            self._begin_source(each)
            each.make()
            self._weigh(each)
            if self._held_bytes > self._budget_bytes and self._may_park:
                self._make_room()
        return each.take_made()

    @staticmethod
    def _begin_source(each: _Source) -> None:
        heartbeat.begin_source(each.index)
        clock.begin_source(each.index)

    def _awake(self, each: _Source) -> LaneStream:
        self._served.pop(each, None)
        self._served[each] = None
        if each.stream is None:
            source = self._run.sources[each.index]
            each.stream = LaneStream(
                each.pipeline,
                source.corpus,
                each.lane,
                each.wake,
                end_epoch=source.end_epoch,
                max_range_bytes=self._range_bytes,
                with_provenance=self._with_provenance,
                source=each.index,
                source_name=source.name,
                stage=each.stage,
                stages=source.pipelines,
            )
        return each.stream

    # -- memory ----------------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Park streams, those first that will be needed last, until the rest fits the budget."""
        for each in reversed(tuple(self._served)):
            if self._held_bytes <= self._budget_bytes:
                return
            if each.stream is not None and not each.stream.replays:
                self._park(each)
            if each.stream is None:
                del self._served[each]

    def _weigh(self, each: _Source) -> None:
        held = 0 if each.stream is None else each.stream.buffered_bytes
        for pack in each.made:
            held += _pack_bytes(pack)
        self._held_bytes += held - each.held_bytes
        each.held_bytes = held

    def _park(self, each: _Source) -> None:
        stream = each.stream
        assert stream is not None, "only a stream that is awake is parked"
        self._begin_source(each)
        made_bytes = sum(_pack_bytes(pack) for pack in each.made)
        while (made_bytes < self._share_bytes or stream.has_pack) and not each.is_over:
            try:
                each.make()
            except Exception as error:  # noqa: BLE001 - raised when its turn comes
                each.made.append(error)
            made_bytes += _pack_bytes(each.made[-1])
        if not each.is_over:
            each.wake = stream.position
            stream.close()
            each.stream = None
        self._weigh(each)


def range_bytes(lane_bytes: int, needs: LaneNeeds) -> int:
    """The largest range of a shard that a stream asks for at once, where a lane has so many bytes."""
    least, share = MIN_SHARE_BYTES - STREAM_BYTES, (lane_bytes - needs.windows) // needs.sources - STREAM_BYTES
    return min(max(share, least) // 2, MAX_RANGE_BYTES)


def _pack_bytes(pack: LanePack | LaneEnd | Exception) -> int:
    return pack.rows.tokens.nbytes + _PACK_OBJECTS_BYTES if isinstance(pack, LanePack) else 0
