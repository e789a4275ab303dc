"""How conversations become tokens, as a user asks for it: a frozen record, or its shorthand."""

from collections.abc import Callable
from dataclasses import dataclass

from streampack.chat.templates import ChatFunction, TrainOn
from streampack.errors import ConfigError, as_choice

TOKENIZERS_OWN = "tokenizer"
"""As a template: that of the tokenizer's folder."""


@dataclass(frozen=True, slots=True)
class Chat:
    """The template of conversations, and which of their messages are targets.

    Args:
        template: "phi3", "llama2", "llama3", "mistral" or "chatml"; "tokenizer" for the template in the tokenizer's
            folder (chat_template.jinja, or `chat_template` in tokenizer_config.json); the path or URL of such a file;
            a Jinja template itself, in which `{% generation %}` encloses what the assistant says; or a function that
            gives (text or token id, trained) pairs of a list of messages. None: the data must hold no conversations.
        train_on: a `TrainOn` or its value: "assistant", "last_assistant" or "all". A function says itself which
            parts are trained.

    Raises:
        ConfigError: an argument that cannot work. Whether a template is known, and fits the tokenizer, is checked when
            a dataset is made.
    """

    template: str | ChatFunction | None = None
    train_on: TrainOn | str = TrainOn.ASSISTANT

    def __post_init__(self) -> None:
        template = self.template
        if not (template is None or isinstance(template, str) or callable(template)):
            raise ConfigError(f"chat: template={template!r:.200} must be a string, a function or None")
        train_on = as_choice(TrainOn, self.train_on, "chat: train_on")
        object.__setattr__(self, "train_on", train_on)
        if callable(template) and train_on is not TrainOn.ASSISTANT:
            raise ConfigError(
                f'chat: train_on="{train_on}" does nothing with a function, which says itself which parts are trained'
            )


def as_chat(value: Chat | str | Callable[..., object] | None) -> Chat:
    """The record that `value` is or is the shorthand of: a template, or None for `Chat()`.

    Raises:
        ConfigError: it is none of these.
    """
    return value if isinstance(value, Chat) else Chat(value)  # type: ignore[arg-type]  # checked there
