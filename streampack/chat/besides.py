"""What a conversation says besides roles and contents: which messages are weighted, what a template must not leave out.

In:  messages and their context (`CONTEXT_KEYS`).
Out: who is trained, by weight; a `RecordError` that names what a template has no place for.
Never: an error for metadata (an id, a source, a date); side information that changes what a model should see, or what
is trained, and is dropped in silence.
"""

from collections.abc import Container, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any, NoReturn

from streampack.errors import RecordError
from streampack.records import WEIGHT_KEYS, Message

_TOOLS = {"name", "tool_calls", "function_call", "tools", "functions"}
_MEDIA = {"image", "images", "audio", "audios", "video", "videos", "attachments"}
_SEEN = _TOOLS | _MEDIA | {"documents", "reasoning_content", "reasoning", "thinking", "thoughts", "refusal"}
"""Keys of a message that change what a model should see. All others but role, content and weight are metadata."""
_OTHER_WEIGHTS = {*WEIGHT_KEYS, "loss", "train_on", "train_detail"} - {"weight"}
"""What other tools call a weight."""


def weights(messages: Sequence[Message]) -> list[bool]:
    """Which messages may be trained: those whose `weight`, as in OpenAI's format, is 1 or is not there.

    Raises:
        RecordError: a weight that is neither 0 nor 1, or one by another name.
    """
    if all(len(message) <= 2 for message in messages):  # as most of them are
        return [True] * len(messages)
    return [_may_be_trained(number, message) for number, message in enumerate(messages)]


def _may_be_trained(number: int, message: Message) -> bool:
    for key in sorted(_OTHER_WEIGHTS.intersection(message)):
        if message[key] is not None:
            raise RecordError(
                f"message {number} has {key!r}, which is not read here: say with weight, 0 or 1, whether a message is "
                "trained; a transform can change the one into the other"
            )
    weight = message.get("weight")
    if weight is None:
        return True
    if isinstance(weight, bool) or weight not in (0, 1):
        raise RecordError(f"message {number} has the weight {weight!r:.80}; it must be 0 (not trained) or 1")
    return bool(weight)


def seen_keys(message: Message) -> list[str]:
    """The keys of a message that change what a model should see, without those that say nothing."""
    return [] if len(message) <= 2 else sorted(key for key in _SEEN.intersection(message) if message[key])


def refuse(number: int, key: str, template: str) -> NoReturn:
    """Raise for a key of a message for which a template has no place."""
    raise RecordError(
        f"message {number} has {key}, which {template} has no place for; the model's own Jinja template may have one, "
        "or a transform can take it out"
    )


def check_context(context: Mapping[str, Any] | None, taken: Container[str], template: str) -> None:
    """Raise unless the template takes all that stands beside the messages."""
    if not context:
        return
    for key in WEIGHT_KEYS:
        value = context.get(key)
        if value is not None and key not in taken and not (key == "weight" and value == 1):
            raise RecordError(
                f"beside the messages there is {key!r}, which is not read there: weight, 0 or 1, of a message says "
                "whether it is trained; a transform can change the one into the other, or take it out "
                "(Document.context)"
            )
    left = [key for key, value in context.items() if value and key not in taken and key not in WEIGHT_KEYS]
    if left:
        raise RecordError(
            f"beside the messages there is {left[0]!r}, which {template} has no place for; the model's own Jinja "
            "template may have one, or a transform can put it into the messages or take it out (Document.context)"
        )


def template_values(context: Mapping[str, Any] | None) -> dict[str, Any]:
    """The context as a Jinja template gets it, as Transformers gives it: by name, and None where there is nothing.

    Raises:
        RecordError: a value of the wrong kind, from which a template would make nonsense.
    """
    values = {"tools": None, "documents": None, **(context or {})}
    more = values.pop("chat_template_kwargs", {})
    if not isinstance(more, Mapping):
        raise RecordError("the chat_template_kwargs beside the messages are not an object")
    for key in ("tools", "functions", "documents"):
        if not isinstance(values.get(key), (list, tuple, type(None))):
            kind = "a string: decode it with a transform" if isinstance(values[key], str) else "not a list"
            raise RecordError(f"the {key} beside the messages are {kind}; a chat template needs a list of objects")
    return values | dict(more)


class Watched(dict[str, Any]):
    """A message that notes which of its keys a template looks at."""

    def __init__(self, message: Message, looked_at: set[str]) -> None:
        super().__init__(message)
        self._looked_at = looked_at  # an underscore: no name that a template could mean

    def __getitem__(self, key: str) -> Any:
        self._looked_at.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._looked_at.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self._looked_at.add(str(key))
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        self._looked_at.update(super().keys())
        return super().__iter__()

    def keys(self) -> KeysView[str]:  # type: ignore[override]  # dict's own types have no names
        self._looked_at.update(super().keys())
        return super().keys()

    def values(self) -> ValuesView[Any]:  # type: ignore[override]  # dict's own types have no names
        self._looked_at.update(super().keys())
        return super().values()

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]  # dict's own types have no names
        self._looked_at.update(super().keys())
        return super().items()

    def __repr__(self) -> str:
        self._looked_at.update(super().keys())
        return super().__repr__()
