"""The documents that have rows in packs to come: where they end, and the label of the last row of each.

In:  documents as they are fed. Out: which of their rows are in each pack, and the labels at the edges.
Invariant: a label is decided by the packer's own bookkeeping of where documents end, never by the value of a token.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack.packing.policies import BoundaryLabels
from streampack.records import IGNORE_INDEX, Mask


class PackCut(NamedTuple):
    """The rows of one pack, and of which documents they are. Row numbers count from the first row ever fed."""

    begin: int
    end: int
    stops: list[int]
    """The row after each segment, [k]."""
    edge_labels: list[int]
    """Label of each segment's last row, [k]; where `is_cut`, the last one must be looked up in the tokens."""
    documents: list[int]
    """Number of each segment's document, [k]."""
    offset: int
    """Rows of the first document that lie before `begin`."""
    next_document: int
    """With `next_row`: where the rows after `end` begin."""
    next_row: int
    is_cut: bool
    """The last document continues after `end`."""
    is_split: bool
    """The last document continues after `end`, and began in this pack."""


class HeldDocuments:
    """Columns with one entry for each held document."""

    def __init__(self, labels: BoundaryLabels, *, labels_cross_packs: bool) -> None:
        self.ends: list[int] = []
        """The row after the last one of each."""
        self.start = 0
        """The row with which the first one begins."""
        self._labels = labels
        self._looks_ahead = labels.looks_ahead
        self._cross = labels_cross_packs
        self._numbers: list[int] = []
        self._edge_labels: list[int] = []  # of the last row of each
        self._is_decided: list[bool] = []  # whether that label is the same whatever follows
        self._last_token = 0  # of the last document, whose label may depend on the first token of the next

    def add(
        self,
        ids: NDArray[np.integer],
        numbers: Sequence[int],
        stops: Sequence[int],
        lengths: Sequence[int],
        ends: Sequence[int],
        mask: Mask | None,
        ignored: Mask | None,
        *,
        last_is_label: bool,
    ) -> None:
        """Note documents, each with a row at least.

        Args:
            ids: Tokens of all of them, side by side.
            numbers: Number of each.
            stops: Index into `ids` after the last token of each.
            lengths: Tokens of each.
            ends: The row after the last one of each.
            mask: Which of the tokens may be a target.
            ignored: Which rows have no label although a token of the same document follows.
            last_is_label: The last token of each is not a row, but the label of the row before it.
        """
        labels = self._labels.own_edges(ids, stops, ignored, last_is_label=last_is_label)
        if self._looks_ahead:
            firsts, lasts = np.subtract(stops, lengths), np.subtract(stops, 1)
            before = np.concatenate(([self._last_token], ids[lasts[:-1]]))
            may_be_target = np.ones(len(stops), np.bool_) if mask is None else mask[firsts]
            found = self._labels.document_edges(before, ids[firsts], may_be_target).tolist()
            if self._edge_labels and not self._is_decided[-1]:
                self._edge_labels[-1] = found[0]
            if not last_is_label:
                labels[:-1] = found[1:]
            self._last_token = ids.item(stops[-1] - 1)
        self.ends += ends
        self._numbers += numbers
        self._edge_labels += labels
        self._is_decided += [last_is_label] * len(labels)

    def forget(self, row: int) -> None:
        """Drop the documents that end at or before `row`."""
        if passed := bisect_right(self.ends, row):
            self.start = self.ends[passed - 1]
            for column in (self.ends, self._numbers, self._edge_labels, self._is_decided):
                del column[:passed]

    def cut(self, begin: int, ends: Sequence[int]) -> Iterator[PackCut]:
        """Return the packs that end before the rows `ends`, the first from row `begin` of the first document."""
        all_ends, first = self.ends, 0
        for end in ends:
            last = bisect_left(all_ends, end, first)  # the documents `first` to `last` have rows here
            first_start = all_ends[first - 1] if first else self.start
            last_start = all_ends[last - 1] if last else self.start
            is_cut = all_ends[last] > end
            edge_labels = self._edge_labels[first : last + 1]
            if not (is_cut or self._cross or self._is_decided[last]):
                edge_labels[-1] = IGNORE_INDEX  # what follows is in another pack
            documents = self._numbers[first : last + 1]
            yield PackCut(
                begin,
                end,
                [*all_ends[first:last], end],
                edge_labels,
                documents,
                begin - first_start,
                documents[-1] + (not is_cut),
                end - last_start if is_cut else 0,
                is_cut,
                is_cut and last_start >= begin,
            )
            begin, first = end, last if is_cut else last + 1
