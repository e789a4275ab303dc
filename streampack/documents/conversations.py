"""The JSON of a record in, its conversation out: the messages, and what beside them changes what a model should see.

Out: messages, each with strings under "role" and "content" (which may be null where there are "tool_calls"), and their
     context (`streampack.records.CONTEXT_KEYS`); or a `BadContentError` that says why there are none. A content that is
     a list of texts, as in OpenAI's format, becomes one text; ShareGPT's `from` and `value` become role and content.
Never: a conversation that no chat template could read; a look at values that are neither (they may be anything that
JSON's grammar allows, as with texts).
"""

import functools
from collections.abc import Sequence
from typing import Any

import msgspec

from streampack.documents.contents import BadContentError, check_size
from streampack.documents.jsonrecords import EXPLAIN_BYTES, json_kind, json_value, without_marks
from streampack.errors import DocumentTooLongError, MissingFieldError
from streampack.records import CONTEXT_KEYS, Message

Context = dict[str, Any]
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
"""Who speaks in ShareGPT's format, and in the one that LLaMA-Factory made of it -> the role."""
_NO_NUMBER = b"1e999"
"""Stands for NaN and Infinity: JSON's grammar allows it, and a value that is used may not have it."""
_NOTHING = [msgspec.UNSET] * len(CONTEXT_KEYS)


@functools.lru_cache(maxsize=64)
def _beside(key: str) -> tuple[str, ...]:
    """The `CONTEXT_KEYS` that may stand beside this key of the path to the messages."""
    return tuple(name for name in CONTEXT_KEYS if name != key)


@functools.lru_cache(maxsize=16)
def _decoder(keys: tuple[str, ...], kind: Any) -> msgspec.json.Decoder[Any]:
    """A decoder that finds the messages and their context, each as `kind`, and makes no Python object of the rest."""
    wanted = kind
    for key in reversed(keys):
        names = {"value": key, **{name: name for name in _beside(key)}}
        fields = [("value", wanted | msgspec.UnsetType if wanted is not Any else Any, msgspec.UNSET)]
        fields += [(name, kind, msgspec.UNSET) for name in _beside(key)]
        wanted = msgspec.defstruct("Record", fields, rename=names, gc=False)
    return msgspec.json.Decoder(wanted)


def json_conversation(data: bytes, keys: tuple[str, ...], limit: int) -> tuple[tuple[Message, ...], Context | None]:
    """The conversation under the keys of a record, and its context (None: nothing is there).

    The context is what stands beside the messages, and beside each object on the path to them.
    """
    is_large = len(data) > EXPLAIN_BYTES  # of so much, no Python objects are made to say what is wrong
    messages: Any = msgspec.UNSET
    levels: list[Context] = []
    try:
        messages, levels = _found(data, keys, msgspec.Raw | msgspec.UnsetType if is_large else Any)
        if is_large:
            messages, levels = _decoded(messages, levels, limit)
    except (ValueError, RecursionError) as error:
        if "out of range" in str(error):
            raise BadContentError("NaN, Infinity or a number out of range in a value that a template may use") from None
        if is_large:
            raise BadContentError(f"broken JSON, or not an object where one must be: {error}") from None
    if messages is msgspec.UNSET:
        if is_large:
            raise BadContentError(f"no key {'.'.join(keys)!r}", kind=MissingFieldError)
        messages = json_value(data, keys)  # which says what is wrong
        records: Any = [json_value(data, keys[:depth]) for depth in range(len(keys))]
        levels = [
            {name: record[name] for name in _beside(key) if name in record}
            for record, key in zip(records, keys, strict=True)
        ]
    return check_messages(messages, limit), _merged(levels) or None


def _found(data: bytes, keys: tuple[str, ...], kind: Any) -> tuple[Any, list[Context]]:
    """What stands under the keys (UNSET: nothing), and of each object on the way what is there of `CONTEXT_KEYS`."""
    decoder = _decoder(keys, kind)
    try:
        value = decoder.decode(data)
    except ValueError:
        value = decoder.decode(without_marks(data, number=_NO_NUMBER))
    levels: list[Context] = []
    for key in keys:
        if value is msgspec.UNSET:
            break
        value, *beside = msgspec.structs.astuple(value)
        if beside != _NOTHING:
            named = zip(_beside(key), beside, strict=True)
            levels.append({name: each for name, each in named if each is not msgspec.UNSET})
    return value, levels


def _decoded(messages: Any, levels: list[Context], limit: int) -> tuple[Any, list[Context]]:
    """The values of a large record from their JSON, unless it is too much."""
    raws = [raw for raw in (messages, *(raw for level in levels for raw in level.values())) if raw is not msgspec.UNSET]
    size = sum(len(bytes(raw)) for raw in raws)
    if size > 3 * limit:  # a letter of two bytes is six as an escape
        what = f"a conversation of {size:,} bytes of JSON, above three times limits.document_bytes={limit:,}"
        raise BadContentError(what, kind=DocumentTooLongError)
    if messages is not msgspec.UNSET:
        messages = msgspec.json.decode(messages)
    return messages, [{name: msgspec.json.decode(raw) for name, raw in level.items()} for level in levels]


def _merged(levels: list[Context]) -> Context:
    """What the objects on the path to the messages have beside it, as one."""
    merged: Context = {}
    for level in levels:
        for name, value in level.items():
            if value is None:
                continue
            if merged.setdefault(name, value) != value:
                raise BadContentError(f"{name!r} stands at two levels of the path to the messages, with two values")
    return merged


def check_messages(value: object, limit: int) -> tuple[Message, ...]:
    """A conversation, checked as far as it can be without a template."""
    if not isinstance(value, (list, tuple)):
        raise BadContentError(f"messages are {json_kind(value)} and not a list")
    if not value:
        raise BadContentError("messages are an empty list: a conversation has at least one")
    messages: list[Message] = []
    for number, message in enumerate(value):
        if not isinstance(message, dict):
            raise BadContentError(f"message {number} is {json_kind(message)} and not an object with role and content")
        if "role" not in message and "from" in message and "value" in message:
            message = _of_sharegpt(number, message)  # noqa: PLW2901  # the same message
        if isinstance(message.get("content"), (list, tuple)):
            message = {**message, "content": _joined(number, message["content"])}  # noqa: PLW2901  # the same
        messages.append(message)
        calls = message.get("tool_calls") or message.get("function_call")
        for key in ("role", "content"):
            if key == "content" and calls and message.get(key) is None:
                continue  # as OpenAI's format has it; a template that takes the calls looks at them
            if key not in message:
                there = ", ".join(map(str, message)) or "none"
                found = f"message {number} has no {key!r}; the keys there: {there:.200}"
                raise BadContentError(found, kind=MissingFieldError)
            if not isinstance(message[key], str):
                raise BadContentError(f"the {key} of message {number} is {json_kind(message[key])} and not a string")
    check_size(sum(len((message.get("content") or "").encode("utf-8", "surrogatepass")) for message in messages), limit)
    return tuple(messages)


def _of_sharegpt(number: int, message: Message) -> dict[str, Any]:
    """A message of ShareGPT's format with role and content."""
    speaker, content = message["from"], message["value"]
    if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
        known = ", ".join(_SHAREGPT_ROLES)
        raise BadContentError(f"message {number} is from {speaker!r:.80}; known are {known}: a transform can rename it")
    rest = {key: each for key, each in message.items() if key not in ("from", "value")}
    return {"role": _SHAREGPT_ROLES[speaker], "content": content, **rest}


def _joined(number: int, parts: Sequence[object]) -> str:
    """The text of a content that is a list of parts, each {"type": "text", "text": ...}."""
    texts = []
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else json_kind(part)
        text = part.get("text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(text, str):
            raise BadContentError(
                f"part {index} of the content of message {number} is {kind!r:.80} and not a text: only "
                '{"type": "text", "text": ...} is read'
            )
        texts.append(text)
    return "".join(texts)
