"""All lanes of one worker inside one memory budget.

In:    the position of each lane; the number of a lane whose pack is wanted.
Out:   that lane's next pack.
Never: more memory than the budget because there are many lanes; it may be exceeded by one document, the one that is
       being tokenized, as a document is tokenized whole.

Lanes take turns, so the lane that has just given a pack is the one that is needed last: when the lanes together hold
more than the budget, that one is **parked**. It makes as many packs as its share of the budget holds, then drops its
range of the shard and its tokens; it wakes at its position after the last of these packs once they are used up. A
long document is thus tokenized once for many packs, never once for each. A lane inside a compressed shard is not
parked: it would have to decompress the shard from its start to wake. Nor is one with windows, of the shuffle or of the
packing, which would have to read or tokenize its window again: what they take is known before, and the budget must have
it.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from streampack.corpus.epochs import Corpus
from streampack.lanes.budget import MIN_SHARE_BYTES, check_budget, window_bytes
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.position import LaneEnd, LanePack, LanePosition
from streampack.lanes.stream import LaneStream

MAX_RANGE_BYTES = 8 * 2**20
_PACK_OBJECTS_BYTES = 1024
"""What a pack takes besides its tokens, with a few segments."""


@dataclass(slots=True)
class _Lane:
    position: LanePosition
    """Where its stream begins."""
    stream: LaneStream | None = None
    made: deque[LanePack | LaneEnd | Exception] = field(default_factory=deque)
    """Packs that were made and not taken; the last item may be the lane's end, or what was raised in a pack's place."""
    held_bytes: int = 0


class LanePool:
    """Packs of any of the given lanes, each lane in its own order."""

    def __init__(
        self,
        pipeline: Pipeline,
        corpus: Corpus,
        positions: Mapping[int, LanePosition],
        *,
        budget_bytes: int,
        end_epoch: int | None,
        with_provenance: bool = False,
    ) -> None:
        windows = window_bytes(pipeline, corpus)
        check_budget(budget_bytes=budget_bytes, num_lanes=len(positions), windows=windows)
        self._window_bytes = sum(windows)
        self._pipeline = pipeline
        self._corpus = corpus
        self._budget_bytes = budget_bytes
        self._share_bytes = budget_bytes // max(len(positions), 1)
        self._end_epoch = end_epoch
        self._with_provenance = with_provenance
        self._lanes = {lane: _Lane(position) for lane, position in positions.items()}
        self._held_bytes = 0
        self._served: dict[int, None] = {}
        """Lanes that are awake; the lane served last is at the end."""

    def take(self, lane: int) -> LanePack | LaneEnd:
        """The lane's next pack, or in a finite run its end (every time from there on).

        What another lane raises while it is being parked is raised when that lane is taken.
        """
        state = self._lanes[lane]
        if not state.made:
            stream = self._awake(lane, state)
            if stream.has_pack:  # the stream holds no more memory after giving it
                return stream.next()
            state.made.append(stream.next())
            self._weigh(state)
            if self._held_bytes > self._budget_bytes and not self._corpus.window:
                self._make_room()
        first = state.made[0]
        if isinstance(first, Exception):
            raise first
        if not isinstance(first, LaneEnd):
            state.made.popleft()
        return first

    @property
    def parked(self) -> int:
        """How many lanes are parked."""
        return sum(state.stream is None for state in self._lanes.values())

    def _awake(self, lane: int, state: _Lane) -> LaneStream:
        self._served.pop(lane, None)
        self._served[lane] = None
        if state.stream is None:
            state.stream = LaneStream(
                self._pipeline,
                self._corpus,
                lane,
                state.position,
                end_epoch=self._end_epoch,
                max_range_bytes=max(
                    min((self._share_bytes - self._window_bytes) // 2, MAX_RANGE_BYTES), MIN_SHARE_BYTES // 2
                ),
                with_provenance=self._with_provenance,
            )
        return state.stream

    def _make_room(self) -> None:
        """Park lanes, those first that will be needed last, until the rest fits the budget."""
        for lane in reversed(tuple(self._served)):
            if self._held_bytes <= self._budget_bytes:
                return
            state = self._lanes[lane]
            if state.stream is not None and not state.stream.replays:
                self._park(state)
            if state.stream is None:
                del self._served[lane]

    def _weigh(self, state: _Lane) -> None:
        held = 0 if state.stream is None else state.stream.buffered_bytes
        for pack in state.made:
            held += _pack_bytes(pack)
        self._held_bytes += held - state.held_bytes
        state.held_bytes = held

    def _park(self, state: _Lane) -> None:
        stream = state.stream
        assert stream is not None, "only a lane that is awake is parked"
        made_bytes = sum(_pack_bytes(pack) for pack in state.made)
        while (made_bytes < self._share_bytes or stream.has_pack) and not _is_over(state.made):
            try:
                state.made.append(stream.next())
            except Exception as error:  # noqa: BLE001 - raised when its turn comes
                state.made.append(error)
            made_bytes += _pack_bytes(state.made[-1])
        if not _is_over(state.made):
            state.position = stream.position
            stream.close()
            state.stream = None
        self._weigh(state)


def _is_over(made: Sequence[LanePack | LaneEnd | Exception]) -> bool:
    return bool(made) and not isinstance(made[-1], LanePack)


def _pack_bytes(pack: LanePack | LaneEnd | Exception) -> int:
    return pack.rows.tokens.nbytes + _PACK_OBJECTS_BYTES if isinstance(pack, LanePack) else 0
