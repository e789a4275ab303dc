"""Which bytes come when: what each lane reads in every epoch.

In:    the table of shards, the number of lanes, the seed and how it is shuffled.
Out:   the pieces that a lane reads in an epoch.
Never: a choice that depends on what is in the shards, or on ranks, workers or batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from streampack.corpus.blocks import BlockLine
from streampack.corpus.leftovers import Leftover, Leftovers, LeftoversOfLanes
from streampack.corpus.options import Order, Shuffle
from streampack.corpus.partition import EpochLine, Piece, lane_share, shard_order
from streampack.corpus.sections import Section, with_ends_of_windows
from streampack.corpus.spans import Spans
from streampack.corpus.table import ShardTable
from streampack.documents.split import HoldOut
from streampack.records import Cursor

_KEPT_EPOCHS = 4
_SAMPLE = Leftover._fields.index("sample")
MOST_TEXT = 1.25
"""Bytes of records, with what they take besides in memory, that end a window before its group of blocks does; in times
the bytes of those blocks."""
_EXPANSION = 1.6
"""Times as many where shards are read whole, or members are compressed: their blocks hold more text than bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The shards of a run and how they are divided."""

    table: ShardTable
    num_lanes: int
    seed: int
    shuffle: Order
    one_epoch: bool = False
    """Every epoch has the order of the first one: for validation."""
    hold_out: HoldOut | None = None
    """Which part of the corpus is read, where cells of the shards are held out; None: all shards."""
    left: LeftoversOfLanes | None = None
    """What the lanes that the run had before have left, in a run with another number of lanes."""
    _lines: dict[int, EpochLine] = field(default_factory=dict, init=False, compare=False, repr=False)
    _blocks: list[BlockLine] = field(default_factory=list, init=False, compare=False, repr=False)
    _of_lanes: dict[int, "Corpus"] = field(default_factory=dict, init=False, compare=False, repr=False)
    """`of_lanes`, by the number of lanes."""

    @property
    def window(self) -> int:
        """Blocks whose records are permuted together; 0: the pieces are no blocks, and no record is moved."""
        return self.shuffle.window if isinstance(self.shuffle, Shuffle) else 0

    @property
    def block_bytes(self) -> int:
        """Bytes of a block; 0: the pieces are no blocks."""
        if not isinstance(self.shuffle, Shuffle):
            return 0
        return self.shuffle.block_bytes_of(self.total_bytes, self.num_lanes)

    @property
    def unit(self) -> int:
        """Bytes of one step of the offsets of a `Section`: as many as a block has on average, or one."""
        return max(self.total_bytes // max(self.num_offsets, 1), 1)

    @property
    def num_offsets(self) -> int:
        """How many offsets an epoch has."""
        return self.num_blocks or self.total_bytes

    @property
    def spans(self) -> Spans | None:
        """The parts of the shards that are read; None: all shards. A `ConfigError` where there are none."""
        return None if self.hold_out is None else Spans.of(self.table, self.hold_out)

    @property
    def parts(self) -> Spans:
        """What is read of the shards, in listed order: parts of them where cells are held out, else all of each."""
        return self.spans or Spans.all(self.table)

    def check_not_empty(self) -> None:
        """Raise a `ConfigError` where all that could be read is held out."""
        _ = self.spans

    @property
    def total_bytes(self) -> int:
        """Bytes that an epoch reads."""
        spans = self.spans
        return self.table.total_bytes if spans is None else spans.total_bytes

    def window_bytes(self, *, members_expand: bool) -> int:
        """Bytes of records that end a window. Only the last record of a window may bring it above them.

        `members_expand`: members may be compressed.
        """
        expansion = _EXPANSION if members_expand or self.table.whole.any() else 1
        return int(MOST_TEXT * expansion * self.window * self.block_bytes)

    @property
    def num_blocks(self) -> int | None:
        """How many blocks an epoch has; None: the pieces are no blocks."""
        return self._block_line.num_blocks if self.window else None

    def order_as_json(self) -> dict[str, int] | str | bool:
        """All that decides the order of the pieces besides shards, lanes and seed, as a fingerprint has it."""
        if isinstance(self.shuffle, Shuffle):
            return {"block_bytes": self.block_bytes, "window": self.window}
        return self.shuffle

    def pieces(self, epoch: int, lane: int) -> Sequence[Piece]:
        """What the lane reads in an epoch, in order; blocks are computed as they are asked for."""
        sections = self.sections(epoch, lane)
        return sections[0].pieces if len(sections) == 1 else [piece for each in sections for piece in each.pieces]

    def num_pieces(self, epoch: int, lane: int) -> int:
        """How many pieces the lane reads in an epoch."""
        return sum(len(each.pieces) for each in self.sections(epoch, lane))

    def is_left(self, epoch: int) -> bool:
        """Whether the lanes read as this epoch what other lanes have left of it and of the epochs before it."""
        return self.left is not None and epoch <= self.left.epoch

    def sections(self, epoch: int, lane: int) -> list[Section]:
        """What the lane reads in an epoch: its share; or what it has of the leftovers, which come as one epoch."""
        if self.left is None or epoch > self.left.epoch:
            return [self.section(epoch, lane, Cursor(epoch))]
        found: list[Section] = []
        base = 0
        for number, each in self.left.of_lane(lane) if epoch == self.left.epoch else ():
            cut = self.of_lanes(each.num_lanes)
            part = cut.section(each.epoch, each.lane, Cursor(epoch, base, *each[_SAMPLE:]), (each.begin, each.stop))
            if part.pieces:
                found.append(replace(part, head=each.head, number=number, joins=bool(each.joins)))
                base = part.end
        return with_ends_of_windows(found)

    def section(self, epoch: int, lane: int, begin: Cursor, part: tuple[int, int] | None = None) -> Section:
        """A lane's share of an epoch, or the `part` of it between two offsets."""
        order = self.order_epoch(epoch)
        pieces: Sequence[Piece]
        offsets: Sequence[int]
        if self.window:
            within = slice(None) if part is None else slice(*part)
            pieces = self._block_line.pieces(lane, self.num_lanes, seed=self.seed, epoch=order, within=within)
            first = within.start or 0
            offsets, stop = range(first, first + len(pieces)), first + len(pieces)
        else:
            line = self._line(order)
            bounds = lane_share(lane, self.num_lanes, line.total_bytes) if part is None else part
            found, stop = line.between(*bounds), bounds[1]
            offsets, pieces = [offset for offset, _ in found], [piece for _, piece in found]
            pieces = pieces if self.spans is None else self.spans.placed(pieces)
        return Section(
            num_lanes=self.num_lanes,
            lane=lane,
            window=self.window,
            epoch=epoch,
            pieces=pieces,
            offsets=offsets,
            stop=stop,
            begin=begin,
        )

    def with_left(self, left: Leftovers, lanes: Sequence[int]) -> "Corpus":
        """The same, where these lanes read what earlier lanes had left."""
        dealt = left.dealt(
            lanes, self.num_lanes, window=self.window, unit=lambda number: self.of_lanes(number).unit
        )
        return replace(self, left=dealt)

    def of_lanes(self, num_lanes: int) -> "Corpus":
        """The same shards in another number of lanes."""
        if num_lanes == self.num_lanes:
            return self
        if num_lanes not in self._of_lanes:
            self._of_lanes[num_lanes] = replace(self, num_lanes=num_lanes, left=None)
        return self._of_lanes[num_lanes]

    @property
    def cuts(self) -> list["Corpus"]:
        """The corpora by which what the lanes read is cut: this one, and those of leftovers."""
        return [self, *(self.of_lanes(number) for number in (() if self.left is None else self.left.num_lanes))]

    def _line(self, epoch: int) -> EpochLine:
        if epoch not in self._lines:
            if len(self._lines) >= _KEPT_EPOCHS:  # the lanes of one worker are in neighbouring epochs
                self._lines.pop(next(iter(self._lines)))
            shuffle = bool(self.shuffle)
            order = shard_order(seed=self.seed, epoch=epoch, num_shards=len(self.table), shuffle=shuffle)
            spans = self.spans
            self._lines[epoch] = (
                EpochLine(self.table.sizes, self.table.whole, order)
                if spans is None
                else EpochLine(spans.sizes, spans.whole, spans.in_order(order))
            )
        return self._lines[epoch]

    @property
    def _block_line(self) -> BlockLine:
        if not self._blocks:
            of = self.spans or self.table
            self._blocks.append(BlockLine(of.sizes, of.whole, self.block_bytes, self.spans))
        return self._blocks[0]

    def order_epoch(self, epoch: int) -> int:
        """The epoch whose order `epoch` has; it also seeds the `rng` of transforms."""
        return 0 if self.one_epoch else epoch
