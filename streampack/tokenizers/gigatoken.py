"""Other libraries' ids several times as fast, from the library gigatoken: the only place where it is used.

Used are `Tokenizer.from_json(...).backend`, its `encode(bytes)` and `encode_no_normalize(str)`, which give uint32
arrays. None of these is documented; tried with gigatoken 0.10.0. Another release is taken where it gives the plain
tokenizer's ids for texts made to break it, and refused with its version where it does not.

It is asked for one document at a time. `encode_batch` keeps the same cache and gives flat ids with offsets, but is no
faster: 15 to 24 Mtok/s where single documents of 1,000 tokens come to 18 to 29, 8 to 12 to 12 to 20 for such of 100.

Its cache has no bound, nor a way to ask how large it is. What fills it is words that it meets for the first time; each
takes about a microsecond, so at most 100 MB are filled in a second of its time. So it is started again after so much
of its time: that bounds the memory for any text, and ordinary text, of which nearly all words have come before, goes
through it fast and is seldom delayed.

Never: a model whose ids are not proved to be the same (`bpe.obstacle`, `byte_level.obstacle`); memory that grows
without end; the text of a control token as its id (the library is not told of such tokens); a live handle of the
library in a pickle.
"""

import functools
import importlib.metadata
import re
from collections.abc import Callable
from time import thread_time
from typing import Any

import msgspec
import numpy as np

from streampack.errors import TokenizerError
from streampack.records import Tokens
from streampack.tokenizers import bpe, byte_level
from streampack.tokenizers.comparing import ComparedEngine
from streampack.tokenizers.huggingface import HuggingFaceTokenizer
from streampack.tokenizers.parts import read_model
from streampack.tokenizers.sentencepiece import SentencePieceTokenizer

CACHE_S = 1.0
"""Seconds of processor time in the library after which it is started again, because its cache has no bound."""
STARTS = 4
"""So many times what a start takes, at least."""


class GigatokenTokenizer(ComparedEngine):
    """A tokenizer's ids by the Rust library gigatoken (`pip install streampack[fast]`), for any model that it reads.

    Args:
        plain: the tokenizer whose ids to give.
        json: the model as the library reads it, without the tokens that no text may become.
        cache_s: seconds of the library's time after which its cache is dropped.

    Raises:
        TokenizerError: the library is not installed.
    """

    engine = "gigatoken"

    def __init__(self, plain: Any, json: bytes, cache_s: float) -> None:
        super().__init__(plain)
        self.library = f"gigatoken {version()}"
        self._json = json
        self._cache_s = cache_s
        self._handle: Callable[[Any], Any] | None = None
        self._left_s = 0.0

    def _ids(self, text: bytes | str) -> Tokens:
        """The library's ids."""
        encode = self._handle or self._start()
        begin = thread_time()
        ids: Tokens = encode(text).view(np.int32)
        self._left_s -= thread_time() - begin
        if self._left_s < 0:
            self._handle = None
        return ids

    def _start(self) -> Callable[[Any], Any]:
        """The library's function, with an empty cache."""
        import gigatoken

        begin = thread_time()
        self._handle = self._function(gigatoken.Tokenizer.from_json(self._json).backend)
        self._left_s = max(self._cache_s, STARTS * (thread_time() - begin)) if self._cache_s else 0
        return self._handle

    def _function(self, backend: Any) -> Callable[[Any], Any]:
        # Bytes, because a string keeps the UTF-8 that a library asks it for.
        found: Callable[[Any], Any] = backend.encode
        return found

    def compare(self, texts: list[str]) -> None:
        """See `ComparedEngine`; each process starts the library itself."""
        try:
            super().compare(texts)
        finally:
            self._handle = None

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_handle": None}


class FastSentencePiece(GigatokenTokenizer):
    """SentencePiece's ids.

    SentencePiece does what the library cannot: it normalizes anything but spaces, and encodes documents that hold a
    user-defined piece.

    Args:
        plain: the tokenizer whose ids to give.
        cache_s: seconds of the library's time after which its cache is dropped.

    Raises:
        TokenizerError: the library is not installed, or not proved to give the same ids for this model.
    """

    own_name = "sentencepiece"

    def __init__(self, plain: SentencePieceTokenizer, *, cache_s: float = CACHE_S) -> None:
        version()  # where it is not installed, say so before the model is looked through
        model = read_model(plain)
        obstacle = bpe.obstacle(model)
        if obstacle is not None:
            raise TokenizerError(f'no faster engine for this model: {obstacle}; use engine="sentencepiece"')
        super().__init__(plain, bpe.tokenizer_json(model), cache_s)
        reserved = sorted(model.texts(bpe.USER_DEFINED), key=len, reverse=True)
        self._reserved = re.compile("|".join(map(re.escape, reserved))) if reserved else None
        self._raw = model.only_escapes_spaces
        self._unknown_id = None if model.byte_fallback else model.unknown_id
        self.compare([*bpe.edge_texts(model), *bpe.tied_texts(model)])

    def _encode(self, text: str, data: bytes) -> Tokens:
        matched = text if self._raw else self.plain.normalize(text)
        if self._reserved is not None and self._reserved.search(matched):
            plain: Tokens = self.plain.encode(text)
            return plain
        ids = self._ids(data if self._raw else matched)
        return ids if self._unknown_id is None else _with_unknown(ids, self.vocab_size, self._unknown_id)

    def _function(self, backend: Any) -> Callable[[Any], Any]:
        return super()._function(backend) if self._raw else backend.encode_no_normalize


class FastByteLevel(GigatokenTokenizer):
    """The ids of a byte-level BPE from a `tokenizer.json` or `tekken.json`.

    The plain tokenizer does what the library cannot be trusted with: documents with characters that Unicode has
    assigned lately.

    Args:
        plain: the tokenizer whose ids to give.
        cache_s: seconds of the library's time after which its cache is dropped.

    Raises:
        TokenizerError: the library is not installed, or not proved to give the same ids for this file.
    """

    own_name = "tokenizers"

    def __init__(self, plain: HuggingFaceTokenizer, *, cache_s: float = CACHE_S) -> None:
        version()
        config = plain.library_config()
        obstacle = "text can become one of its special tokens" if config is None else byte_level.obstacle(config)
        if config is None or obstacle is not None:
            raise TokenizerError(f'no faster engine for this tokenizer.json: {obstacle}; use engine="tokenizers"')
        super().__init__(plain, msgspec.json.encode(byte_level.reduced(config)), cache_s)
        _compare_words(msgspec.json.encode(byte_level.revealing(config)))
        self._unsettled = byte_level.unsettled()
        self.compare(byte_level.edge_texts(config))

    def _encode(self, text: str, data: bytes) -> Tokens:
        if not text.isascii():
            points = np.frombuffer(text.encode("utf-32-le"), np.int32)
            if self._unsettled.take(points, mode="clip").any():
                plain: Tokens = self.plain.encode(text)
                return plain
        return self._ids(data)


class _Words(GigatokenTokenizer):
    """Of a small model that shows how text is cut into words."""

    own_name = "tokenizers"

    def _encode(self, text: str, data: bytes) -> Tokens:
        return self._ids(data)


@functools.cache
def _compare_words(json: bytes) -> None:
    """Raise where the library cuts text into other words; `json`: of `byte_level.revealing`."""
    words = _Words(HuggingFaceTokenizer(json), json, CACHE_S)
    words.compare([*byte_level.class_texts(), *byte_level.EDGE_TEXTS])


def _with_unknown(ids: Tokens, vocab_size: int, unknown_id: int) -> Tokens:
    """`ids` with one unknown id for each run of ids from `vocab_size` on: bytes of characters without a piece."""
    unknown = ids >= vocab_size
    if not unknown.any():
        return ids
    begins = np.diff(unknown, prepend=False)  # of runs of either kind
    return np.where(unknown, np.int32(unknown_id), ids)[~unknown | begins]


def version() -> str:
    """The release that is installed; a TokenizerError where none is."""
    try:
        import gigatoken  # noqa: F401  # installed is what can be imported
    except ImportError as error:
        raise TokenizerError(f"gigatoken is not installed ({error}): pip install streampack[fast]") from error
    return importlib.metadata.version("gigatoken")
