"""The rows of documents, checked when they come and held until the last of them is in a pack.

In:  token ids of documents, and which of their rows have no label (are ignored).
Out: any stretch of rows, by their numbers, as a copy. Rows are numbered from the first one that was ever fed, so that
     a number stays right when rows before it are freed.
Never: a copy of what is fed; a token id that does not fit int32, or that is -100, which in labels means no label.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import dropwhile, takewhile
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack.errors import RecordError
from streampack.packing.policies import INT32
from streampack.records import IGNORE_INDEX, Mask, Tokens


class _Fed(NamedTuple):
    """Rows as they were fed."""

    tokens: NDArray[np.integer]
    ignored: Mask | None
    begin: int
    end: int
    num_bytes: int


class RowBuffer:
    """Rows side by side; `end` is the number after the last one."""

    def __init__(self) -> None:
        self.end = 0
        self.num_bytes = 0
        """Bytes of what was fed and is held; each array that was fed counts whole until its last row is freed."""
        self._fed: deque[_Fed] = deque()

    def append(self, tokens: NDArray[np.integer], ignored: Mask | None, *, num_bytes: int) -> None:
        """Hold more rows, [n]; `ignored` may end before them. `num_bytes`: what they take in memory."""
        begin, self.end = self.end, self.end + tokens.size
        self._fed.append(_Fed(tokens, ignored, begin, self.end, num_bytes))
        self.num_bytes += num_bytes

    def tokens(self, begin: int, end: int) -> Tokens:
        """The rows `begin` to `end`, int32."""
        parts = [fed.tokens[max(begin - fed.begin, 0) : end - fed.begin] for fed in self._overlapping(begin, end)]
        return np.concatenate(parts, dtype=np.int32)

    def ignored(self, begin: int, end: int) -> Mask | None:
        """Which of the rows are ignored; None: none of them. The value for a document's last row has no meaning."""
        parts = [(fed, fed.ignored) for fed in self._overlapping(begin, end) if fed.ignored is not None]
        if not parts:
            return None
        ignored = np.zeros(end - begin, np.bool_)
        for fed, mask in parts:
            part = mask[max(begin - fed.begin, 0) : end - fed.begin]
            at = max(fed.begin - begin, 0)
            ignored[at : at + part.size] = part
        return ignored

    def free_before(self, row: int) -> None:
        """Free what was fed if all its rows lie before `row`."""
        while self._fed and self._fed[0].end <= row:
            self.num_bytes -= self._fed.popleft().num_bytes

    def _overlapping(self, begin: int, end: int) -> Iterator[_Fed]:
        return takewhile(lambda fed: fed.begin < end, dropwhile(lambda fed: fed.end <= begin, self._fed))


def checked_document(
    tokens: NDArray[np.integer] | Sequence[int],
    loss_mask: NDArray[np.bool_] | Sequence[bool] | None,
    ordinal: int,
    *,
    row: int,
    trims: bool,
) -> tuple[NDArray[np.integer], Mask | None, int]:
    """Return a document's token ids, its loss mask, and how many input rows it has; all of it may be relied on.

    Args:
        tokens: What should be token ids, [n].
        loss_mask: What should be a loss mask, [n].
        ordinal: The document's number.
        row: Input rows that earlier packs hold; only the first document can have some.
        trims: Whether the last token is no row.

    Raises:
        RecordError: Not token ids, a loss mask that does not fit, or fewer rows than `row`.
    """
    ids = token_ids(tokens, ordinal)
    mask = None if loss_mask is None else checked_mask(loss_mask, ids.size, ordinal)
    rows = max(ids.size - 1, 0) if trims else ids.size
    assert ordinal == 0 or row == 0, "only the first document can begin in the middle"
    if not 0 <= row <= rows:
        raise RecordError(
            f"document {ordinal} has {rows} rows, yet {row} of them are said to be in earlier packs; the data or "
            "the tokenizer have changed since."
        )
    return ids, mask, rows


def token_ids(tokens: NDArray[np.integer] | Sequence[int], ordinal: int) -> NDArray[np.integer]:
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
        raise RecordError(f"document {ordinal} has token id {IGNORE_INDEX}, which in labels means no label.")
    return ids


def checked_mask(loss_mask: NDArray[np.bool_] | Sequence[bool], size: int, ordinal: int) -> Mask:
    """Return a loss mask of a document of `size` tokens, bool [size]; a RecordError where it does not fit."""
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
