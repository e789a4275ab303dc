"""A document in, the documents that a user's transform makes of it out.

Never: a part of what the transform returned, if another part is not a document or is too long; a draw that depends on
       more than the document's place, from `rng` or from the global generators.
"""

import dataclasses
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from streampack import hashing
from streampack.documents.contents import BadContentError, check_size, check_text_size
from streampack.documents.conversations import check_messages
from streampack.documents.draws import seed_generators
from streampack.documents.npy import array_kind, int32_tokens
from streampack.errors import ConfigError
from streampack.records import Document

Transform = Callable[[Document, np.random.Generator], Document | list[Document] | None]


def transformed(
    document: Document, transform: Transform, place: tuple[int, ...], limit: int, vocab_size: int | None = None
) -> list[Document]:
    """All parts that the transform makes of a document, checked before the first of them is given.

    `place`: what seeds all generators for it: the run's seed, and where the document stands. `limit`: bytes of a part
    at most. `vocab_size`: token ids must be below it; None: nothing tells.
    """
    name = getattr(transform, "__qualname__", type(transform).__qualname__)
    where = f"transform {name}, called with {document.url}, key {document.key!r}, record {document.record}"
    rng = hashing.generator(*place)
    seed_generators(place)
    try:
        result = transform(document, rng)
    except Exception as error:  # a function of the user may raise anything
        with suppress(Exception):  # an exception that refuses it is raised as it is
            error.add_note(f"raised by {where}")
        raise
    parts = result if isinstance(result, (list, tuple)) else () if result is None else (result,)
    try:
        return [_checked_part(part, document, index, limit, vocab_size) for index, part in enumerate(parts)]
    except ValueError as error:
        raise ConfigError(f"{where}, returned {error}") from None


def _checked_part(
    part: object, document: Document, index: int, limit: int, vocab_size: int | None
) -> Document:
    """A part that a transform returned, with its key, URL and indexes; a ValueError says what is wrong with it."""
    if not isinstance(part, Document):
        remedy = "return dataclasses.replace(document, text=...), a list of documents or None"
        raise ValueError(f"a {type(part).__name__}: {remedy}")
    text, tokens, mask, messages = part.text, part.tokens, part.loss_mask, part.messages
    if document.messages is not None and text is not None:
        raise ValueError("a text made of a conversation: return messages, or tokens and a loss_mask")
    if (text is not None) + (tokens is not None) + (messages is not None) != 1:
        raise ValueError("a document without exactly one of text, tokens and messages: set the others to None")
    if tokens is not None:
        tokens = int32_tokens(tokens, vocab_size)
        check_size(4 * len(tokens), limit)
        is_mask = isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == tokens.shape
        if mask is not None and not is_mask:
            raise ValueError(f"a loss_mask that is {array_kind(mask)}; {len(tokens)} tokens need a bool array [n]")
    elif messages is not None:
        if document.messages is None or mask is not None:
            raise ValueError("messages where there were none, or with a loss_mask, which only the chat template makes")
        try:
            messages = check_messages(messages, limit)
        except BadContentError as bad:
            raise ValueError(f"messages that cannot be used: {bad}") from None
    elif not isinstance(text, str):
        raise ValueError(f"a document whose text is a {type(text).__name__}, not a str")
    elif mask is not None:
        raise ValueError("a document of text with a loss_mask: it says which tokens are targets, so give tokens")
    else:
        check_text_size(text, limit)
    return dataclasses.replace(
        document, text=text, tokens=tokens, messages=messages, context=part.context, loss_mask=mask, part=index
    )
