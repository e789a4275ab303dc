"""How rows become packs: the public record `Packing`, and the choices in it.

In:  what a user writes, a record or its shorthand: `Packing("next_fit", tail="drop")`, "next_fit".
Out: a record whose options work together, or a ConfigError. From here on nobody checks them again.
"""

import copy
import dataclasses
from dataclasses import dataclass
from enum import StrEnum

from streampack.errors import ConfigError, as_bool, as_choice, as_integer, warn

DEFAULT_WINDOW = 64
_MOST_PACKS = 65_536
"""Of a window."""
_BYTES_PER_ROW = 8
"""Of a window: a token, its loss mask, and what is known of pieces."""
_BYTES_PER_DOCUMENT = 320
"""Of a window: where it comes from, its key, its length."""
_ROWS_PER_DOCUMENT = 64
"""A window has at most a document for so many rows: with shorter ones it is complete before it has all its rows."""
_LEAST_DOCUMENTS = 128
"""So many documents a window may have in any case."""


class PackingKind(StrEnum):
    """How rows become packs."""

    WRAP = "wrap"
    """Rows in order, cut every seq_len. The default."""
    NEXT_FIT = "next_fit"
    """Whole documents in order of arrival; one that does not fit into the open pack begins the next one.

    A label is always in the same pack as its row, except where `overflow` split or truncated a document."""
    BEST_FIT = "best_fit"
    """Whole documents, those of a window of packs together: the longest first, each where it leaves the least room.

    With boundary="mask" or "trim"."""


class Overflow(StrEnum):
    """What a packing of whole documents does with a document of more rows than a pack has."""

    SPLIT = "split"
    """It fills full packs, and its rest is packed like a document. The default. No target is lost."""
    TRUNCATE = "truncate"
    """Its first seq_len rows; the last one has its real next token as label. What is cut off is counted."""
    DROP = "drop"
    """The document is left out, and counted."""
    ERROR = "error"
    """DocumentTooLongError."""


class Tail(StrEnum):
    """What becomes of the rows that do not fill a pack when the documents end."""

    PAD = "pad"
    """They become the last pack, padded. The default."""
    DROP = "drop"
    """They are left out, and counted."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How rows become packs; a plain string such as "next_fit" is the shorthand for `Packing("next_fit")`.

    Args:
        kind: "wrap" cuts the rows every seq_len; "next_fit" keeps documents whole, in order of arrival; "best_fit"
            keeps them whole and fills packs best.
        overflow: What a packing of whole documents does with a document of more rows than a pack has: "split",
            "truncate", "drop" or "error". None: "split", for conversations "error".
        tail: What becomes of the rows that do not fill a last pack: "pad" or "drop".
        lookahead: False: the last row of a full pack has no label, as for a model that shifts labels itself; with
            "wrap" only.
        window: Of "best_fit": how many packs are filled together. A lane holds the tokens of a window, and a resume
            reads and tokenizes one again.

    Raises:
        ConfigError: An option that is not known, or two that contradict each other.
    """

    kind: PackingKind | str
    overflow: Overflow | str | None = None
    tail: Tail | str = Tail.PAD
    lookahead: bool = True
    window: int = DEFAULT_WINDOW

    def __post_init__(self) -> None:
        kind = as_choice(PackingKind, self.kind, "packing")
        overflow = None if self.overflow is None else as_choice(Overflow, self.overflow, "overflow")
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "overflow", overflow)
        object.__setattr__(self, "tail", as_choice(Tail, self.tail, "tail"))
        object.__setattr__(self, "lookahead", as_bool(self.lookahead, "lookahead"))
        object.__setattr__(self, "window", as_integer(self.window, "packing.window", low=1, high=_MOST_PACKS))
        if kind is not PackingKind.WRAP and not self.lookahead:
            raise ConfigError(f'lookahead=False works with packing="wrap" only, not with "{kind}".')
        if kind is PackingKind.WRAP and overflow not in (None, Overflow.SPLIT):
            warn(
                f'overflow="{overflow}" does nothing under packing="wrap", which cuts documents every seq_len.',
            )
        if kind is not PackingKind.BEST_FIT and self.window != DEFAULT_WINDOW:
            warn(
                f'packing.window={self.window} does nothing under packing="{kind}"; "best_fit" fills the packs of a '
                "window together.",
            )
            object.__setattr__(self, "window", DEFAULT_WINDOW)

    @property
    def keeps_documents_whole(self) -> bool:
        """Whether a document is cut only where it is longer than a pack."""
        return self.kind is not PackingKind.WRAP

    @property
    def may_refuse(self) -> bool:
        """Whether a document may be too long for a pack, which is an error."""
        return self.keeps_documents_whole and self.overflow is Overflow.ERROR

    @property
    def has_windows(self) -> bool:
        """Whether the documents of some packs are held and packed together."""
        return self.kind is PackingKind.BEST_FIT

    def rows_kept(self, rows: int, seq_len: int) -> int:
        """How many rows of a document of `rows` come into packs; the others `overflow` takes away."""
        if not self.keeps_documents_whole or rows <= seq_len or self.overflow in (None, Overflow.SPLIT):
            return rows
        return seq_len if self.overflow is Overflow.TRUNCATE else 0

    def window_bytes(self, seq_len: int) -> int:
        """Bytes that the documents of a window take, about: their tokens and loss masks, and what is known of each."""
        if not self.has_windows:
            return 0
        # One piece more: the last one is in the window as a whole.
        return _BYTES_PER_ROW * (self.window + 1) * seq_len + _BYTES_PER_DOCUMENT * self.window_documents(seq_len)

    def window_documents(self, seq_len: int) -> int:
        """How many documents a window has at most; those that `overflow` drops count too."""
        return max(self.window * seq_len // _ROWS_PER_DOCUMENT, _LEAST_DOCUMENTS)

    def without_lookahead(self) -> "Packing":
        """The same with `lookahead=False`, for "wrap"; without the warnings that were given when this was made."""
        assert not self.keeps_documents_whole
        other = copy.copy(self)
        object.__setattr__(other, "lookahead", False)
        return other


def as_packing(value: object = None, *, conversations: bool = False) -> Packing:
    """Return the record that `value` is, names or stands for, with `overflow` decided.

    Args:
        value: A `Packing`, a kind or its name; None: "wrap", for conversations "next_fit".
        conversations: Whether the documents are conversations, which are not split unless the user asks for it.

    Raises:
        ConfigError: A kind that is not known.
    """
    if value is None:
        value = PackingKind.NEXT_FIT if conversations else PackingKind.WRAP
    packing = value if isinstance(value, Packing) else Packing(as_choice(PackingKind, value, "packing"))
    if packing.overflow is None:
        is_strict = conversations and packing.keeps_documents_whole
        packing = dataclasses.replace(packing, overflow=Overflow.ERROR if is_strict else Overflow.SPLIT)
    return packing

