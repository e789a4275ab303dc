"""Where documents meet: the policies, and the labels that they give to the rows there.

In:  token ids of documents. Out: labels of rows. Pure functions on NumPy arrays.
Never: a boundary that is inferred from a token's value; it is where the packer says that a document ends. Only the two
token-valued policies look at values, and their names say so.

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
    """As keep, but -100 wherever the label would be BOS, also inside a document; BOS and EOS must differ."""
    MASK_EOS_INPUT = "mask_eos_input"
    """As keep, but -100 wherever the input is EOS, also inside a document; BOS and EOS must differ."""


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


def has_best_fit(boundary: BoundaryPolicy | ReplaceBoundary | str) -> bool:
    """Whether best fit works with a policy: no label depends on the document that comes next."""
    return as_boundary(boundary) in (BoundaryPolicy.MASK, BoundaryPolicy.TRIM)


def without_neighbours(boundary: Boundary) -> Boundary:
    """Return the policy; a ConfigError if a label could depend on the document that comes next."""
    if has_best_fit(boundary):
        return boundary
    name = boundary if isinstance(boundary, ReplaceBoundary) else f'"{boundary}"'
    raise ConfigError(
        f'packing="best_fit" does not work with boundary={name}: it gives a document\'s last row a label from the '
        'document that comes next, and best fit puts others beside it. Choose boundary="mask" or "trim", or '
        'packing="wrap".'
    )


@dataclass(frozen=True, slots=True)
class BoundaryLabels:
    """A policy, and the tokens that the token-valued ones look for.

    Raises:
        ConfigError: A token-valued policy has no token to look for, or one that begins and ends documents.
    """

    boundary: Boundary
    bos_id: int | None = None
    eos_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("bos_id", "eos_id"):
            token_id = getattr(self, name)
            if token_id is not None:
                object.__setattr__(self, name, as_integer(token_id, name, low=INT32.min, high=INT32.max))
        boundary, bos_id, eos_id = self.boundary, self.bos_id, self.eos_id
        if boundary is BoundaryPolicy.MASK_BOS_TARGET and bos_id is None:
            raise ConfigError('boundary="mask_bos_target" needs bos_id; without a BOS token use boundary="mask".')
        if boundary is BoundaryPolicy.MASK_BOS_TARGET and bos_id == eos_id:
            raise ConfigError(
                f'boundary="mask_bos_target" with bos_id == eos_id == {bos_id} would mask every EOS target; '
                'boundary="mask" finds document ends without looking at token values.'
            )
        if boundary is BoundaryPolicy.MASK_EOS_INPUT and eos_id is None:
            raise ConfigError('boundary="mask_eos_input" needs eos_id; without an EOS token use boundary="mask".')
        if boundary is BoundaryPolicy.MASK_EOS_INPUT and bos_id == eos_id:
            raise ConfigError(
                f'boundary="mask_eos_input" with bos_id == eos_id == {eos_id} would mask each row of a BOS, too: the '
                'first token of a document would never be trained. boundary="mask" finds document ends without looking '
                "at token values; or leave BOS out."
            )

    @property
    def trims(self) -> bool:
        """Whether a document's last token is not a row, but only the label of the row before it."""
        return self.boundary is BoundaryPolicy.TRIM

    @property
    def looks_ahead(self) -> bool:
        """Whether the label of a document's last row depends on the document that follows."""
        return self.boundary not in (BoundaryPolicy.MASK, BoundaryPolicy.TRIM)

    def ignored_rows(self, tokens: NDArray[np.integer], loss_mask: Mask | None) -> Mask | None:
        """Return which rows of a document have label -100 though a token of the same document follows them.

        bool [n - 1]: the last token's row is not among them (`document_edges` has it). None: no row at all.
        """
        # loss_mask says which tokens may be *targets*: token i + 1 is the target of row i.
        ignored = None if loss_mask is None else ~loss_mask[1:]
        found: Mask | None = None
        if self.boundary is BoundaryPolicy.MASK_BOS_TARGET:
            found = tokens[1:] == self.bos_id
        elif self.boundary is BoundaryPolicy.MASK_EOS_INPUT:
            found = tokens[:-1] == self.eos_id
        if found is not None:
            ignored = found if ignored is None else ignored | found
        return ignored if ignored is not None and np.count_nonzero(ignored) else None

    def own_edges(
        self, ids: NDArray[np.integer], stops: Sequence[int], ignored: Mask | None, *, last_is_label: bool
    ) -> list[int]:
        """Return the labels of documents' last rows as far as the documents themselves decide, [n].

        Under "mask" they are -100. Under a policy that looks ahead, too, until the next document has come
        (`document_edges`). Under "trim", and where `overflow` has cut a document, each is the document's last token.

        Args:
            ids: Tokens of all documents, side by side.
            stops: Index into `ids` after the last token of each.
            ignored: Which rows have no label, although a token of the same document follows.
            last_is_label: The last token of each is not a row, but the label of the row before it.
        """
        if not last_is_label:
            return [IGNORE_INDEX] * len(stops)
        return [IGNORE_INDEX if ignored is not None and ignored[stop - 2] else ids.item(stop - 1) for stop in stops]

    def document_edges(
        self, last: NDArray[np.integer], following: NDArray[np.integer], may_be_target: Mask
    ) -> NDArray[np.int64]:
        """Return the labels of documents' last rows, under a policy that looks ahead; all arrays are [n].

        `last` are their inputs, `following` the first tokens of the documents after them, `may_be_target`
        which of those may be targets. Where nothing follows, the label is -100 under every policy.
        """
        labels = following.astype(np.int64)
        if isinstance(self.boundary, ReplaceBoundary):
            labels[:] = self.boundary.token_id
        ignored = ~may_be_target
        if self.boundary is BoundaryPolicy.MASK_BOS_TARGET:
            ignored |= following == self.bos_id
        elif self.boundary is BoundaryPolicy.MASK_EOS_INPUT:
            ignored |= last == self.eos_id
        labels[ignored] = IGNORE_INDEX
        return labels
