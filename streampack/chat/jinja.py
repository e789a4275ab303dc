"""A model's own chat template: Jinja, from its tokenizer_config.json, rendered in a sandbox.

In:  messages and their context. Out: parts, as from any template. What `{% generation %}` ... `{% endgeneration %}`
     encloses is the assistant's, as in Transformers' `apply_chat_template(..., return_assistant_tokens_mask=True)`.

The template's own control tokens become ids; those that a message's text spells out do not. To tell them apart, each
of the latter gets a mark inside before rendering, which is taken out again afterwards. The marks are code points that
Unicode keeps for a program's own use (noncharacters); a message that holds one of them is refused.

What looks like a control token (`<|name|>`) and is none of this tokenizer is a bad record where the template writes it,
and a `ConfigError` at once where it does so for every conversation.

Never: a template that reaches anything but the messages; a text that depends on the clock: `strftime_now` is not
defined, so templates take their fixed date; a BOS or EOS that the template did not write.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from streampack.chat.besides import Watched, check_context, refuse, seen_keys, template_values, weights
from streampack.chat.templates import Control, Part, Spans, TrainOn, control_tokens_of
from streampack.errors import ConfigError, RecordError
from streampack.records import ControlToken, Message, Tokenizer

_INSIDE, _BEGIN, _END = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKS = re.compile(f"[{_INSIDE}{_BEGIN}{_END}]")
_LOOKS_LIKE_CONTROL = r"<\|[^\s<>|]{1,80}\|>|<｜[^\s<>｜]{1,80}｜>"
_PROBE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
"""What every template can render, but for one that refuses it."""


def is_template(text: str) -> bool:
    """Whether a text is a Jinja template itself, and not a name or a path."""
    return "{%" in text or "{{" in text


def read_template(data: bytes, *, name: str, tokenizer: Tokenizer, needs_targets: bool) -> "JinjaTemplate":
    """The template in a tokenizer_config.json, or in a file that is one.

    Raises:
        ConfigError: there is no template, it is not Jinja, or with `needs_targets` it has no `{% generation %}`.
    """
    try:
        text = data.decode("utf-8-sig")  # a byte order mark would be written into every conversation
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 ({error.reason}), so not a chat template", url=name) from error
    tokens = control_tokens_of(tokenizer)
    names = {token.id: known for known, token in tokens.items()}
    specials = {
        key: names[token]
        for key, token in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id))
        if token is not None and token in names
    }
    if re.match(r"\s*\{(?![%{#])", text):
        try:
            config = msgspec.json.decode(data)
        except msgspec.DecodeError as error:
            raise ConfigError(f"neither a tokenizer_config.json nor a Jinja template: {error}", url=name) from error
        found = config.get("chat_template")
        if isinstance(found, list):  # several, by name
            found = {entry["name"]: entry["template"] for entry in found}.get("default")
        if not isinstance(found, str):
            raise ConfigError("it has no chat_template; give the file chat_template.jinja if there is one", url=name)
        text = found
        for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
            value = config.get(key)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                specials[key] = value
        for number, token in (config.get("added_tokens_decoder") or {}).items():
            if token.get("special"):
                control = ControlToken(int(number), bool(token.get("lstrip")), bool(token.get("rstrip")))
                tokens.setdefault(token["content"], control)
    if not is_template(text):
        what = "a text without {{ }} and {% %}"
        if text.startswith("version https://git-lfs"):
            what = "a Git LFS pointer and not the file it points to: fetch it with `git lfs pull`"
        raise ConfigError(f"not a Jinja template, but {what}", url=name)
    try:
        _compiled(text)
    except Exception as error:  # the parser's own, or what an extension raises
        raise ConfigError(f"the chat template is not Jinja: {error}", url=name) from error
    if needs_targets and not re.search(r"\{%-?\s*generation\b", text):
        raise ConfigError(
            "the chat template does not mark what the assistant says: put {% generation %} and "
            "{% endgeneration %} around it, "
            'as for Transformers\' return_assistant_tokens_mask, or use train_on="all" or a built-in template',
            url=name,
        )
    template = JinjaTemplate(source=text, specials=specials, tokens=tokens)
    try:
        list(template.parts(_PROBE, TrainOn.ALL))
    except _NoTokenError as error:
        raise ConfigError(error.message, url=name) from None
    except RecordError:
        pass  # it wants other messages, such as a system message first
    return template


class _NoTokenError(RecordError):
    """The template writes what looks like a control token, and is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JinjaTemplate:
    """The template of one model, with the control tokens of its tokenizer."""

    source: str
    specials: Mapping[str, str]
    """"bos_token" and so on -> the token's name."""
    tokens: Mapping[str, ControlToken]

    @property
    def digest(self) -> str:
        told = json.dumps([self.source, dict(self.specials)], sort_keys=True)
        return f"jinja {hashlib.sha256(told.encode()).hexdigest()[:16]}"

    @property
    def may_draw(self) -> bool:
        return "random" in self.source  # the filter of this name

    def control_tokens(self, tokenizer: Tokenizer) -> Mapping[str, ControlToken]:
        return self.tokens

    def parts(
        self, messages: Sequence[Message], train_on: TrainOn, context: Mapping[str, Any] | None = None
    ) -> Iterator[Part]:
        control = self._control
        marked = [_marked(message, control) for message in messages]
        looked_at: dict[int, set[str]] = {number: set() for number, each in enumerate(messages) if seen_keys(each)}
        for number, seen in looked_at.items():
            marked[number] = Watched(marked[number], seen)
        values, compiled = template_values(context), _compiled(self.source)
        check_context(values, compiled.variables, "the chat template")
        values = _marked(values, control)
        try:
            rendered = compiled.render(messages=marked, add_generation_prompt=False, **self.specials, **values)
        except Exception as error:  # a template may raise anything, and most say `raise_exception`
            raise RecordError(f"the chat template refuses the conversation: {error}") from error
        for number, seen in looked_at.items():
            for key in seen_keys(messages[number]):
                if key not in seen:
                    refuse(number, key, "the chat template")
        return self._split(rendered, train_on, _trained_blocks(rendered.count(_BEGIN), messages, train_on))

    @property
    def _control(self) -> re.Pattern[str]:
        """The control tokens, and what only looks like one."""
        return _any_of((*self.tokens, *self.specials.values()))


    def _split(self, rendered: str, train_on: TrainOn, trained_blocks: Sequence[bool]) -> Iterator[Part]:
        """The rendered text, cut at control tokens, with the spans of the text between them that are trained."""
        outside = train_on is TrainOn.ALL
        block, trained, text, strip_next, begun = 0, outside, "", False, False
        spans: list[tuple[int, int]] = []
        for piece in re.split(f"({self._control.pattern}|{_MARKS.pattern})", rendered):
            if piece == _BEGIN:
                trained = trained_blocks[block]
                block += 1
            elif piece == _END:
                trained = outside
            elif piece in self.tokens:
                token = self.tokens[piece]
                if text:
                    text = text.rstrip() if token.lstrip else text
                    yield Spans(text, tuple(spans), trimmed=begun)
                text, begun, strip_next = "", True, token.rstrip
                spans = []
                yield Control(piece, trained)
            elif self._control.fullmatch(piece):
                raise _NoTokenError(
                    f"the chat template writes {piece!r}, which is no control token of the tokenizer and would be "
                    "ordinary text: give the tokenizer that the template is of (its tokenizer.json or its folder)"
                )
            elif piece != _INSIDE:
                kept = piece.lstrip() if strip_next and not text else piece
                if trained and kept:
                    spans.append((len(text), len(text) + len(kept)))
                text += kept
        if text:
            yield Spans(text, tuple(spans), trimmed=begun)


def _trained_blocks(num_blocks: int, messages: Sequence[Message], train_on: TrainOn) -> list[bool]:
    """Which of the stretches that `{% generation %}` encloses are trained.

    Raises:
        RecordError: a message has the weight 0, and the template does not show where its text is.
    """
    last_only = train_on is TrainOn.LAST_ASSISTANT
    trained = [not last_only or block == num_blocks - 1 for block in range(num_blocks)]
    weighted = weights(messages)
    if all(weighted):
        return trained
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    others = [number for number, each in enumerate(weighted) if not each and number not in answers]
    if train_on is TrainOn.ALL and others:
        raise RecordError(
            f"message {others[0]} has the weight 0 and is not the assistant's; with train_on='all', what a Jinja "
            "template writes outside of the answers is trained as a whole"
        )
    if num_blocks != len(answers):
        raise RecordError(
            f"message {weighted.index(False)} has the weight 0, and the chat template does not show where it is: it "
            f"marks {num_blocks} stretches with {{% generation %}}, for {len(answers)} messages of the assistant"
        )
    return [each and weighted[number] for each, number in zip(trained, answers, strict=True)]


@functools.lru_cache(maxsize=8)
def _any_of(names: tuple[str, ...]) -> re.Pattern[str]:
    # The longest first, as one name may begin with another.
    return re.compile("|".join([*map(re.escape, sorted(names, key=len, reverse=True)), _LOOKS_LIKE_CONTROL]))


def _marked(value: Any, control: re.Pattern[str]) -> Any:
    """The value with a mark inside of each control token that one of its strings spells out; a null content as such."""
    if isinstance(value, str):
        if _MARKS.search(value):
            raise RecordError("a message holds one of the noncharacters U+FDD0 to U+FDD2, which are not text")
        return control.sub(lambda match: match[0][:1] + _INSIDE + match[0][1:], value)
    if isinstance(value, Mapping):
        return {
            key: _NULL if key == "content" and inner is None else _marked(inner, control)
            for key, inner in value.items()
        }
    return [_marked(inner, control) for inner in value] if isinstance(value, (list, tuple)) else value


class _Null:
    """A content that is null: a template may ask whether it is none, and cannot write it ("None" would be text)."""

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or other is self

    __hash__ = object.__hash__

    def __str__(self) -> str:
        raise RecordError("it writes the content of a message whose content is null")


_NULL = _Null()


def _json_null(value: object) -> None:
    """What stands for a value that JSON does not know."""
    if value is not _NULL:
        raise TypeError(f"a {type(value).__name__} has no JSON")


def _is_null(value: object) -> bool:
    return value is None or value is _NULL


class _Compiled(NamedTuple):
    render: Callable[..., str]
    variables: frozenset[str]
    """What the template looks up outside of itself."""


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> _Compiled:
    """The template's function, in a sandbox with what Transformers' templates may use, but for the clock."""
    import jinja2
    import jinja2.ext
    import jinja2.meta
    import jinja2.nodes
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """`{% generation %}`: marks what it encloses."""

        tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

        def parse(self, parser: Any) -> jinja2.nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_enclosed"), [], [], body).set_lineno(line)

        def _enclosed(self, caller: Callable[[], str]) -> str:
            return f"{_BEGIN}{caller()}{_END}"

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, "default": _json_null, **options})

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.tests["none"] = _is_null
    environment.globals["raise_exception"] = raise_exception
    variables = jinja2.meta.find_undeclared_variables(environment.parse(source))
    return _Compiled(environment.from_string(source).render, frozenset(variables))
