"""Messages in, token ids and loss mask out: which parts are text, control tokens and targets.

In:  the messages of one conversation, each a mapping with at least "role" and "content", both strings.
Out: int32 ids [n], and bool [n]: True where the token may be a target.

    messages --template--> parts: texts and control tokens, each trained or not --tokenizer--> ids, loss mask

Never: a search for a token to find out what is trained; the control token of the text "<|end|>" in a message; a
conversation that is cut. The built-in templates are in `templates`, a model's own in `jinja`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streampack.chat.jinja import is_template, read_template
from streampack.chat.options import Chat
from streampack.chat.templates import (
    BUILT_IN,
    BuiltInTemplate,
    Control,
    FunctionTemplate,
    Template,
    TrainOn,
    control_tokens_of,
)
from streampack.errors import ConfigError, RecordError
from streampack.records import ControlToken, Mask, Message, Tokenizer, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatEncoder:
    """A template and a tokenizer, which make token ids and a loss mask of one conversation after another."""

    template: Template
    tokenizer: Tokenizer
    train_on: TrainOn
    tokens: Mapping[str, ControlToken]
    """The control tokens that the template's parts name."""
    names: tuple[str, ...]
    """Names of all control tokens, which no text of a message may become; `forbidden` has their ids."""
    forbidden: frozenset[int]
    """The ids of those."""
    vocab_size: int
    """Of the tokenizer, with the control tokens that may lie above its own: all ids are below it."""

    @property
    def digest(self) -> str:
        """A text that is another one whenever the ids or masks made with the same tokenizer are others."""
        ids = ", ".join(f"{name}={token.id}" for name, token in sorted(self.tokens.items()))
        return f"{self.template.digest} with {ids or 'no control tokens'}"

    @property
    def may_draw(self) -> bool:
        """Whether the template may draw random numbers from the global generators."""
        return self.template.may_draw

    def __call__(self, messages: Sequence[Message], context: Mapping[str, Any] | None = None) -> tuple[Tokens, Mask]:
        """The ids (int32 [n]) and the loss mask (bool [n]) of a conversation.

        Args:
            messages: what was said.
            context: what stands beside the messages and changes what a model should see of them (`CONTEXT_KEYS`).

        Raises:
            RecordError: the template cannot render one of the messages, or has no place for what they say besides; an
                id is not in the vocabulary.
        """
        ids: list[NDArray[np.integer]] = []
        masks: list[Mask] = [np.empty(0, np.bool_)]
        for part in self.template.parts(messages, self.train_on, context):
            if isinstance(part, Control):
                token = part.token if isinstance(part.token, int) else self.tokens[part.token].id
                ids.append(np.array([token]))
                masks.append(np.array([part.trained]))
            elif isinstance(part.trained, bool):
                encoded = self._encode(part.text, trimmed=part.trimmed)
                ids.append(encoded)
                masks.append(np.full(encoded.size, part.trained))
            else:
                for encoded, mask in self._encode_spans(part.text, part.trained, trimmed=part.trimmed):
                    ids.append(encoded)
                    masks.append(mask)
        # NumPy takes an empty list of ids for floats.
        joined = np.concatenate([np.empty(0, np.int64), *(each for each in ids if each.size)], dtype=np.int64)
        if joined.size and np.maximum.reduce(joined.view(np.uint64)) >= self.vocab_size:  # a negative id is a large one
            wrong = next(token for token in joined.tolist() if not 0 <= token < self.vocab_size)
            raise RecordError(
                f"the chat template or the tokenizer gave the token id {wrong}, which is not below {self.vocab_size}, "
                "the vocab_size of the tokenizer and its control tokens"
            )
        return joined.astype(np.int32), np.concatenate(masks)

    def _encode(self, text: str, *, trimmed: bool) -> NDArray[np.integer]:
        """The ids of a text, none of which is a control token's."""
        ids = self._encode_plain(text, trimmed=trimmed)
        if self._is_clean(ids):
            return ids
        # Some tokenizers turn a control token's text into its id anywhere; cut in two, the text stays text.
        pieces = [text]
        for name in self.names:
            pieces = [part for piece in pieces for part in _cut_inside(piece, name)]
        ids = np.concatenate(
            [self._encode_plain(piece, trimmed=trimmed or index > 0) for index, piece in enumerate(pieces)]
        )
        if not self._is_clean(ids):
            raise RecordError(f"the tokenizer makes a control token of the text {text[:80]!r}")
        return ids

    def _encode_plain(self, text: str, *, trimmed: bool) -> NDArray[np.integer]:
        if trimmed:
            # SentencePiece puts a space before a text. After a line feed it does not; the line feed is then taken off.
            before = np.asarray(self.tokenizer.encode("\n"))
            ids = np.asarray(self.tokenizer.encode("\n" + text))
            if before.size and np.array_equal(ids[: before.size], before):
                return ids[before.size :]
        return np.asarray(self.tokenizer.encode(text))

    def _encode_spans(
        self, text: str, spans: Sequence[tuple[int, int]], *, trimmed: bool
    ) -> list[tuple[NDArray[np.integer], Mask]]:
        """Ids and masks of a text: as one if the tokenizer tells where its tokens stand, else stretch by stretch."""
        trained = np.zeros(len(text), np.bool_)
        for begin, end in spans:
            trained[begin:end] = True
        with_offsets = getattr(self.tokenizer, "encode_with_offsets", None)
        if with_offsets is not None:
            ids, offsets = with_offsets(text)
            if self._is_clean(ids):
                count = np.concatenate([[0], np.cumsum(trained)])
                begins, ends = offsets[:, 0], np.maximum(offsets[:, 1], np.minimum(offsets[:, 0] + 1, len(text)))
                return [(ids, count[ends] > count[begins])]
        cuts = [0, *(np.flatnonzero(np.diff(trained)) + 1).tolist(), len(text)]
        result = []
        for begin, end in pairwise(cuts):
            if begin < end:
                ids = self._encode(text[begin:end], trimmed=trimmed or begin > 0)
                result.append((ids, np.full(ids.size, trained[begin])))
        return result

    def _is_clean(self, ids: NDArray[np.integer]) -> bool:
        return self.forbidden.isdisjoint(ids.tolist())


def _cut_inside(text: str, name: str) -> list[str]:
    """The text in pieces, with a cut after the first character of each `name` in it."""
    first, *rest = text.split(name)
    pieces = [first]
    for piece in rest:
        pieces[-1] += name[:1]
        pieces.append(name[1:] + piece)
    return [piece for piece in pieces if piece]


def make_encoder(
    chat: Chat,
    *,
    tokenizer: Tokenizer | None,
    add_bos: bool,
    add_eos: bool,
    read: Callable[[str], bytes],
) -> ChatEncoder:
    """The encoder that a dataset's arguments ask for.

    Args:
        chat: the template, and which messages are trained.
        tokenizer: the dataset's.
        add_bos: for the built-in templates; the others write BOS themselves.
        add_eos: for the built-in templates; the others write EOS themselves.
        read: gives the bytes of a file.

    Raises:
        ConfigError: there is no template, it is not known, or it does not say which parts are trained.
        TokenizerError: the tokenizer lacks a control token of the template.
    """
    chat_template, whose = chat.template, TrainOn(chat.train_on)
    if tokenizer is None:
        raise ConfigError("messages need a tokenizer; tokenizer=None is for pre-tokenized documents")
    template: Template
    if chat_template is None:
        raise ConfigError(
            f'messages need a chat template, chat= (--chat): one of {", ".join(BUILT_IN)}, "tokenizer" for that of the '
            "tokenizer's folder, the model's tokenizer_config.json, a Jinja template, or a function"
        )
    if callable(chat_template):
        template = FunctionTemplate(function=chat_template)
    elif chat_template in BUILT_IN:
        template = BuiltInTemplate(name=chat_template, add_bos=add_bos, add_eos=add_eos)
    elif is_template(chat_template) or "." in chat_template or "/" in chat_template:
        inline = is_template(chat_template)
        template = read_template(
            chat_template.encode() if inline else read(chat_template),
            name="chat_template" if inline else chat_template,
            tokenizer=tokenizer,
            needs_targets=whose is not TrainOn.ALL,
        )
    else:
        raise ConfigError(
            f"the chat template {chat_template!r} is not known: {', '.join(BUILT_IN)} and tokenizer (that of the "
            "tokenizer's folder) are, or give the path of a tokenizer_config.json, a Jinja template, or a function"
        )
    tokens = template.control_tokens(tokenizer)
    names = tuple(dict.fromkeys([*control_tokens_of(tokenizer), *tokens]))
    ids = {token.id for token in (*tokens.values(), *control_tokens_of(tokenizer).values())}
    return ChatEncoder(
        template=template,
        tokenizer=tokenizer,
        train_on=whose,
        tokens=tokens,
        names=names,
        forbidden=frozenset(ids - {_unknown_id(tokenizer)}),
        vocab_size=max([tokenizer.vocab_size, *(token + 1 for token in ids)]),
    )


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of the unknown token, which is not a control token here: a text may have characters without a token."""
    known = control_tokens_of(tokenizer)
    return next((known[name].id for name in ("<unk>", "[UNK]", "<UNK>", "<|unk|>") if name in known), None)
