"""The tokenizer of a dataset: the object that was given, or what is at a path, with the faster engine that it may have.

In:    the argument `tokenizer`, and how the storage is reached.
Out:   a `Tokenizer`; the chat template of its folder.
Never: an error that calls the tokenizer's file a shard; a name of a hub looked up.
"""

import dataclasses
import os
from collections.abc import Mapping
from functools import partial

from streampack.chat.options import TOKENIZERS_OWN, as_chat
from streampack.dataset.arguments import DatasetArguments, SourceReading
from streampack.errors import ConfigError, ShardError, ShardNotFoundError, StreampackError, TokenizerError
from streampack.records import Tokenizer
from streampack.storage.access import StorageReader
from streampack.tokenizers.engines import choose_engine
from streampack.tokenizers.files import nothing_at, obstacle_of_text
from streampack.tokenizers.folders import read_chat_template, read_model, read_tokens
from streampack.tokenizers.loading import check_tokenizer, load_tokenizer


def make_tokenizer(arguments: DatasetArguments, storage: StorageReader) -> Tokenizer | None:
    """The tokenizer that the arguments ask for; None without one.

    Raises:
        ConfigError: an engine that this kind of tokenizer does not have.
        TokenizerError: nothing is there, or it is not a tokenizer.
    """
    tokenizer = arguments.tokenizer
    if isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = read_tokenizer(os.fspath(tokenizer), storage, arguments.special_tokens)
    return None if tokenizer is None else choose_engine(check_tokenizer(tokenizer), arguments.engine)


def read_tokenizer(path: str, storage: StorageReader, tokens: Mapping[str, str]) -> Tokenizer:
    """The tokenizer at a path or URL of a file or a folder.

    Args:
        path: of the file or the folder.
        storage: how it is reached.
        tokens: "bos_token" and so on -> the token's text; they come before what the files say.

    Raises:
        TokenizerError: nothing is there, or it is not a tokenizer.
    """
    if obstacle := obstacle_of_text(path):
        raise TokenizerError(obstacle)
    read = partial(_read, storage)
    if not _is_folder(path, storage):
        if (data := read(path)) is not None:
            return load_tokenizer(data, name=path, tokens=tokens)
        if not storage.is_directory(path):
            raise TokenizerError(nothing_at(path), url=path)
    data, name = read_model(path, read, partial(_names, storage, path))
    said = read_tokens(path, read)
    try:
        return load_tokenizer(data, name=name, tokens=said | dict(tokens))
    except TokenizerError as error:
        key = error.message.removeprefix(f"{name}: ").partition("=")[0]
        if key in tokens or key not in said:
            raise
        files = "the tokenizer_config.json or special_tokens_map.json beside the file"
        raise TokenizerError(f"{error.message}. This {key} is from {files}", url=error.url) from error


def with_own_template(reading: SourceReading, arguments: DatasetArguments, storage: StorageReader) -> SourceReading:
    """A source's reading, with the chat template of the tokenizer's folder in place of `chat="tokenizer"`.

    Raises:
        ConfigError: the tokenizer is not given by its folder, or the folder has no template.
    """
    chat = as_chat(reading.chat)
    if chat.template != TOKENIZERS_OWN:
        return reading
    path = arguments.tokenizer
    if not isinstance(path, (str, os.PathLike)) or not storage.is_directory(os.fspath(path)):
        raise ConfigError(
            'chat="tokenizer" takes the chat template of the tokenizer\'s folder: give tokenizer= such a folder, or '
            "chat= the path of the tokenizer_config.json or chat_template.jinja"
        )
    text = read_chat_template(os.fspath(path), partial(_read, storage), arguments.special_tokens)
    return reading._replace(chat=dataclasses.replace(chat, template=text))


def _is_folder(path: str, storage: StorageReader) -> bool:
    """Whether it is known to be a folder without a request: of other URLs the file itself is asked for first."""
    return path.endswith("/") or (storage.is_local_name(path) and storage.is_directory(path))


def _names(storage: StorageReader, folder: str) -> list[str]:
    """The names of a folder's files; none where the storage cannot list it."""
    try:
        found = storage.listing(f"{folder.rstrip('/')}/*")
    except StreampackError:  # what is said without the names is the error
        return []
    return [url.rpartition("/")[2] for url, _ in found]


def _read(storage: StorageReader, path: str) -> bytes | None:
    """The bytes of a file; None where nothing is, or a folder; an error is about the tokenizer."""
    try:
        return storage.read(path)
    except ShardNotFoundError:
        return None
    except ShardError as error:
        if isinstance(error.__cause__, IsADirectoryError):
            return None
        reason = error.message.removeprefix(f"{path}: ")
        raise TokenizerError(f"the tokenizer cannot be read: {reason}", url=path) from error
