"""The rolling buffer: documents in, packs out. No IO, no torch, no clock.

In: token ids, one document after the other. Out: `PackRows`, each with the place where the next pack begins, so that a
new packer that is fed from there gives exactly the packs that follow. Never true: a pack without a target is given; a
row is lost without being counted; what a pack holds depends on how the documents were handed over; making a pack copies
more than its own rows.

The worked example: three short documents, pack length 8, the default policy `mask`. After each step, the buffer:

    >>> def draw(rows):
    ...     pack = spell_out(rows, seq_len=8, pad_id=0)
    ...     for name in ("tokens", "labels", "segment_ids", "position_ids"):
    ...         print(f"{name:12}", *(f"{value:4}" for value in getattr(pack, name)))
    >>> packer = Packer(seq_len=8, boundary="mask", packing="wrap", overflow="split", tail="pad")
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

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, compress
from operator import sub
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack.errors import DocumentTooLongError, RecordError, as_integer
from streampack.packing.blocks import spell_out
from streampack.packing.buffer import RowBuffer, checked_mask, token_ids
from streampack.packing.options import Overflow, Packing, PackingKind, Tail, as_packing
from streampack.packing.packs import Pack, PackRows
from streampack.packing.policies import (
    INT32,
    BoundaryPolicy,
    ReplaceBoundary,
    as_boundary,
    check_ids,
    document_edges,
    ignored_rows,
    looks_ahead,
)
from streampack.records import IGNORE_INDEX, Counts, Mask, TokenizedDocument, Tokens

_NOTHING = Counts()


class _Loss(NamedTuple):
    """Rows that overflow took from a document; counted when packing has passed it."""

    ordinal: int
    rows: int
    dropped: bool


class Packer:
    """Packs documents as they come. The arguments are those of `pack`; a ConfigError says which cannot work."""

    def __init__(
        self,
        *,
        seq_len: int,
        boundary: BoundaryPolicy | ReplaceBoundary | str,
        packing: PackingKind | str,
        overflow: Overflow | str,
        tail: Tail | str,
        pad_id: int = 0,
        bos_id: int | None = None,
        eos_id: int | None = None,
        lookahead: bool = True,
        at_once: int = 16,
    ) -> None:
        """`at_once`: packs that are made together at most; a few cost less each, and are held until they are given."""
        self.seq_len = as_integer(seq_len, "seq_len", low=2, high=INT32.max)
        self.boundary = as_boundary(boundary)
        self.packing = as_packing(Packing(packing, overflow=overflow, tail=tail, lookahead=lookahead))
        self.lookahead = self.packing.lookahead
        self.overflow, self.tail = self.packing.overflow, self.packing.tail
        self.pad_id = as_integer(pad_id, "pad_id", low=INT32.min, high=INT32.max)
        self.bos_id, self.eos_id = _as_token_id(bos_id, "bos_id"), _as_token_id(eos_id, "eos_id")
        self._at_once = at_once
        check_ids(self.boundary, bos_id=self.bos_id, eos_id=self.eos_id)
        self._whole = self.packing.keeps_documents_whole
        self._trims = self.boundary is BoundaryPolicy.TRIM
        self._edges_look_ahead = looks_ahead(self.boundary)
        self._rows = RowBuffer()
        # Of each held document: the row behind its last one, its number, and the label of its last row.
        self._ends: list[int] = []
        self._ordinals: list[int] = []
        self._labels: list[int] = []
        self._decided: list[bool] = []  # whether that label is the same whatever follows
        self._start = 0  # the row with which the first of them begins
        self._last_token = 0  # of the last document, whose label may depend on the first token of the next
        self._closed: deque[int] = deque()  # whole documents: where packs end that can take no other one
        self._open_rows = 0  # and the rows behind the last of these
        self._losses: list[_Loss] = []
        self._num_fed = 0
        self._built = 0  # rows that are in packs, given or not
        self._num_passed = 0  # documents before that place
        self._begin = 0  # rows before the pack that is given next
        self._made: list[tuple[PackRows, int]] = []  # packs to give, each with the row behind it
        self._given = Counts()
        self._behind = _NOTHING  # what came behind the last pack that was made
        self._finished = False

    def __repr__(self) -> str:
        # The beginning of the buffer, for people: some documents, some tokens of each.
        first = bisect_right(self._ends, self._begin)
        starts = [self._start, *self._ends][first:]
        shown = []
        for start, end in zip(starts, self._ends[first : first + 8], strict=False):
            begin = max(start, self._begin)
            shown.append(" ".join(map(str, self._rows.tokens(begin, min(begin + 16, end)).tolist())))
        return f"<Packer, {self.buffered_rows} rows: {' | '.join(shown)}>"

    @property
    def buffered_bytes(self) -> int:
        """Bytes of what was fed and is held, each feeding counted whole until its last row is in a pack.

        Packs that are made and not given are copies, and not counted: `at_once` bounds them.
        """
        return self._rows.num_bytes

    @property
    def has_pack(self) -> bool:
        """Whether the next pack is made already."""
        return bool(self._made)

    @property
    def waits(self) -> bool:
        """Whether a pack that is full with a document's last row waits for the next one, which decides its label."""
        return self._edges_look_ahead and self.lookahead and not self._whole

    @property
    def buffered_rows(self) -> int:
        """Input rows that are held for the packs to come."""
        return self._rows.end - self._begin

    @property
    def counts(self) -> Counts:
        """What became of the documents up to where the next pack begins, sizes in input rows.

        Documents that are fed but not passed do not count yet, and those before a restart do not count again: when
        `pop` has given a pack, the counts are a function of the pack's place in the stream, and the difference from
        the pack before is that pack's own (`PackRows.counts`).
        """
        return self._given.plus(self.counts_behind)

    @property
    def counts_behind(self) -> Counts:
        """Of these, what came behind the last pack; complete when `pop` has given None after `finish`."""
        return self._behind if self._begin == self._built else _NOTHING

    def feed(
        self,
        tokens: NDArray[np.integer] | Sequence[int],
        loss_mask: NDArray[np.bool_] | Sequence[bool] | None = None,
        *,
        row: int = 0,
    ) -> None:
        """Take the next document; the array is held, not copied, so leave it unchanged.

        A document that is refused takes no ordinal, and the packer is as if it had not come.

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
        ids = token_ids(tokens, ordinal)
        mask = None if loss_mask is None else checked_mask(loss_mask, ids.size, ordinal)
        rows = ids.size if not self._trims else max(ids.size - 1, 0)
        assert ordinal == 0 or row == 0, "only the first document can begin in the middle"
        if not 0 <= row <= rows:
            raise RecordError(
                f"document {ordinal} has {rows} rows, yet {row} of them are said to be in earlier packs; the data or "
                "the tokenizer have changed since."
            )
        if self._whole and rows - row > self.seq_len:
            ids, rows = self._overflow(ids, row, rows)
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

    def finish(self) -> None:
        """Say that no document follows; `pop` then gives what is left."""
        self._finished = True

    def pop(self) -> PackRows | None:
        """Return the next pack, or None: more documents are needed, or nothing is left after `finish`."""
        while not self._made:
            ends = self._next_ends()
            if not ends:
                self._go_on(self._built)
                return None
            self._build(ends)
        pack, end = self._made.pop(0)
        self._given = self._given.plus(pack.counts)
        self._go_on(end)
        return pack

    def _overflow(self, ids: NDArray[np.integer], row: int, rows: int) -> tuple[NDArray[np.integer], int]:
        """Return the tokens and rows that are left of a document that is too long for a pack."""
        if self.overflow is Overflow.ERROR:
            raise DocumentTooLongError(
                f"document {self._num_fed} has {rows} rows ({ids.size} tokens), a pack has {self.seq_len}; raise "
                'seq_len, or choose overflow="split", "truncate" or "drop".'
            )
        if self.overflow is Overflow.SPLIT:
            return ids, rows
        kept = row + self.seq_len if self.overflow is Overflow.TRUNCATE else row
        self._losses.append(_Loss(self._num_fed, rows - kept, kept == row))
        # One token more than rows: the last row's label. A copy, so that the rest can go.
        return ids[: kept + 1].copy(), kept

    def _hold(
        self, ids: NDArray[np.integer], lengths: Sequence[int], mask: Mask | None, first: int, *, last_is_label: bool
    ) -> None:
        """Put documents into the buffer, from number `first` on.

        `last_is_label`: the last token of each is no row, but the label of the one before.
        """
        ignored: Mask | None = None
        if mask is not None or self._edges_look_ahead:
            ignored = ignored_rows(ids, mask, self.boundary, bos_id=self.bos_id, eos_id=self.eos_id)
        num_bytes = ids.nbytes + (0 if ignored is None else ignored.nbytes)
        stops = list(accumulate(lengths))
        ordinals: Sequence[int] = range(first, first + len(lengths))
        gone = [stop - 1 for stop, length in zip(stops, lengths, strict=True) if length] if last_is_label else []
        if min(lengths) <= last_is_label:  # a document without a row is not what follows another one
            has_rows = [length > last_is_label for length in lengths]
            ordinals, stops, lengths = (list(compress(column, has_rows)) for column in (ordinals, stops, lengths))
            if not ordinals:
                return
        self._decide_labels(ids, stops, lengths, mask, ignored, last_is_label=last_is_label)
        rows = ids
        if last_is_label:
            rows = ids[:-1] if len(gone) == 1 else np.delete(ids, gone)
            ignored = ignored if ignored is None or len(gone) == 1 else np.delete(ignored, gone[:-1])
            lengths = [length - 1 for length in lengths]
        begin = self._rows.end
        ends = list(accumulate(lengths, initial=begin))[1:]
        self._rows.append(rows, ignored, num_bytes=num_bytes)
        self._ordinals += ordinals
        self._ends += ends
        if self._whole:
            self._close(max(begin, self._begin), ends)

    def _decide_labels(
        self,
        ids: NDArray[np.integer],
        stops: Sequence[int],
        lengths: Sequence[int],
        mask: Mask | None,
        ignored: Mask | None,
        *,
        last_is_label: bool,
    ) -> None:
        """Find the label of each document's last row, and of the one before them where it depends on the first.

        `stops`: the token behind each of them.
        """
        labels = [IGNORE_INDEX] * len(stops)
        if self._edges_look_ahead:
            firsts, lasts = np.subtract(stops, lengths), np.subtract(stops, 1)
            before = np.concatenate(([self._last_token], ids[lasts[:-1]]))
            may_be_target = np.ones(len(stops), np.bool_) if mask is None else mask[firsts]
            found = document_edges(
                before, ids[firsts], may_be_target, self.boundary, bos_id=self.bos_id, eos_id=self.eos_id
            ).tolist()
            if self._labels and not self._decided[-1]:
                self._labels[-1] = found[0]
            labels[:-1] = found[1:]
            self._last_token = ids.item(stops[-1] - 1)
        if last_is_label:
            labels = [
                IGNORE_INDEX if ignored is not None and ignored[stop - 2] else ids.item(stop - 1) for stop in stops
            ]
        self._labels += labels
        self._decided += [last_is_label] * len(labels)

    def _close(self, begin: int, ends: list[int]) -> None:
        """Note where packs of whole documents end: documents from row `begin` to each of `ends` have come."""
        for end in ends:
            if self._open_rows + end - begin <= self.seq_len:
                self._open_rows += end - begin
                if self._open_rows == self.seq_len:
                    self._closed.append(end)
            else:  # it does not fit: a pack of its own, or several full ones and what is left
                if self._open_rows:
                    self._closed.append(begin)
                self._closed.extend(range(begin + self.seq_len, end + 1, self.seq_len))
                self._open_rows = end - begin
            self._open_rows %= self.seq_len
            begin = end

    def _next_ends(self) -> list[int]:
        """The rows behind the next packs, a few at once; at the very end, let the tail go where it is to be dropped."""
        begin, size = self._built, self.seq_len
        left = self._rows.end - begin
        if self._whole:
            ends = [self._closed.popleft() for _ in range(min(len(self._closed), self._at_once))]
        else:
            waits = self.waits and not self._finished
            ends = [begin + size * number for number in range(1, 1 + min((left - waits) // size, self._at_once))]
        if ends or not self._finished:
            return ends
        if left and self.tail is Tail.PAD:
            return [self._rows.end]
        self._built = self._rows.end
        passed = Counts(documents=self._num_fed - self._num_passed, tail_tokens=left)
        self._behind = self._behind.plus(passed).plus(self._pass(self._num_fed))
        return []

    def _build(self, ends: list[int]) -> None:
        """Make the packs that end before the rows `ends`."""
        begin, end, self._built = self._built, ends[-1], ends[-1]
        if passed := bisect_right(self._ends, begin):
            self._start = self._ends[passed - 1]
            for column in (self._ends, self._ordinals, self._labels, self._decided):
                del column[:passed]
        rows = self._rows
        tokens, ignored = rows.tokens(begin, min(end + 1, rows.end)), rows.ignored(begin, end)
        all_ends, start, first = self._ends, begin, 0
        behind = self._behind
        for end in ends:
            last = bisect_left(all_ends, end, first)  # the documents `first` to `last` have rows in this pack
            offset = start - (all_ends[first - 1] if first else self._start)
            last_start = all_ends[last - 1] if last else self._start
            is_cut = all_ends[last] > end
            stops = [*all_ends[first:last], end]
            edges = self._labels[first : last + 1]
            if is_cut:
                is_ignored = ignored is not None and ignored[end - begin - 1]
                edges[-1] = IGNORE_INDEX if is_ignored else tokens.item(end - begin)
            elif self._whole and not self._decided[last]:
                edges[-1] = IGNORE_INDEX  # what follows is in another pack
            size = end - start
            if size == self.seq_len and not self.lookahead:
                edges[-1] = IGNORE_INDEX
            masked, num_masked = None, 0
            if ignored is not None:
                ignored[np.subtract(stops, begin + 1)] = False
                masked = ignored[start - begin : end - begin]
                num_masked = int(np.count_nonzero(masked))
            num_targets = size - num_masked - edges.count(IGNORE_INDEX)
            next_document = self._ordinals[last] + (not is_cut)
            counts = self._counts(next_document, size, num_targets, is_split=is_cut and last_start >= start)
            behind = counts if behind is _NOTHING else behind.plus(counts)
            if num_targets:
                pack = PackRows(
                    tokens=tokens[start - begin : end - begin],
                    seq_lens=np.array([*map(sub, stops, (start, *stops))], np.int32),
                    edge_labels=np.array(edges, np.int32),
                    ignored=masked if num_masked else None,
                    num_targets=num_targets,
                    documents=self._ordinals[first : last + 1],
                    offset=offset,
                    next_document=next_document,
                    next_row=end - last_start if is_cut else 0,
                    counts=behind,
                )
                self._made.append((pack, end))
                behind = _NOTHING
            start, first = end, last if is_cut else last + 1
        self._behind = behind

    def _counts(self, next_document: int, size: int, num_targets: int, *, is_split: bool) -> Counts:
        """What a pack of `size` rows stands for, up to the document with which the next one begins."""
        passed = next_document - self._num_passed
        if num_targets:
            counts = Counts(passed, size, num_targets, self.seq_len - size, split_documents=int(is_split))
        else:  # its loss would be 0/0
            counts = Counts(passed, split_documents=int(is_split), targetless_packs=1, targetless_tokens=size)
        lost = self._pass(next_document)
        return counts if lost is _NOTHING else counts.plus(lost)

    def _go_on(self, row: int) -> None:
        """The next pack begins with this row; what lies before it is given back."""
        self._begin = row
        self._rows.let_go(row)

    def _pass(self, document: int) -> Counts:
        """Go past the documents before number `document`; what overflow took from them."""
        self._num_passed = document
        counts = _NOTHING
        while self._losses and self._losses[0].ordinal < document:
            loss = self._losses.pop(0)
            kind = "dropped" if loss.dropped else "truncated"
            counts = counts.plus(Counts(**{f"{kind}_documents": 1, f"{kind}_tokens": loss.rows}))
        return counts


def _as_token_id(value: object, argument: str) -> int | None:
    return None if value is None else as_integer(value, argument, low=INT32.min, high=INT32.max)


def pack(
    documents: Iterable[Sequence[int] | NDArray[np.integer] | TokenizedDocument],
    *,
    seq_len: int,
    boundary: BoundaryPolicy | ReplaceBoundary | str = BoundaryPolicy.MASK,
    packing: PackingKind | str = PackingKind.WRAP,
    overflow: Overflow | str = Overflow.SPLIT,
    tail: Tail | str = Tail.PAD,
    pad_id: int = 0,
    bos_id: int | None = None,
    eos_id: int | None = None,
    lookahead: bool = True,
) -> Iterator[Pack]:
    """Return the packs of the documents, one by one as they are done; the documents may go on for ever.

    Args:
        documents: Token ids of each document, BOS and EOS already in, or TokenizedDocument where some tokens may not
            be targets.
        seq_len: Rows of a pack, at least 2.
        boundary: What becomes of the row whose input is a document's last token: a BoundaryPolicy, its value, or
            ReplaceBoundary(token_id).
        packing: "wrap" cuts the rows every seq_len, "next_fit" keeps documents whole.
        overflow: What "next_fit" does with a document longer than a pack: "split", "truncate", "drop" or "error".
        tail: What becomes of rows that do not fill a last pack: "pad" or "drop".
        pad_id: The token on padding.
        bos_id: For boundary="mask_bos_target".
        eos_id: For boundary="mask_eos_input".
        lookahead: False: the last row of a full pack has no label, as for a model that shifts labels itself.

    Raises:
        ConfigError: An argument, or a combination, that cannot work; raised by the call itself.
        RecordError: A document that is not token ids; raised when its turn comes.
    """
    packer = Packer(
        seq_len=seq_len,
        boundary=boundary,
        packing=packing,
        overflow=overflow,
        tail=tail,
        pad_id=pad_id,
        bos_id=bos_id,
        eos_id=eos_id,
        lookahead=lookahead,
    )
    return _packs(packer, documents)


def _packs(
    packer: Packer, documents: Iterable[Sequence[int] | NDArray[np.integer] | TokenizedDocument]
) -> Iterator[Pack]:
    for document in documents:
        if isinstance(document, TokenizedDocument):
            packer.feed(document.tokens, document.loss_mask)
        else:
            packer.feed(document)
        for rows in iter(packer.pop, None):
            yield spell_out(rows, seq_len=packer.seq_len, pad_id=packer.pad_id)
    packer.finish()
    for rows in iter(packer.pop, None):
        yield spell_out(rows, seq_len=packer.seq_len, pad_id=packer.pad_id)
