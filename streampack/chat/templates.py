r"""Templates of chats: the messages of a conversation in, the parts of its text out, each trained or not.

In:  messages, each a mapping with at least "role" and "content", both strings.
Out: parts in order: texts, and control tokens by name or id. Which parts are trained is decided here, message by
     message, so that nobody must search for tokens to find out.

The built-in templates give the ids and the masks of torchtune's message tokenizers. With `u` a user's and `a` an
assistant's message, and in brackets what `train_on="assistant"` trains:

    phi3     <s> <|user|> \n u <|end|> \n [<|assistant|> \n a <|end|> \n <|endoftext|>], and from <s> on again
    llama2   <s> "[INST] " u " [/INST] " [a </s>], and from <s> on again
    mistral  as llama2, without system messages
    llama3   <|begin_of_text|> <|start_header_id|> user <|end_header_id|> \n\n u <|eot_id|>
             [<|start_header_id|> assistant <|end_header_id|> \n\n a <|eot_id|>] <|end_of_text|>
    chatml   <|im_start|> user \n u <|im_end|> \n [<|im_start|> assistant \n a <|im_end|>]

Never: a message that is left out or cut, except as torchtune does with system messages of llama2: each goes into every
user's message after it, and of two in a row the second counts.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, TypeAlias

from streampack.chat.besides import check_context, refuse, seen_keys, weights
from streampack.errors import ConfigError, RecordError, TokenizerError
from streampack.records import ControlToken, Message, Tokenizer


class TrainOn(StrEnum):
    """Whose messages are targets."""

    ASSISTANT = "assistant"
    """Each message of the assistant, with what its template puts around it. The default."""
    LAST_ASSISTANT = "last_assistant"
    """Only the last message of the assistant."""
    ALL = "all"
    """Every message."""


class Text(NamedTuple):
    """Text to encode as text, whatever it says."""

    text: str
    trained: bool
    trimmed: bool = False
    """Without the space that SentencePiece puts before a text, as it continues the part before."""


class Spans(NamedTuple):
    """Text to encode as one, with spans of characters that are trained: a token is where one of its characters is."""

    text: str
    trained: tuple[tuple[int, int], ...]
    trimmed: bool = False


class Control(NamedTuple):
    """A control token, by its name or its id."""

    token: str | int
    trained: bool


Part: TypeAlias = Text | Spans | Control
ChatFunction: TypeAlias = Callable[..., Iterable[tuple[str | int, bool]]]
"""A user's template: a conversation in, all its (text or token id, trained) pairs out, BOS and EOS included. What
stands beside the messages (`CONTEXT_KEYS`) it gets by name, where it has a parameter for it."""


class Template(Protocol):
    """What makes parts of messages."""

    @property
    def digest(self) -> str:
        """A text that is another one for another template; part of the fingerprint."""
        ...

    @property
    def may_draw(self) -> bool:
        """Whether it may draw random numbers from the global generators."""
        ...

    def control_tokens(self, tokenizer: Tokenizer) -> Mapping[str, ControlToken]:
        """The control tokens that parts name; a TokenizerError says which ones the tokenizer lacks."""
        ...

    def parts(
        self, messages: Sequence[Message], train_on: TrainOn, context: Mapping[str, Any] | None = None
    ) -> Iterator[Part]:
        """The parts of a conversation with this context; a RecordError says why it has none."""
        ...


def control_tokens_of(tokenizer: Tokenizer) -> dict[str, ControlToken]:
    """The control tokens that a tokenizer knows by name; none where it has no method `control_tokens`."""
    method = getattr(tokenizer, "control_tokens", None)
    return {} if method is None else dict(method())


def trained_messages(messages: Sequence[Message], train_on: TrainOn) -> list[bool]:
    """Which messages are targets: those that `train_on` asks for, without those of weight 0."""
    trained = [train_on is TrainOn.ALL or message["role"] == "assistant" for message in messages]
    if train_on is TrainOn.LAST_ASSISTANT and True in trained:
        last = len(trained) - 1 - trained[::-1].index(True)
        trained = [index == last for index in range(len(trained))]
    return [each and weighted for each, weighted in zip(trained, weights(messages), strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionTemplate:
    """A user's function; it alone decides which parts are trained."""

    function: ChatFunction

    @property
    def digest(self) -> str:
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return f"function {getattr(self.function, '__module__', '')}.{name}"

    @property
    def may_draw(self) -> bool:
        return True

    def control_tokens(self, tokenizer: Tokenizer) -> Mapping[str, ControlToken]:
        return {}

    def parts(
        self, messages: Sequence[Message], train_on: TrainOn, context: Mapping[str, Any] | None = None
    ) -> Iterator[Part]:
        taken = {} if context is None else self._taken(context)
        try:
            result = [tuple(part) for part in self.function([dict(message) for message in messages], **taken)]
        except Exception as error:  # a function of the user may raise anything
            with contextlib.suppress(Exception):  # an exception that refuses it is raised as it is
                error.add_note(f"raised by the chat template ({self.digest})")
            raise
        for number, part in enumerate(result):
            what = part[0] if len(part) == 2 else None
            if isinstance(what, bool) or not isinstance(what, (str, int)) or not isinstance(part[1], bool):
                raise ConfigError(
                    f"the chat template ({self.digest}) gave {part!r:.200} as part {number}: each part is a pair of a "
                    "text or a token id, and True or False, whether it is trained"
                )
            trimmed = number > 0
            yield Text(what, part[1], trimmed) if isinstance(what, str) else Control(what, part[1])

    def _taken(self, context: Mapping[str, Any]) -> Mapping[str, Any]:
        """What of the context the function has parameters for, by name."""
        parameters: Mapping[str, inspect.Parameter] = {}
        with contextlib.suppress(TypeError, ValueError):  # some functions of C have none that Python knows
            parameters = inspect.signature(self.function).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return context
        parameters = dict(list(parameters.items())[1:])  # the first one is for the messages
        check_context(context, parameters, f"the chat template ({self.digest}), a function,")
        return {key: value for key, value in context.items() if key in parameters}


# -- the built-in ones -------------------------------------------------------------------------------------------------

BOS, EOS = "BOS", "EOS"
"""What parts of built-in templates call the tokens that begin and end a conversation."""


class _Turn(NamedTuple):
    role: str
    content: str
    trained: bool


def _phi3(turns: list[_Turn], add_bos: bool, add_eos: bool) -> Iterator[Part]:
    begins = True
    for role, content, trained in turns:
        if begins and add_bos:
            yield Control(BOS, trained)
        yield Control(f"<|{role}|>", trained)
        yield Text("\n", trained)
        yield Text(content.rstrip(" "), trained, trimmed=True)
        yield Control("<|end|>", trained)
        yield Text("\n", trained)
        begins = add_eos and role == "assistant"
        if begins:
            yield Control(EOS, trained)


def _llama2(turns: list[_Turn], add_bos: bool, add_eos: bool) -> Iterator[Part]:
    system: list[str] = []
    system_trained = True
    begins, trimmed = True, False
    for role, content, trained in turns:
        if role == "system":
            system, system_trained = ["<<SYS>>\n", content, "\n<</SYS>>\n\n"], trained
            continue
        if begins and add_bos:
            yield Control(BOS, trained)
        texts = [content] if role == "assistant" else ["[INST] ", *system, content, " [/INST] "]
        for number, text in enumerate(texts):
            is_system = 0 < number <= len(system)
            yield Text(text.rstrip(" "), trained and (system_trained or not is_system), trimmed)
        begins = role == "assistant"
        trimmed = not begins and not texts[-1].endswith(" ")
        if begins and add_eos:
            yield Control(EOS, trained)


def _llama3(turns: list[_Turn], add_bos: bool, add_eos: bool) -> Iterator[Part]:
    if add_bos:
        yield Control(BOS, False)
    for role, content, trained in turns:
        yield Control("<|start_header_id|>", trained)
        yield Text(role, trained)
        yield Control("<|end_header_id|>", trained)
        yield Text("\n\n", trained)
        yield Text(content.strip(), trained)
        yield Control("<|eot_id|>", trained)
    if add_eos:
        yield Control(EOS, False)  # it is <|eot_id|> that ends an answer


def _chatml(turns: list[_Turn], add_bos: bool, add_eos: bool) -> Iterator[Part]:
    trained = False
    for number, (role, content, trained) in enumerate(turns, start=1):
        yield Control("<|im_start|>", trained)
        yield Text(f"{role}\n", trained)
        yield Text(content, trained)
        if not (add_eos and role == "assistant" and number == len(turns)):
            yield Control("<|im_end|>", trained)
            yield Text("\n", trained)
    if add_eos:
        yield Control(EOS, trained)


class _Kind(NamedTuple):
    parts: Callable[[list[_Turn], bool, bool], Iterator[Part]]
    names: Mapping[str, str | None]
    """What parts call a token -> its name in the vocabulary; None: the tokenizer's own BOS or EOS."""
    roles: tuple[str, ...] = ("system", "user", "assistant")
    published: Mapping[str, int] = {}
    """Ids of the published models, whose tokenizer.model does not hold its added tokens."""


_PHI3 = {"<|endoftext|>": 32000, "<|assistant|>": 32001, "<|system|>": 32006, "<|end|>": 32007, "<|user|>": 32010}
_LLAMA3 = {
    "<|begin_of_text|>": 128000,
    "<|end_of_text|>": 128001,
    "<|start_header_id|>": 128006,
    "<|end_header_id|>": 128007,
    "<|eot_id|>": 128009,
}
_IM = ("<|im_start|>", "<|im_end|>")
_BUILT_IN: Mapping[str, _Kind] = {
    "phi3": _Kind(_phi3, dict(zip(_PHI3, _PHI3)) | {BOS: None, EOS: "<|endoftext|>"}, published=_PHI3),
    "llama2": _Kind(_llama2, {BOS: None, EOS: None}),
    "mistral": _Kind(_llama2, {BOS: None, EOS: None}, roles=("user", "assistant")),
    "llama3": _Kind(
        _llama3,
        dict(zip(_LLAMA3, _LLAMA3)) | {BOS: "<|begin_of_text|>", EOS: "<|end_of_text|>"},
        roles=("system", "user", "assistant", "ipython", "tool"),
        published=_LLAMA3,
    ),
    "chatml": _Kind(
        _chatml, dict(zip(_IM, _IM)) | {EOS: "<|im_end|>"}, roles=("system", "user", "assistant", "tool")
    ),
}
BUILT_IN = tuple(_BUILT_IN)
"""Names of the built-in templates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltInTemplate:
    """One of `BUILT_IN`."""

    name: str
    add_bos: bool
    add_eos: bool

    @property
    def digest(self) -> str:
        return f"built-in {self.name}"

    @property
    def may_draw(self) -> bool:
        return False

    def control_tokens(self, tokenizer: Tokenizer) -> Mapping[str, ControlToken]:
        kind, own = _BUILT_IN[self.name], control_tokens_of(tokenizer)
        ids = kind.published.values()
        # Published ids come right after a vocabulary that ends before them; inside of one they are other tokens.
        published = kind.published if ids and tokenizer.vocab_size <= min(ids) else {}
        found: dict[str, ControlToken] = {}
        missing = []
        for called, name in kind.names.items():
            token: ControlToken | None
            if name is None:
                standard = tokenizer.bos_id if called == BOS else tokenizer.eos_id
                token = None if standard is None else ControlToken(standard)
            else:
                token = own.get(name) or (ControlToken(published[name]) if name in published else None)
            if token is not None:
                found[called] = token
            elif {BOS: self.add_bos, EOS: self.add_eos}.get(called, True):
                missing.append(name or f"a token for {called}")
        if missing:
            raise TokenizerError(
                f"the chat template {self.name!r} needs {', '.join(dict.fromkeys(missing))}, which the "
                "tokenizer does not have: give the model's tokenizer.json, or a tokenizer whose method "
                "control_tokens() returns {name: streampack.tokenizers.ControlToken(id)}"
            )
        return found

    def parts(
        self, messages: Sequence[Message], train_on: TrainOn, context: Mapping[str, Any] | None = None
    ) -> Iterator[Part]:
        kind, called = _BUILT_IN[self.name], f"the chat template {self.name!r}"
        check_context(context, (), called)
        turns = []
        for number, (message, trained) in enumerate(zip(messages, trained_messages(messages, train_on), strict=True)):
            role = message["role"]
            if role not in kind.roles:
                raise RecordError(
                    f"message {number} has the role {role!r}; {called} knows "
                    + ", ".join(kind.roles)
                )
            if keys := seen_keys(message):
                refuse(number, keys[0], called)
            turns.append(_Turn(role, message["content"], trained))
        return kind.parts(turns, self.add_bos, self.add_eos)
