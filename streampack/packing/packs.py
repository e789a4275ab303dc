"""The forms of a pack: as the packer makes it, in a block beside others, and with everything spelled out.

    PackRows, one pack    -- blocks.stack -->          PackBlock, B packs, compact: what a worker sends
    PackBlock             -- blocks.expand_block -->   the arrays of a batch, [B, seq_len]
    PackRows              -- blocks.spell_out -->      Pack: what `streampack.pack` gives

Invariants: a pack has at most seq_len rows, the rest is padding; segments are numbered 1, 2, 3, ... in each pack.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack.records import Counts, Mask, Tokens


class Span(NamedTuple):
    """Rows of one document in a pack: `length` input rows from `offset` of document number `document`."""

    document: int
    offset: int
    length: int


class PackRows(NamedTuple):
    """One pack as the packer makes it: only what labels, positions and segments cannot be derived from.

    Row i of segment s has the label `tokens[i + 1]`, except the segment's last row, whose label is `edge_labels[s]`,
    and rows under `ignored`, whose label is -100. Rows from `len(tokens)` to seq_len are padding.
    """

    tokens: Tokens
    """int32 [n], n <= seq_len: the real input rows."""
    seq_lens: NDArray[np.int32]
    """int32 [k]: rows of each segment; their sum is n."""
    edge_labels: NDArray[np.int32]
    """int32 [k]: the label of each segment's last row."""
    ignored: Mask | None
    """bool [n], or None where no row but a segment's last one can be masked."""
    num_targets: int
    documents: Sequence[int]
    """Number of each segment's document, [k]."""
    offsets: Sequence[int]
    """Rows of each segment's document that stand before the segment, in other packs: [k], or fewer; the rest are 0."""
    next_document: int
    """With `next_row`, `given` and `rest`: where the following pack begins. The document may not have been fed yet."""
    next_row: int
    counts: Counts = Counts()
    """Of this pack, and of what was left out between the pack before and it."""
    given: int = 0
    """Under best fit: packs that are out of the window that begins with row `next_row` of `next_document`."""
    last_document: int = 0
    """Of that window, where `given` is not 0."""
    rest: int = 0
    """Where rows are cut in another way since: tokens of what these packs have left of the window that are out, too."""
    is_closed: bool = False
    """Whether the next pack begins with a document, and this one did not wait for that document to be fed."""

    @property
    def spans(self) -> tuple[Span, ...]:
        """One per segment."""
        offsets = chain(self.offsets, repeat(0))
        return tuple(map(Span, self.documents, offsets, self.seq_lens.tolist()))


@dataclass(frozen=True, slots=True, kw_only=True)
class PackBlock:
    """Some packs side by side, still compact: what a worker sends and what `expand_block` turns into a batch."""

    tokens: NDArray[np.int32]
    """int32 [B, seq_len], padded with pad_id."""
    num_segments: NDArray[np.int32]
    """int32 [B]: real segments of each pack."""
    seq_lens: NDArray[np.int32]
    """int32 [S], S = num_segments.sum(): rows of each segment, pack by pack."""
    edge_labels: NDArray[np.int32]
    """int32 [S]: the label of each segment's last row."""
    ignored: NDArray[np.bool_] | None
    """bool [B, seq_len], or None: rows other than edges and padding whose label is -100."""
    num_targets: NDArray[np.int64]
    """int64 [B]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """One pack with everything spelled out; what `streampack.pack` gives. All arrays are int64 [seq_len]."""

    tokens: NDArray[np.int64]
    labels: NDArray[np.int64]
    """Already shifted: `labels[i]` is the target of `tokens[i]`, -100 where there is none."""
    position_ids: NDArray[np.int64]
    """Restart at 0 in every segment, also where a pack begins inside a document, and on the padding."""
    segment_ids: NDArray[np.int64]
    """1, 2, 3, ... in the pack; 0 on padding."""
    seq_lens: NDArray[np.int64]
    """int64 [k]: rows of each real segment."""
    num_tokens: int
    """Real input rows."""
    num_targets: int
    spans: tuple[Span, ...]
    """One per real segment: (document ordinal, offset in the document, length), in input rows."""
