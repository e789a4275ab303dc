"""The bytes of the pieces that a lane reads next: neighbours in one request, all requests at once.

In:    pieces, and where in each the reading begins.
Out:   for each of them what opens a range of its shard, served from memory as far as the bytes were asked for.
Never: a byte of a piece that is asked for twice, but where a shard breaks or a document is much larger than others.

    pieces       |-- 7 --|-- 8 --|             |-- 2 --|         of one shard
    asked for    |==================|          |==========|      a sample ends after the block in which it begins, and
                                  slack                slack     the headers of the next one tell where
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from streampack.corpus.partition import Piece
from streampack.metrics import clock
from streampack.records import Shard
from streampack.storage.access import StorageReader
from streampack.storage.stretch import Stretch
from streampack.tar.format import Part

_HEADERS_BYTES = 2048
"""After the last sample of a piece: the next one's prefix headers and header."""
_FIRST_SLACK = 32 * 2**10
_NUM_NEEDS = 64
_SHARE = 0.95
_MOST_BYTES = 16 * 2**20
"""The largest piece that is held in memory; one of a larger block is read in ranges that grow."""

Read = Callable[..., Iterator[bytes]]
"""`read(start, stop=None, *, first_bytes=...)`: the bytes of a shard in between."""


@dataclass(slots=True)
class Slack:
    """How many bytes after a block are asked for with it: what 19 of 20 blocks have needed lately."""

    num_bytes: int = _FIRST_SLACK
    _needs: list[int] = field(default_factory=list, repr=False)
    _next: int = 0

    def learn(self, need: int) -> None:
        """A block has needed so many bytes after its end."""
        if len(self._needs) < _NUM_NEEDS:
            self._needs.append(need)
        else:
            self._needs[self._next % _NUM_NEEDS] = need
        self._next += 1
        if self._next % 8 == 0:
            self.num_bytes = sorted(self._needs)[int(_SHARE * len(self._needs))]


@dataclass(slots=True, eq=False)
class _Held:
    stretch: Stretch
    num_pieces: int


class Fetched:
    """The bytes of some pieces, asked for or there. It stays in the process that made it."""

    def __init__(self, storage: StorageReader, slack: Slack, parts: Sequence[tuple[Shard, Piece, int]]) -> None:
        """`parts`: the pieces, each with the position of the first wanted sample (-1: all)."""
        self._slack = slack
        self._held: dict[tuple[int, int], _Held] = {}
        """What holds a piece, by shard and begin."""
        self.is_local = not any(storage.is_remote(shard.url) for shard, _, _ in parts)
        """Whether the bytes are on this machine, so that nothing is gained by asking early."""
        cut = [(piece, max(resume, piece.begin), shard) for shard, piece, resume in parts if _is_held(shard, piece)]
        cut.sort(key=lambda each: each[:2])
        first = 0
        for index, (piece, _, shard) in enumerate(cut):
            after = cut[index + 1] if index + 1 < len(cut) else None
            if after is None or after[0].shard != piece.shard or after[1] != piece.end:
                self._ask(storage, shard, cut[first][1], [each[0] for each in cut[first : index + 1]])
                first = index + 1

    def open(self, shard: Shard, piece: Piece, read: Read) -> "Opened | None":
        """What opens a range of the shard for the reading of a piece; None: its bytes are not here."""
        held = self._held.get((piece.shard, piece.begin))
        return None if held is None else Opened(self, piece, held.stretch, read)

    def close(self) -> None:
        """Let all bytes go, and end what is under way."""
        for held in self._held.values():
            held.stretch.close()
        self._held.clear()

    def _ask(self, storage: StorageReader, shard: Shard, start: int, pieces: Sequence[Piece]) -> None:
        end = pieces[-1].end
        slack = min(self._slack.num_bytes, max(end - pieces[-1].begin, _FIRST_SLACK))
        stretch = clock.timed(
            clock.STORAGE,
            storage.stretch,
            shard.url,
            min(start, shard.size),
            min(max(start, end) + slack, shard.size),
            size=shard.size,
            digest=shard.digest,
            etag=shard.etag or "",
        )
        held = _Held(stretch, len(pieces))
        for piece in pieces:
            self._held[piece.shard, piece.begin] = held

    def leave(self, piece: Piece) -> None:
        """The piece is read, or asked for in another way; its bytes go with those of its last neighbour."""
        held = self._held.pop((piece.shard, piece.begin), None)
        if held is not None:
            held.num_pieces -= 1
            if not held.num_pieces:
                held.stretch.close()

    def learn(self, need: int) -> None:
        """A piece has needed so many bytes after its end."""
        self._slack.learn(need)


class Opened:
    """Reads ranges of a shard for one piece: `Read`."""

    def __init__(self, fetched: Fetched, piece: Piece, stretch: Stretch, read: Read) -> None:
        self._fetched = fetched
        self._piece = piece
        self._stretch = stretch
        self._read = read
        self._last = 0

    def __call__(self, start: int, stop: int | None = None, *, first_bytes: int | None = None) -> Iterator[bytes]:
        self._last = max(self._last, stop or 0)
        if self._stretch.start <= start <= self._stretch.stop:
            return self._stretch.chunks(start, stop)
        return self._read(start, stop) if first_bytes is None else self._read(start, stop, first_bytes=first_bytes)

    def at_hand(self) -> tuple[bytes, int]:
        """The bytes of the shard that are in memory, and the offset of the first of them."""
        return self._stretch.held(), self._stretch.start

    def part(self, start: int, stop: int) -> Part | None:
        """The bytes `start` to `stop`, not copied; None: not all of them are in memory."""
        data, begin = self.at_hand()
        if not begin <= start <= stop <= begin + len(data):
            return None
        self._last = max(self._last, stop)
        return Part(data, start - begin, stop - begin)

    def done(self) -> None:
        """The piece is read to its end."""
        if self._last > self._piece.end:
            self._fetched.learn(self._last - self._piece.end + _HEADERS_BYTES)
        self._fetched.leave(self._piece)

    def give_up(self) -> None:
        """The bytes are wrong: the next reading of the piece asks for them again."""
        self._fetched.leave(self._piece)


def _is_held(shard: Shard, piece: Piece) -> bool:
    return not piece.whole and shard.size_known and piece.end - piece.begin <= _MOST_BYTES
