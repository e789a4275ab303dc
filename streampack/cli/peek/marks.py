"""The text of a document in a pack, in stretches that are marked or not: one truth for the terminal and for the page.

In:  a `View`, one of its segments, and how it is looked at. Out: the stretches of its text, in order.

    rows      a  b  EOS         each row by its input; marked: rows without a label                a b ⟨EOS⟩
    targets   a  b  EOS         each token; marked: tokens that are the label of the row before    a ⟦b EOS⟧
"""

import itertools
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from streampack.cli.peek.pieces import Pieces
from streampack.cli.peek.view import Segment, View
from streampack.records import IGNORE_INDEX


class Looking(StrEnum):
    """What of a pack is marked."""

    ROWS = "rows"
    """Rows that have no label. The default."""
    TARGETS = "targets"
    """Tokens that are trained: each is the label of the row before it."""


class Stretch(NamedTuple):
    """Text that looks the same."""

    text: str
    is_marked: bool
    is_control: bool
    role: str
    """Of the message that it is of; "" where there is none."""


class _Token(NamedTuple):
    text: str
    is_marked: bool
    is_control: bool
    role: str


def stretches(view: View, segment: Segment, pieces: Pieces, looking: Looking) -> list[Stretch]:
    """The text of a segment."""
    tokens = _tokens(view, segment, pieces, looking)
    return [Stretch("".join(each.text for each in run), *key) for key, run in itertools.groupby(tokens, _look)]


def _look(token: _Token) -> tuple[bool, bool, str]:
    return token[1:]


def _tokens(view: View, segment: Segment, pieces: Pieces, looking: Looking) -> Iterator[_Token]:
    first, stop = segment.first_row, segment.first_row + segment.num_rows
    tokens, labels = view.tokens[first:stop], view.labels[first:stop]
    roles = view.roles[first:stop] if view.roles is not None else [""] * len(tokens)
    if looking is Looking.ROWS:
        marked = [label == IGNORE_INDEX for label in labels]
    else:
        before = [IGNORE_INDEX if first == 0 else view.labels[first - 1], *labels[:-1]]
        marked = [label == token for label, token in zip(before, tokens, strict=True)]
        if not segment.edge.masked and segment.edge.is_own:  # the last target is no input of the pack
            tokens, marked, roles = [*tokens, labels[-1]], [*marked, True], [*roles, roles[-1]]
    texts = pieces.texts(tokens)
    for token, text, is_marked, role in zip(tokens, texts, marked, roles, strict=True):
        # A line break is shown, and made: text and code keep their look.
        yield _Token(text.replace("↵", "↵\n"), is_marked, pieces.is_control(token), role)
