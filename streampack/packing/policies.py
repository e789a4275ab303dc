"""Where documents meet: the choices, the labels of the rows there, and how compact packs become a batch.

In: token ids of documents, or packs as the packer makes them. Out: labels, positions and segments. Pure functions on
numpy arrays. A boundary is where the packer's bookkeeping says that a document ends; it is never inferred from a
token's value. Only the two token-valued policies look at values, and they are named after that.

Row i of the stream of documents is (input S[i], label y(i)). y(i) is -100 where S[i+1] does not exist, is padding or
may not be a target (`loss_mask`). Otherwise the policy decides. Let A1 A2 be the end of a document, B1 the start of
the next one:

    boundary              label of A1   label of A2
    keep                  A2            B1
    mask                  A2            -100
    trim                  A2            there is no such row
    mask_bos_target       A2            B1, but no row has the label BOS
    mask_eos_input        A2            B1, but no row with the input EOS has a label
    ReplaceBoundary(id)   A2            id
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from streampack.errors import ConfigError, as_choice, as_integer
from streampack.records import IGNORE_INDEX, Mask, Pack, PackBlock, PackRows

INT32 = np.iinfo(np.int32)


class BoundaryPolicy(StrEnum):
    """What becomes of the row whose input is a document's last token."""

    KEEP = "keep"
    """Its label is the next document's first token: EOS -> BOS is trained."""
    MASK = "mask"
    """It stays as input, its label is -100. The default."""
    TRIM = "trim"
    """It is left out: labels are shifted per document, n tokens make n - 1 rows."""
    MASK_BOS_TARGET = "mask_bos_target"
    """As keep, but -100 wherever the label would be BOS, also inside a document."""
    MASK_EOS_INPUT = "mask_eos_input"
    """As keep, but -100 wherever the input is EOS, also inside a document."""


@dataclass(frozen=True, slots=True)
class ReplaceBoundary:
    """The label of a document's last row is `token_id` where another document follows."""

    token_id: int

    def __post_init__(self) -> None:
        token_id = as_integer(self.token_id, "ReplaceBoundary.token_id", low=INT32.min, high=INT32.max)
        object.__setattr__(self, "token_id", token_id)
        if self.token_id == IGNORE_INDEX:
            raise ConfigError(f'ReplaceBoundary({IGNORE_INDEX}) masks every boundary; boundary="mask" says that.')


Boundary = BoundaryPolicy | ReplaceBoundary


def as_boundary(value: object) -> Boundary:
    """Return the policy that `value` is or names."""
    if isinstance(value, ReplaceBoundary):
        return value
    try:
        return as_choice(BoundaryPolicy, value, "boundary")
    except ConfigError as error:
        raise ConfigError(f"{error} Or give ReplaceBoundary(token_id).") from None


def check_ids(boundary: Boundary, *, bos_id: int | None, eos_id: int | None) -> None:
    """Raise a ConfigError where a token-valued policy lacks the token that it looks for."""
    if boundary is BoundaryPolicy.MASK_BOS_TARGET and bos_id is None:
        raise ConfigError('boundary="mask_bos_target" needs bos_id; without a BOS token use boundary="mask".')
    if boundary is BoundaryPolicy.MASK_BOS_TARGET and bos_id == eos_id:
        raise ConfigError(
            f'boundary="mask_bos_target" with bos_id == eos_id == {bos_id} would mask every EOS target; '
            'boundary="mask" finds document ends without looking at token values.'
        )
    if boundary is BoundaryPolicy.MASK_EOS_INPUT and eos_id is None:
        raise ConfigError('boundary="mask_eos_input" needs eos_id; without an EOS token use boundary="mask".')


def looks_ahead(boundary: Boundary) -> bool:
    """Say whether the label of a document's last row depends on the document that follows."""
    return boundary not in (BoundaryPolicy.MASK, BoundaryPolicy.TRIM)


def ignored_rows(
    tokens: NDArray[np.integer], loss_mask: Mask | None, boundary: Boundary, *, bos_id: int | None, eos_id: int | None
) -> Mask | None:
    """Return which rows of a document have label -100 though a token of the same document follows them.

    bool [n - 1]: the last token's row is not among them (`document_edge` has it). None: no row at all.
    """
    # loss_mask says which tokens may be *targets*: token i + 1 is the target of row i.
    ignored = None if loss_mask is None else ~loss_mask[1:]
    found: Mask | None = None
    if boundary is BoundaryPolicy.MASK_BOS_TARGET:
        found = tokens[1:] == bos_id
    elif boundary is BoundaryPolicy.MASK_EOS_INPUT:
        found = tokens[:-1] == eos_id
    if found is not None:
        ignored = found if ignored is None else ignored | found
    return ignored if ignored is not None and np.count_nonzero(ignored) else None


def document_edges(
    last: NDArray[np.integer],
    following: NDArray[np.integer],
    may_be_target: Mask,
    boundary: Boundary,
    *,
    bos_id: int | None,
    eos_id: int | None,
) -> NDArray[np.int64]:
    """Return the labels of documents' last rows, under a policy that looks ahead; all arrays are [n].

    `last` are their inputs, `following` the first tokens of the documents behind them, each a target or not. Where
    nothing follows, the label is -100 under every policy.
    """
    labels = following.astype(np.int64)
    if isinstance(boundary, ReplaceBoundary):
        labels[:] = boundary.token_id
    ignored = ~may_be_target
    if boundary is BoundaryPolicy.MASK_BOS_TARGET:
        ignored |= following == bos_id
    elif boundary is BoundaryPolicy.MASK_EOS_INPUT:
        ignored |= last == eos_id
    labels[ignored] = IGNORE_INDEX
    return labels


def stack(rows: Sequence[PackRows], *, seq_len: int, pad_id: int) -> PackBlock:
    """Return the packs side by side, each padded to `seq_len`; one without rows becomes all padding."""
    none = np.empty(0, np.int32)
    tokens, seq_lens, edge_labels = [none], [none], [none]  # np.concatenate wants at least one array
    num_segments: list[int] = []
    num_targets: list[int] = []
    ignored: Mask | None = None
    for index, pack in enumerate(rows):
        size = pack.tokens.size
        tokens.append(pack.tokens)
        if size < seq_len:
            tokens.append(np.full(seq_len - size, pad_id, np.int32))
        seq_lens.append(pack.seq_lens)
        edge_labels.append(pack.edge_labels)
        num_segments.append(pack.seq_lens.size)
        num_targets.append(pack.num_targets)
        if pack.ignored is not None:
            if ignored is None:
                ignored = np.zeros((len(rows), seq_len), np.bool_)
            ignored[index, :size] = pack.ignored
    return PackBlock(
        tokens=np.concatenate(tokens).reshape(len(rows), seq_len),
        num_segments=np.array(num_segments, np.int32),
        seq_lens=np.concatenate(seq_lens),
        edge_labels=np.concatenate(edge_labels),
        ignored=ignored,
        num_targets=np.array(num_targets, np.int64),
    )


def expand_block(block: PackBlock) -> dict[str, NDArray[np.int64]]:
    """Return "tokens", "labels", "position_ids" and "segment_ids" of a block, each int64 [B, seq_len].

    They are new, contiguous, and overlap neither each other nor the block.
    """
    # The caches are cold here, as documents were read and packed since the batch before: half of the time goes into
    # writing the four arrays at all, most of the rest into what else is as long; so that is little, and int32.
    num_packs, seq_len = shape = block.tokens.shape
    lengths, ends, ids = _stretches(block)
    # One allocation for three: with one for each, malloc gives the pages of all of them back to the system, batch
    # after batch, and their faults cost more than all that is done here. The fourth saves a copy of it.
    tokens, labels, position_ids = np.empty((3, num_packs * seq_len), np.int64)
    segment_ids = ids.repeat(lengths)
    tokens[:] = block.tokens.reshape(-1)
    labels[:-1] = tokens[1:]
    if block.ignored is not None:
        labels[np.flatnonzero(block.ignored)] = IGNORE_INDEX
    if lengths is block.seq_lens:
        labels[ends - 1] = block.edge_labels
    else:
        labels[ends[ids > 0] - 1] = block.edge_labels
        for end, length in zip(ends[ids == 0].tolist(), lengths[ids == 0].tolist(), strict=True):
            labels[end - length : end] = IGNORE_INDEX
    upwards = np.arange(seq_len)
    np.concatenate([upwards[:length] for length in (0, *lengths.tolist())], out=position_ids)  # one array at least
    arrays = {"tokens": tokens, "labels": labels, "position_ids": position_ids, "segment_ids": segment_ids}
    return {name: array.reshape(shape) for name, array in arrays.items()}


def _stretches(block: PackBlock) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Rows, end and id of each stretch of rows: the segments, and behind each pack's own its padding with id 0.

    Where no pack has padding, the rows are `block.seq_lens` itself.
    """
    counts = block.num_segments.tolist()
    ids: list[int] = []
    ends = block.seq_lens.cumsum()
    if ends.size and ends[-1] == block.tokens.size:
        for count in counts:
            ids += range(1, count + 1)
        return block.seq_lens, ends, np.array(ids, np.int64)
    seq_len, seq_lens = block.tokens.shape[1], block.seq_lens.tolist()
    rows: list[int] = []
    first = 0
    for count in counts:
        own = seq_lens[first : first + count]
        first += count
        rows += own
        rows.append(seq_len - sum(own))
        ids += range(1, count + 1)
        ids.append(0)
    lengths = np.array(rows, np.int32)
    return lengths, lengths.cumsum(), np.array(ids, np.int64)


def spell_out(rows: PackRows, *, seq_len: int, pad_id: int) -> Pack:
    """Return one pack with its labels, positions and segments."""
    arrays = expand_block(stack([rows], seq_len=seq_len, pad_id=pad_id))
    return Pack(
        tokens=arrays["tokens"][0],
        labels=arrays["labels"][0],
        position_ids=arrays["position_ids"][0],
        segment_ids=arrays["segment_ids"][0],
        seq_lens=rows.seq_lens.astype(np.int64),
        num_tokens=rows.tokens.size,
        num_targets=rows.num_targets,
        spans=rows.spans,
    )
