"""Whose message each token of a conversation is of: what `peek` gives a colour to, and no run needs.

In:  a run; later the tokens of a segment. Out: the run with encoders that remember what they made; the role of each
token.
Invariants: the packs stay the same. A role is found by the template itself: it is asked which tokens are trained where
the messages of that role alone are. A model's own template tells the assistant's messages, a function nothing.
"""

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack.chat.encoder import ChatEncoder
from streampack.chat.jinja import JinjaTemplate
from streampack.chat.templates import BuiltInTemplate, TrainOn
from streampack.errors import RecordError
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.run import Run
from streampack.records import Mask, Message, Tokens

_REMEMBERED = 4_096
"""So many conversations: more than lanes hold at a time."""


class _Encoded(NamedTuple):
    encoder: ChatEncoder
    messages: Sequence[Message]
    context: Mapping[str, Any] | None
    tokens: Tokens


class Roles:
    """The conversations that the lanes of a run have made tokens of."""

    def __init__(self) -> None:
        self._encoded: deque[_Encoded] = deque(maxlen=_REMEMBERED)

    def watching(self, run: Run) -> Run:
        """The same run; its conversations are remembered."""
        watched = {id(pipeline): self._watched(pipeline) for pipeline in run.pipelines}
        sources = [
            source._replace(pipelines=tuple(watched[id(pipeline)] for pipeline in source.pipelines))
            for source in run.sources
        ]
        return run._replace(sources=tuple(sources))

    def _watched(self, pipeline: Pipeline) -> Pipeline:
        encoder = pipeline.documents.chat
        if not isinstance(encoder, ChatEncoder):
            return pipeline

        def remembering(messages: Sequence[Message], context: Mapping[str, Any] | None = None) -> tuple[Tokens, Mask]:
            tokens, mask = encoder(messages, context)
            self._encoded.append(_Encoded(encoder, messages, context, tokens))
            return tokens, mask

        documents = dataclasses.replace(pipeline.documents, chat=remembering)
        return dataclasses.replace(pipeline, documents=documents)

    def of(self, tokens: Sequence[int], row: int) -> list[str] | None:
        """The role of each token of a segment, which begins at a document's `row`; None: it is of no conversation."""
        wanted = np.array(tokens)
        for each in reversed(self._encoded):
            if np.array_equal(each.tokens[row : row + len(wanted)], wanted):
                return _roles(each)[row : row + len(wanted)]
        return None


def _roles(encoded: _Encoded) -> list[str]:
    messages, template = encoded.messages, encoded.encoder.template
    masks: dict[str, NDArray[np.bool_]] = {}
    if isinstance(template, BuiltInTemplate):
        for name in dict.fromkeys(str(message["role"]) for message in messages):
            alone = [{**each, "weight": int(each["role"] == name)} for each in messages]
            masks[name] = _mask(encoded, alone, TrainOn.ALL)
    elif isinstance(template, JinjaTemplate):  # it tells the assistant's messages only
        masks["assistant"] = _mask(encoded, messages, TrainOn.ASSISTANT)
    roles = [""] * len(encoded.tokens)
    for name, mask in masks.items():
        for index in np.flatnonzero(mask).tolist():
            roles[index] = name
    return roles


def _mask(encoded: _Encoded, messages: Sequence[Message], train_on: TrainOn) -> NDArray[np.bool_]:
    """Which tokens are trained; none where the template refuses these messages."""
    try:
        return dataclasses.replace(encoded.encoder, train_on=train_on)(messages, encoded.context)[1]
    except RecordError:
        return np.zeros(len(encoded.tokens), np.bool_)
