"""The rolling buffer: documents in, packs out. No IO, no torch, no clock.

    feed -> edges (ends and labels of documents) -> pack_ends (where packs end) -> pop
            buffer (their rows)                    counting (what became of them)

In:  token ids, one document after the other.
Out: `PackRows`, each with the place where the next pack begins: a new packer that is fed from there gives exactly the
     packs that follow.
Never: a pack without a target; a row that is lost without being counted; a pack that depends on whether documents were
fed one by one or together; a copy of more than a pack's own rows.

The worked example: three short documents, pack length 8, the default policy `mask`. After each step, the buffer:

    >>> from streampack.packing.blocks import spell_out
    >>> def draw(rows):
    ...     pack = spell_out(rows, seq_len=8, pad_id=0)
    ...     for name in ("tokens", "labels", "segment_ids", "position_ids"):
    ...         print(f"{name:12}", *(f"{value:4}" for value in getattr(pack, name)))
    >>> packer = Packer(seq_len=8, boundary="mask", packing="wrap")
    >>> packer.feed([1, 11, 12, 2])
    >>> packer
    <Packer, 4 rows: 1 11 12 2>
    >>> packer.pop() is None
    True
    >>> packer.feed([1, 21, 22, 23, 24, 2])
    >>> packer
    <Packer, 10 rows: 1 11 12 2 | 1 21 22 23 24 2>
    >>> draw(first := packer.pop())
    tokens          1   11   12    2    1   21   22   23
    labels         11   12    2 -100   21   22   23   24
    segment_ids     1    1    1    1    2    2    2    2
    position_ids    0    1    2    3    0    1    2    3

The last label is 24 although 24 lies in the next pack: no target is lost where a pack ends. The row whose input is the
first document's EOS (2) has no label: what follows it is another document. The next pack begins in document 1, row 4:

    >>> first.next_document, first.next_row
    (1, 4)
    >>> packer
    <Packer, 2 rows: 24 2>
    >>> packer.feed([1, 31, 2])
    >>> packer
    <Packer, 5 rows: 24 2 | 1 31 2>
    >>> packer.finish()
    >>> draw(packer.pop())
    tokens         24    2    1   31    2    0    0    0
    labels          2 -100   31    2 -100 -100 -100 -100
    segment_ids     1    1    2    2    2    0    0    0
    position_ids    0    1    0    1    2    0    1    2
    >>> packer.pop() is None
    True

With `keep` the label of the first document's EOS is 1, the next document's BOS; with `trim` that row is not there and
the first pack reads on to token 24, whose label is 2.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import accumulate, compress
from operator import sub

import numpy as np
from numpy.typing import NDArray

from streampack.errors import as_integer
from streampack.packing.buffer import RowBuffer, checked_document
from streampack.packing.counting import OverflowLosses, PackCounter
from streampack.packing.edges import HeldDocuments
from streampack.packing.options import Packing, PackingKind, Tail, as_packing
from streampack.packing.pack_ends import make_pack_ends
from streampack.packing.packs import PackRows
from streampack.packing.policies import INT32, BoundaryLabels, BoundaryPolicy, ReplaceBoundary, as_boundary
from streampack.records import IGNORE_INDEX, Counts, Mask, Tokens

_NOTHING = Counts()


class Packer:
    """Packs documents as they come.

    The arguments are those of `pack`, with `overflow`, `tail` and `lookahead` in the record `Packing`; a ConfigError
    says which cannot work.
    """

    given = 0
    """As of `BestFitPacker`; here there are no windows."""

    def __init__(
        self,
        *,
        seq_len: int,
        boundary: BoundaryPolicy | ReplaceBoundary | str,
        packing: Packing | PackingKind | str,
        pad_id: int = 0,
        bos_id: int | None = None,
        eos_id: int | None = None,
        at_once: int = 16,
    ) -> None:
        """`at_once`: how many packs are made together at most, which costs less; they are held until they are given."""
        self.seq_len = as_integer(seq_len, "seq_len", low=2, high=INT32.max)
        self.pad_id = as_integer(pad_id, "pad_id", low=INT32.min, high=INT32.max)
        self.packing = as_packing(packing)
        self._labels = BoundaryLabels(as_boundary(boundary), bos_id, eos_id)
        self._whole = self.packing.keeps_documents_whole
        self._trims = self._labels.trims
        self._looks_ahead = self._labels.looks_ahead
        self.waits = self._looks_ahead and self.packing.lookahead and not self._whole
        """Whether a pack that is full with a document's last row waits for the next one, which decides its label."""
        self._at_once = at_once
        self._rows = RowBuffer()
        self._documents = HeldDocuments(self._labels, labels_cross_packs=not self._whole)
        self._pack_ends = make_pack_ends(self.packing.kind, self.seq_len)
        self._losses = OverflowLosses(self.packing.overflow, self.seq_len)
        self._counter = PackCounter(self.seq_len, self._losses)
        self._num_fed = 0
        self._built = 0  # rows that are in packs, given or not
        self._begin = 0  # rows before the pack that is given next
        self._made: deque[tuple[PackRows, int]] = deque()  # packs to give, each with the row after it
        self._finished = False
        self._pads_tail = True

    def __repr__(self) -> str:
        # The beginning of the buffer, for a reader of a debugger: some documents, some tokens of each.
        ends = self._documents.ends
        first = bisect_right(ends, self._begin)
        starts = [self._documents.start, *ends][first:]
        shown = []
        for start, end in zip(starts, ends[first : first + 8], strict=False):
            begin = max(start, self._begin)
            shown.append(" ".join(map(str, self._rows.tokens(begin, min(begin + 16, end)).tolist())))
        return f"<Packer, {self.buffered_rows} rows: {' | '.join(shown)}>"

    @property
    def buffered_bytes(self) -> int:
        """Bytes of what was fed and is held; each array that was fed counts whole until its last row is in a pack.

        Packs that are made and not given are not counted: they are copies, and `at_once` bounds their number.
        """
        return self._rows.num_bytes

    @property
    def has_pack(self) -> bool:
        """Whether the next pack is made already."""
        return bool(self._made)

    @property
    def buffered_rows(self) -> int:
        """Input rows that are held for the packs to come."""
        return self._rows.end - self._begin

    def lacking_rows(self, num_packs: int) -> int:
        """How many rows more the next packs need, with the one whose token may be the last label."""
        return self.seq_len * num_packs + 1 - self.buffered_rows

    @property
    def counts(self) -> Counts:
        """What became of the documents up to where the next pack begins, sizes in input rows.

        Documents that are fed but not passed do not count yet, and those before a restart do not count again: when
        `pop` has given a pack, the counts are a function of the pack's place in the stream, and the difference from
        the pack before is that pack's own (`PackRows.counts`).
        """
        return self._counter.given.plus(self.counts_after)

    @property
    def counts_after(self) -> Counts:
        """The part of `counts` that came after the last pack; complete when `pop` has given None after `finish`."""
        return self._counter.since if self._begin == self._built else _NOTHING

    def feed(
        self,
        tokens: NDArray[np.integer] | Sequence[int],
        loss_mask: NDArray[np.bool_] | Sequence[bool] | None = None,
        *,
        row: int = 0,
    ) -> None:
        """Take the next document; the array is held, not copied, so leave it unchanged.

        A document that is refused gets no number, and leaves the packer unchanged.

        Args:
            tokens: Token ids, BOS and EOS already in: any integer type [n], each fits int32.
            loss_mask: True (or 1) where a token may be a target; [n].
            row: Input rows that earlier packs hold; only for the first document, at a restart.

        Raises:
            RecordError: Not token ids, a loss mask that does not fit, or fewer rows than `row`.
            DocumentTooLongError: More rows than a pack has, with overflow="error".
        """
        assert not self._finished, "a document was fed after finish()"
        ordinal = self._num_fed
        ids, mask, rows = checked_document(tokens, loss_mask, ordinal, row=row, trims=self._trims)
        if self._whole and rows - row > self.seq_len:
            ids, rows = self._losses.shorten(ids, ordinal, row=row, rows=rows)
        self._num_fed += 1
        if rows == row:
            return
        if row:
            self._begin = self._built = row
        mask = None if mask is None else mask[: ids.size]
        self._hold(ids, [ids.size], mask, ordinal, last_is_label=rows < ids.size)

    def feed_all(self, tokens: Tokens, lengths: Sequence[int], loss_mask: Mask | None = None) -> None:
        """Take documents that lie side by side, as `feed` takes them one by one, but fast.

        Args:
            tokens: int32 [n], all known to be token ids; held, not copied.
            lengths: Tokens of each document; their sum is n.
            loss_mask: bool [n].
        """
        assert not self._finished, "a document was fed after finish()"
        if self._whole and max(lengths, default=0) > self.seq_len:
            stop = 0
            for length in lengths:
                start, stop = stop, stop + length
                self.feed(tokens[start:stop], None if loss_mask is None else loss_mask[start:stop])
            return
        first, self._num_fed = self._num_fed, self._num_fed + len(lengths)
        if tokens.size:
            self._hold(tokens, lengths, loss_mask, first, last_is_label=self._trims)

    def end_window(self) -> None:
        """As of `BestFitPacker`; where there are no windows it is not called."""
        raise AssertionError("there are no windows")

    def finish(self, *, pads: bool = False) -> None:
        """Say that no document follows; `pop` then gives what is left.

        `pads`: the last pack is padded, whatever `tail` says.
        """
        self._finished = True
        self._pads_tail = pads or self.packing.tail is Tail.PAD

    def pop(self) -> PackRows | None:
        """Return the next pack, or None: more documents are needed, or nothing is left after `finish`."""
        while not self._made:
            ends = self._next_ends()
            if not ends:
                self._go_on(self._built)
                return None
            self._build(ends)
        pack, end = self._made.popleft()
        self._counter.given = self._counter.given.plus(pack.counts)
        self._go_on(end)
        return pack

    def _hold(
        self, ids: NDArray[np.integer], lengths: Sequence[int], mask: Mask | None, first: int, *, last_is_label: bool
    ) -> None:
        """Put documents into the buffer, from number `first` on.

        `last_is_label`: the last token of each is not a row, but the label of the row before.
        """
        ignored: Mask | None = None
        if mask is not None or self._looks_ahead:
            ignored = self._labels.ignored_rows(ids, mask)
        num_bytes = ids.nbytes + (0 if ignored is None else ignored.nbytes)
        stops = list(accumulate(lengths))
        numbers: Sequence[int] = range(first, first + len(lengths))
        gone = [stop - 1 for stop, length in zip(stops, lengths, strict=True) if length] if last_is_label else []
        if min(lengths) <= last_is_label:  # a document without a row is not what follows another one
            has_rows = [length > last_is_label for length in lengths]
            numbers, stops, lengths = (list(compress(column, has_rows)) for column in (numbers, stops, lengths))
            if not numbers:
                return
        begin = self._rows.end
        num_rows = [length - 1 for length in lengths] if last_is_label else lengths
        ends = list(accumulate(num_rows, initial=begin))[1:]
        self._documents.add(ids, numbers, stops, lengths, ends, mask, ignored, last_is_label=last_is_label)
        self._pack_ends.add(max(begin, self._begin), ends)
        rows = ids
        if last_is_label:
            rows = ids[:-1] if len(gone) == 1 else np.delete(ids, gone)
            ignored = ignored if ignored is None or len(gone) == 1 else np.delete(ignored, gone[:-1])
        self._rows.append(rows, ignored, num_bytes=num_bytes)

    def _next_ends(self) -> list[int]:
        """The row after each of the next packs, a few at once; after the last one, count what is left."""
        begin, end = self._built, self._rows.end
        usable = end - (self.waits and not self._finished)
        ends = self._pack_ends.take(begin, usable, self._at_once)
        if ends or not self._finished:
            return ends
        if begin < end and self._pads_tail:
            return [end]
        self._built = end
        self._counter.end(self._num_fed, end - begin)
        return []

    def _build(self, ends: list[int]) -> None:
        """Make the packs that end before the rows `ends`."""
        begin, end, self._built = self._built, ends[-1], ends[-1]
        self._documents.forget(begin)
        rows, seq_len, has_last_label = self._rows, self.seq_len, self.packing.lookahead
        count = self._counter.count
        # One row more: where the last pack cuts a document, its label is the token there.
        tokens, ignored = rows.tokens(begin, min(end + 1, rows.end)), rows.ignored(begin, end)
        for part in self._documents.cut(begin, ends):
            start, stop, edge_labels = part.begin - begin, part.end - begin, part.edge_labels
            size = stop - start
            if part.is_cut:
                is_ignored = ignored is not None and ignored[stop - 1]
                edge_labels[-1] = IGNORE_INDEX if is_ignored else tokens.item(stop)
            if size == seq_len and not has_last_label:
                edge_labels[-1] = IGNORE_INDEX
            masked, num_masked = None, 0
            if ignored is not None:
                ignored[np.subtract(part.stops, begin + 1)] = False
                masked = ignored[start:stop]
                num_masked = int(np.count_nonzero(masked))
            num_targets = size - num_masked - edge_labels.count(IGNORE_INDEX)
            counts = count(part.next_document, size, num_targets, is_split=part.is_split)
            if num_targets:
                pack = PackRows(
                    tokens=tokens[start:stop],
                    seq_lens=np.array([*map(sub, part.stops, (part.begin, *part.stops))], np.int32),
                    edge_labels=np.array(edge_labels, np.int32),
                    ignored=masked if num_masked else None,
                    num_targets=num_targets,
                    documents=part.documents,
                    offsets=(part.offset,),
                    next_document=part.next_document,
                    next_row=part.next_row,
                    counts=counts,
                    is_closed=size == seq_len and not (part.next_row or self.waits),
                )
                self._made.append((pack, part.end))

    def _go_on(self, row: int) -> None:
        """The next pack begins with this row; the rows before it are freed."""
        self._begin = row
        self._rows.free_before(row)
