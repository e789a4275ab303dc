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

import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack.boundary import (
    INT32,
    BoundaryPolicy,
    Overflow,
    Packing,
    ReplaceBoundary,
    Tail,
    as_boundary,
    as_choice,
    as_integer,
    as_packing,
    check_ids,
    document_edge,
    ignored_rows,
    looks_ahead,
    spell_out,
)
from streampack.errors import ConfigError, DocumentTooLongError, RecordError
from streampack.records import IGNORE_INDEX, Mask, Pack, PackRows, Span, TokenizedDocument
from streampack.stats import Counts


class _Held(NamedTuple):
    """A document in the buffer; at least one row of it is to come."""

    ordinal: int
    tokens: NDArray[np.integer]
    ignored: Mask | None
    rows: int
    starts_as_target: bool
    """Whether the first token may be the target of the row before it."""
    num_bytes: int


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
        packing: Packing | str,
        overflow: Overflow | str,
        tail: Tail | str,
        pad_id: int = 0,
        bos_id: int | None = None,
        eos_id: int | None = None,
        lookahead: bool = True,
    ) -> None:
        self.seq_len = as_integer(seq_len, "seq_len", low=2)
        self.boundary = as_boundary(boundary)
        self.packing = as_packing(packing)
        self.overflow = as_choice(Overflow, overflow, "overflow")
        self.tail = as_choice(Tail, tail, "tail")
        self.pad_id = as_integer(pad_id, "pad_id", low=INT32.min)
        self.bos_id = None if bos_id is None else as_integer(bos_id, "bos_id", low=INT32.min)
        self.eos_id = None if eos_id is None else as_integer(eos_id, "eos_id", low=INT32.min)
        self.lookahead = bool(lookahead)
        check_ids(self.boundary, bos_id=self.bos_id, eos_id=self.eos_id)
        self._whole = self.packing is not Packing.WRAP
        if self._whole and not self.lookahead:
            raise ConfigError(f'lookahead=False works with packing="wrap" only, not with "{self.packing}".')
        if not self._whole and self.overflow is not Overflow.SPLIT:
            warnings.warn(
                f'overflow="{self.overflow}" does nothing under packing="wrap", which cuts documents every seq_len.',
                UserWarning,
                stacklevel=2,
            )
        self._counts = dict.fromkeys(Counts._fields, 0)
        self._trims = self.boundary is BoundaryPolicy.TRIM
        self._edges_look_ahead = looks_ahead(self.boundary)
        self._documents: deque[_Held] = deque()
        self._losses: deque[_Loss] = deque()
        self._row = 0  # of the first held document: where the next pack begins
        self._rows = 0  # in the buffer
        self._open_rows = 0  # whole documents: those of `_rows` that are in no full or closed pack yet
        self._num_bytes = 0
        self._num_fed = 0
        self._num_passed = 0  # documents that count already
        self._finished = False

    def __repr__(self) -> str:
        # The beginning of the buffer, for people: some documents, some tokens of each.
        starts = [self._row, *[0] * 7]
        shown = [
            " ".join(map(str, held.tokens[start : min(start + 16, held.rows)].tolist()))
            for start, held in zip(starts, self._documents, strict=False)
        ]
        return f"<Packer, {self._rows} rows: {' | '.join(shown)}>"

    @property
    def buffered_bytes(self) -> int:
        """Bytes of the documents that are held, each counted whole until its last row is in a pack."""
        return self._num_bytes

    @property
    def buffered_rows(self) -> int:
        """Input rows that are held for the packs to come."""
        return self._rows

    @property
    def counts(self) -> Counts:
        """What became of the documents up to where the next pack begins, sizes in input rows.

        Documents that are fed but not passed do not count yet, and those before a restart do not count again: when
        `pop` has given a pack, the counts are a function of the pack's place in the stream, and the difference from
        the pack before is that pack's own.
        """
        return Counts(*self._counts.values())

    def feed(
        self,
        tokens: NDArray[np.integer] | Sequence[int],
        loss_mask: NDArray[np.bool_] | Sequence[bool] | None = None,
        *,
        row: int = 0,
        checked: bool = False,
    ) -> None:
        """Take the next document; the array is held, not copied, so leave it unchanged.

        A document that is refused takes no ordinal, and the packer is as if it had not come.

        Args:
            tokens: Token ids, BOS and EOS already in: any integer type [n], each fits int32.
            loss_mask: True (or 1) where a token may be a target; [n].
            row: Input rows that earlier packs hold; only for the first document, at a restart.
            checked: The tokens are known to be int32 [n], none negative.

        Raises:
            RecordError: Not token ids, a loss mask that does not fit, or fewer rows than `row`.
            DocumentTooLongError: More rows than a pack has, with overflow="error".
        """
        assert not self._finished, "a document was fed after finish()"
        ordinal = self._num_fed
        ids = tokens if checked and isinstance(tokens, np.ndarray) else _token_ids(tokens, ordinal)
        mask = None if loss_mask is None else _loss_mask(loss_mask, ids.size, ordinal)
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
        ignored, num_bytes = None, ids.nbytes
        if mask is not None or self._edges_look_ahead:
            mask = None if mask is None else mask[: ids.size]
            ignored = ignored_rows(ids, mask, self.boundary, bos_id=self.bos_id, eos_id=self.eos_id)
            num_bytes += 0 if ignored is None else ignored.nbytes
        self._documents.append(_Held(ordinal, ids, ignored, rows, mask is None or bool(mask[0]), num_bytes))
        self._num_bytes += num_bytes
        if row:
            self._row = row
        self._rows += rows - row
        if self._whole:
            open_rows = self._open_rows + rows - row
            if open_rows > self.seq_len:  # it does not fit: a pack of its own, or several full ones
                open_rows = rows - row
            self._open_rows = open_rows % self.seq_len

    def finish(self) -> None:
        """Say that no document follows; `pop` then gives what is left."""
        self._finished = True

    def pop(self) -> PackRows | None:
        """Return the next pack, or None: more documents are needed, or nothing is left after `finish`."""
        while self._has_pack():
            pack = self._take()
            size = pack.tokens.size
            if pack.num_targets:
                self._counts["tokens"] += size
                self._counts["targets"] += pack.num_targets
                self._counts["padding"] += self.seq_len - size
                return pack
            # Its loss would be 0/0.
            self._counts["targetless_packs"] += 1
        if self._finished:
            self._pass(self._num_fed)
        return None

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

    def _has_pack(self) -> bool:
        """Say whether `_take` can build the next pack; let the tail go where it is to be dropped."""
        if self._whole:
            if self._rows > self._open_rows:
                return True
        elif self._rows >= self.seq_len:
            # Where the buffer's last document ends with the pack, the one after it decides the last label.
            waits = self._edges_look_ahead and self.lookahead
            if self._rows > self.seq_len or not waits:
                return True
        if not self._finished or not self._rows:
            return False
        if self._rows == self.seq_len or self.tail is Tail.PAD:
            return True
        self._counts["tail_tokens"] += self._rows
        self._documents.clear()
        self._row = self._rows = self._open_rows = self._num_bytes = 0
        return False

    def _take(self) -> PackRows:
        """Build the next pack from the first rows of the buffer."""
        documents, start, room, looks_ahead = self._documents, self._row, self.seq_len, self._edges_look_ahead
        parts: list[NDArray[np.integer]] = []
        masks: list[tuple[int, Mask]] = []  # each with the row of the pack where it begins
        spans: list[Span] = []
        lengths: list[int] = []
        edges: list[int] = []
        ended: _Held | None = None  # the document that ends with the last segment, where what follows matters
        while room and documents:
            document = documents[0]
            _, tokens, ignored, rows, _, num_bytes = document
            stop = rows
            if rows - start > room:
                if parts and self._whole:
                    break  # a whole document, or the first piece of one, begins a pack
                stop = start + room
            if ended is not None:
                edges[-1] = self._edge(ended, document)
                ended = None
            length = stop - start
            parts.append(tokens[start:stop])
            spans.append(Span(document.ordinal, start, length))
            lengths.append(length)
            if ignored is not None:
                masks.append((self.seq_len - room, ignored[start : stop - 1]))
            if stop == tokens.size:
                edges.append(IGNORE_INDEX)
                ended = document if looks_ahead else None
            elif ignored is not None and ignored[stop - 1]:
                edges.append(IGNORE_INDEX)
            else:
                edges.append(tokens.item(stop))
            room -= length
            if stop < rows:
                self._counts["split_documents"] += start == 0
                start = stop
            else:
                documents.popleft()
                self._num_bytes -= num_bytes
                start = 0
        if ended is not None and documents and not self._whole:
            edges[-1] = self._edge(ended, documents[0])
        if not (room or self.lookahead):
            edges[-1] = IGNORE_INDEX
        size = self.seq_len - room
        self._row = start
        self._rows -= size
        next_document = spans[-1].document + (start == 0)
        self._pass(next_document)
        ignored, num_ignored = _join_masks(masks, size)
        return PackRows(
            tokens=np.concatenate(parts, dtype=np.int32),
            seq_lens=np.array(lengths, np.int32),
            edge_labels=np.array(edges, np.int32),
            ignored=ignored,
            num_targets=size - num_ignored - edges.count(IGNORE_INDEX),
            spans=tuple(spans),
            next_document=next_document,
            next_row=start,
        )

    def _edge(self, ended: _Held, following: _Held) -> int:
        last, first = ended.tokens.item(-1), following.tokens.item(0)
        may_be_target = following.starts_as_target
        return document_edge(last, first, may_be_target, self.boundary, bos_id=self.bos_id, eos_id=self.eos_id)

    def _pass(self, document: int) -> None:
        """Count the documents before number `document`, and what overflow took from them."""
        self._counts["documents"] += document - self._num_passed
        self._num_passed = document
        while self._losses and self._losses[0].ordinal < document:
            loss = self._losses.popleft()
            self._counts["dropped_documents" if loss.dropped else "truncated_documents"] += 1
            self._counts["dropped_tokens" if loss.dropped else "truncated_tokens"] += loss.rows


def pack(
    documents: Iterable[Sequence[int] | NDArray[np.integer] | TokenizedDocument],
    *,
    seq_len: int,
    boundary: BoundaryPolicy | ReplaceBoundary | str = BoundaryPolicy.MASK,
    packing: Packing | str = Packing.WRAP,
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


def _join_masks(masks: list[tuple[int, Mask]], size: int) -> tuple[Mask | None, int]:
    """Return the rows of a pack that are ignored, None if there are none, and how many they are."""
    if not masks:
        return None, 0
    ignored = np.zeros(size, np.bool_)
    for start, mask in masks:
        ignored[start : start + mask.size] = mask
    count = int(np.count_nonzero(ignored))
    return (ignored, count) if count else (None, 0)


def _token_ids(tokens: NDArray[np.integer] | Sequence[int], ordinal: int) -> NDArray[np.integer]:
    """Return token ids that fit int32, without a copy where the type says so already."""
    try:
        ids = np.asarray(tokens)
    except ValueError:  # lists of lists of different lengths
        raise RecordError(f"document {ordinal} is not one flat list of token ids.") from None
    if ids.ndim != 1:
        raise RecordError(f"document {ordinal} has token ids of shape {ids.shape}; they must be one-dimensional.")
    if ids.dtype.kind not in "iu":
        if not ids.size and not isinstance(tokens, np.ndarray):
            return ids.astype(np.int32)  # numpy takes an empty list for floats
        raise RecordError(
            f"document {ordinal} has token ids of type {ids.dtype}; they must be integers that fit int32."
        )
    if not ids.size or (ids.dtype.kind == "u" and ids.dtype.itemsize < 4):
        return ids
    low = np.minimum.reduce(ids)
    if ids.dtype.itemsize > 4 or ids.dtype.kind == "u":
        low, high = int(low), int(np.maximum.reduce(ids))
        if low < INT32.min or high > INT32.max:
            raise RecordError(f"document {ordinal} has token ids from {low} to {high}; they must fit int32.")
        ids = ids.astype(np.int32)
    if low <= IGNORE_INDEX and (ids == IGNORE_INDEX).any():
        raise RecordError(f"document {ordinal} has token id {IGNORE_INDEX}, which as a label means no label.")
    return ids


def _loss_mask(loss_mask: NDArray[np.bool_] | Sequence[bool], size: int, ordinal: int) -> Mask:
    mask = np.asarray(loss_mask)
    if mask.shape != (size,):
        raise RecordError(
            f"document {ordinal} has {size} tokens and a loss mask of shape {mask.shape}; it needs one value a token."
        )
    if size and mask.dtype != np.bool_ and not (mask.dtype.kind in "iu" and ((mask == 0) | (mask == 1)).all()):
        raise RecordError(
            f"document {ordinal} has a loss mask of type {mask.dtype}; it must be True and False, or 1 and 0."
        )
    return mask.astype(np.bool_, copy=False)
