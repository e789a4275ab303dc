"""The folder of a tokenizer, as Transformers saves it: which file in it is the model, and what the others say.

In:  the folder's path or URL, and a function that reads a file of it.
Out: the model's bytes; which tokens begin, end and pad; the chat template.
Never: a listing, but for an error: files are known by their names, so a web server's folder is one as well.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from streampack.errors import ConfigError, TokenizerError
from streampack.tokenizers.files import others_in

MODELS = ("tokenizer.json", "tekken.json", "tokenizer.model")
"""The files that may be the model. The first that is there is taken."""
TOKENS = ("bos_token", "eos_token", "pad_token")
Read = Callable[[str], bytes | None]
"""The bytes of a path or URL; None where nothing is there."""

_log = logging.getLogger(__name__)


def read_model(folder: str, read: Read, names: Callable[[], Iterable[str]]) -> tuple[bytes, str]:
    """The bytes of the model in a folder, and its path.

    Args:
        folder: its path or URL.
        read: gives the bytes of a file.
        names: gives the names of the folder's files, as far as they can be known, for the error that there is none.

    Raises:
        TokenizerError: there is none.
    """
    for name in MODELS:
        path = _inside(folder, name)
        if (data := read(path)) is not None:
            _log.info("the tokenizer of the folder %s is its %s", folder, name)
            return data, path
    what = f"a folder without a tokenizer: none of {', '.join(MODELS)} is in it"
    raise TokenizerError(f"{what}{others_in(names())}", url=folder)


def read_tokens(folder: str, read: Read) -> dict[str, str]:
    """Which tokens are "bos_token", "eos_token" and "pad_token", as far as the files say it; "" where they say none.

    As in Transformers, tokenizer_config.json says it; special_tokens_map.json beside it says more in folders of old
    versions, which have no `added_tokens_decoder`.

    Raises:
        TokenizerError: a broken file.
    """
    said = _config(folder, read)
    if "added_tokens_decoder" not in said:
        said |= _read_json(_inside(folder, "special_tokens_map.json"), read)
    return {key: _text_of(said[key], key, folder) for key in TOKENS if key in said}


def read_chat_template(folder: str, read: Read, tokens: Mapping[str, str]) -> str:
    """The chat template of a folder with its special tokens, as JSON in the form of a tokenizer_config.json.

    A file chat_template.jinja comes before the `chat_template` of tokenizer_config.json, as in Transformers.

    Args:
        folder: its path or URL.
        read: gives the bytes of a file.
        tokens: those that an argument gives, which come before those of the files.

    Raises:
        ConfigError: there is none.
        TokenizerError: a broken file.
    """
    config = _config(folder, read) | read_tokens(folder, read) | dict(tokens)
    path = _inside(folder, "chat_template.jinja")
    if (data := read(path)) is not None:
        try:
            config["chat_template"] = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(f"not UTF-8 ({error.reason}), so not a chat template", url=path) from error
    if not config.get("chat_template"):
        raise ConfigError(
            'chat="tokenizer" takes the chat template of the tokenizer\'s folder, and neither its '
            "tokenizer_config.json nor a chat_template.jinja has one",
            url=folder,
        )
    return msgspec.json.encode(config).decode()


def _inside(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def _config(folder: str, read: Read) -> dict[str, Any]:
    return _read_json(_inside(folder, "tokenizer_config.json"), read)


def _read_json(path: str, read: Read) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file."""
    if (data := read(path)) is None:
        return {}
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"not a JSON object: {error}", url=path) from error


def _text_of(token: object, key: str, folder: str) -> str:
    """A token as these files write it: its text, or an object with it, or null."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str | None):
        raise TokenizerError(f"{key} in tokenizer_config.json or special_tokens_map.json is {text!r:.80}", url=folder)
    return text or ""
