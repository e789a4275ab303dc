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

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from streampack.errors import ConfigError, as_choice, as_integer
from streampack.records import IGNORE_INDEX, Mask

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
