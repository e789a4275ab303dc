"""The JSON of a record in, its conversation out: the messages, and what beside them changes what a model should see.

Out: messages, each with strings under "role" and "content" (which may be null where there are "tool_calls"), and their
     context (`streampack.records.CONTEXT_KEYS`); or a `BadContentError` that says why there are none.
Never: a conversation that no chat template could read; a look at values that are neither (they may be anything that
JSON's grammar allows, as with texts).
"""

import functools
from typing import Any

import msgspec

from streampack.documents.contents import BadContentError, check_size
from streampack.documents.jsonrecords import EXPLAIN_BYTES, json_kind, json_value, without_marks
from streampack.errors import DocumentTooLongError, MissingFieldError
from streampack.records import CONTEXT_KEYS, Message

Context = dict[str, Any]
_NO_NUMBER = b"1e999"
"""Stands for NaN and Infinity: JSON's grammar allows it, and a value that is used may not have it."""
_NOTHING = [msgspec.UNSET] * len(CONTEXT_KEYS)


@functools.lru_cache(maxsize=16)
def _decoder(keys: tuple[str, ...], kind: Any) -> msgspec.json.Decoder[Any]:
    """A decoder that finds the messages and their context, each as `kind`, and makes no Python object of the rest."""
    names = {"messages": keys[-1], **{name: name for name in CONTEXT_KEYS}}
    fields = [(name, kind, msgspec.UNSET) for name in names]
    wanted: Any = msgspec.defstruct("Conversation", fields, rename=names, gc=False)
    for key in reversed(keys[:-1]):
        inner = [("value", wanted | msgspec.UnsetType, msgspec.UNSET)]
        wanted = msgspec.defstruct("Record", inner, rename={"value": key}, gc=False)
    return msgspec.json.Decoder(wanted)


def json_conversation(data: bytes, keys: tuple[str, ...], limit: int) -> tuple[tuple[Message, ...], Context | None]:
    """The conversation under the keys of a record, and its context (None: nothing is there)."""
    is_large = len(data) > EXPLAIN_BYTES  # of so much, no Python objects are made to say what is wrong
    found: tuple[Any, ...] = (msgspec.UNSET,)
    try:
        found = _found(data, keys, msgspec.Raw | msgspec.UnsetType if is_large else Any)
        if is_large:
            found = _decoded(found, limit)
    except AttributeError:
        pass  # no object where one must be
    except (ValueError, RecursionError) as error:
        if "out of range" in str(error):
            raise BadContentError("NaN, Infinity or a number out of range in a value that a template may use") from None
        if is_large:
            raise BadContentError(f"broken JSON, or not an object where one must be: {error}") from None
    messages, *beside = found
    if messages is msgspec.UNSET:
        if is_large:
            raise BadContentError(f"no key {'.'.join(keys)!r}", kind=MissingFieldError)
        messages = json_value(data, keys)  # which says what is wrong
        record: Any = json_value(data, keys[:-1])
        beside = [record.get(name, msgspec.UNSET) for name in CONTEXT_KEYS]
    context: Context | None = None
    if beside != _NOTHING:
        named = zip(CONTEXT_KEYS, beside, strict=True)
        context = {name: value for name, value in named if value is not None and value is not msgspec.UNSET}
    return check_messages(messages, limit), context or None


def _found(data: bytes, keys: tuple[str, ...], kind: Any) -> tuple[Any, ...]:
    """What stands under the keys and, beside it, under `CONTEXT_KEYS`; UNSET where there is nothing."""
    decoder = _decoder(keys, kind)
    try:
        record = decoder.decode(data)
    except ValueError:
        record = decoder.decode(without_marks(data, number=_NO_NUMBER))
    for _ in keys[:-1]:
        record = record.value
    return msgspec.structs.astuple(record)


def _decoded(raws: tuple[Any, ...], limit: int) -> tuple[Any, ...]:
    """The values of a large record from their JSON, unless it is too much."""
    size = sum(len(bytes(raw)) for raw in raws if raw is not msgspec.UNSET)
    if size > 3 * limit:  # a letter of two bytes is six as an escape
        what = f"a conversation of {size:,} bytes of JSON, above three times limits.document_bytes={limit:,}"
        raise BadContentError(what, kind=DocumentTooLongError)
    return tuple(raw if raw is msgspec.UNSET else msgspec.json.decode(raw) for raw in raws)


def check_messages(value: object, limit: int) -> tuple[Message, ...]:
    """A conversation, checked as far as it can be without a template."""
    if not isinstance(value, (list, tuple)):
        raise BadContentError(f"messages are {json_kind(value)} and not a list")
    if not value:
        raise BadContentError("messages are an empty list: a conversation has at least one")
    for number, message in enumerate(value):
        if not isinstance(message, dict):
            raise BadContentError(f"message {number} is {json_kind(message)} and not an object with role and content")
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
    check_size(sum(len((message.get("content") or "").encode("utf-8", "surrogatepass")) for message in value), limit)
    return tuple(value)
