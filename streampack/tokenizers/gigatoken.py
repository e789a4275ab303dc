"""Other libraries' ids several times as fast, from the library gigatoken: the only place where it is used.

Used are `Tokenizer.from_json(...).backend`, its `encode(bytes)` and `encode_no_normalize(str)`, which give uint32
arrays. None of these is documented; tried with gigatoken 0.10.0. Another release is taken where it gives the plain
tokenizer's ids for texts made to break it, and refused with its version where it does not.

It is asked for one document at a time. `encode_batch` keeps the same cache and gives flat ids with offsets, but is no
faster: 15 to 24 Mtok/s where single documents of 1,000 tokens come to 18 to 29, 8 to 12 to 12 to 20 for such of 100.

Its cache of words has no bound, nor a way to ask how large it is, and neither the bytes of text nor the time that they
take tell it: a byte of text adds 2 bytes with a SentencePiece model, 0.3 (english) to 1.5 (multilingual) with GPT-2's,
and up to 13 if no word returns (random numbers), some of it at a high speed. So the allocator is asked how much memory
is in use, once in `LOOK_BYTES` of text, and where that is `CACHE_BYTES` more than just after the start, the library is
started again. What else the process has allocated since the start counts too, and makes one start come early. A start
takes about 0.07 s of the processor for 32,000 pieces, 0.15 s for GPT-2, 0.8 s for Llama 3; with text in natural
languages and code it comes after 30 MB or more.

Never: a model that the library may read in another way (`bpe.obstacle`, `byte_level.obstacle`), or for which it gives
other ids on the texts made to tell the two apart (`compare`); memory that grows without end; the text of a control
token as its id (the library is not told of such tokens); a live handle of the library in a pickle.
"""

import ctypes
import functools
import importlib.metadata
import re
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from streampack.errors import TokenizerError
from streampack.records import Tokens
from streampack.tokenizers import bpe, byte_level
from streampack.tokenizers.characters import SettledTexts, class_texts
from streampack.tokenizers.comparing import ComparedEngine
from streampack.tokenizers.huggingface import HuggingFaceTokenizer
from streampack.tokenizers.parts import read_model
from streampack.tokenizers.sentencepiece import SentencePieceTokenizer

CACHE_BYTES = 64 * 2**20
"""Bytes that the process may allocate after a start of the library until it is started again."""
LOOK_BYTES = 2 * 2**20
"""Bytes of text between two looks at that; so the cache exceeds it by 26 MB at most."""
UNSEEN_GROWTH = 4
"""Bytes of cache to expect for a byte of text, where the allocator cannot be asked."""


class GigatokenTokenizer(ComparedEngine):
    """A tokenizer's ids by the Rust library gigatoken (`pip install streampack[fast]`), for any model that it reads.

    Args:
        plain: the tokenizer whose ids to give.
        json: the model as the library reads it, without the tokens that no text may become.
        cache_bytes: memory allocated since the library's start after which its cache is dropped.

    Raises:
        TokenizerError: the library is not installed.
    """

    engine = "gigatoken"

    def __init__(self, plain: Any, json: bytes, cache_bytes: int) -> None:
        super().__init__(plain)
        self.library = f"gigatoken {version()}"
        self._json = json
        self._cache_bytes = cache_bytes
        self._handle: Callable[[Any], Any] | None = None
        self._in_use = 0
        """What was allocated after the start; 0 where it cannot be asked."""
        self._text = 0
        """Bytes given to the library between its start and the last look."""
        self._left = 0
        """Bytes until the next look."""

    def _ids(self, text: bytes | str) -> Tokens:
        """The library's ids."""
        encode = self._handle or self._start()
        ids: Tokens = encode(text).view(np.int32)
        self._left -= len(text)
        if self._left < 0:
            self._look()
        return ids

    def _start(self) -> Callable[[Any], Any]:
        """The library's function, with an empty cache."""
        import gigatoken

        self._handle = self._function(gigatoken.Tokenizer.from_json(self._json).backend)
        self._in_use, self._text, self._left = in_use(), 0, LOOK_BYTES
        return self._handle

    def _look(self) -> None:
        """Drop the cache if it may have become too large."""
        self._text += LOOK_BYTES - self._left
        self._left = LOOK_BYTES
        grown = in_use() - self._in_use if self._in_use else UNSEEN_GROWTH * self._text
        if grown > self._cache_bytes:
            self._handle = None

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
        cache_bytes: memory allocated since the library's start after which its cache is dropped.

    Raises:
        TokenizerError: the library is not installed, may read this model in another way, or gives other ids.
    """

    own_name = "sentencepiece"

    def __init__(self, plain: SentencePieceTokenizer, *, cache_bytes: int = CACHE_BYTES) -> None:
        version()  # where it is not installed, say so before the model is looked through
        model = read_model(plain)
        obstacle = bpe.obstacle(model)
        if obstacle is not None:
            raise TokenizerError(f'no faster engine for this model: {obstacle}; use engine="sentencepiece"')
        super().__init__(plain, bpe.tokenizer_json(model), cache_bytes)
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

    The plain tokenizer does what the library cannot be trusted with: documents that are not in the form NFC, where the
    file normalizes to it, and documents with characters that Unicode has assigned lately.

    Args:
        plain: the tokenizer whose ids to give.
        cache_bytes: memory allocated since the library's start after which its cache is dropped.

    Raises:
        TokenizerError: the library is not installed, may read this file in another way, or gives other ids.
    """

    own_name = "tokenizers"

    def __init__(self, plain: HuggingFaceTokenizer, *, cache_bytes: int = CACHE_BYTES) -> None:
        version()
        config = plain.library_config()
        obstacle = "text can become one of its special tokens" if config is None else byte_level.obstacle(config)
        if config is None or obstacle is not None:
            raise TokenizerError(f'no faster engine for this tokenizer.json: {obstacle}; use engine="tokenizers"')
        super().__init__(plain, msgspec.json.encode(byte_level.reduced(config)), cache_bytes)
        _compare_words(msgspec.json.encode(byte_level.revealing(config)))
        self._settled = SettledTexts(nfc=bool(config.get("normalizer")))
        self.compare(byte_level.edge_texts(config))

    def _encode(self, text: str, data: bytes) -> Tokens:
        if text.isascii() or text in self._settled:
            return self._ids(data)
        plain: Tokens = self.plain.encode(text)
        return plain


class _Words(GigatokenTokenizer):
    """Of a small model that shows how text is cut into words."""

    own_name = "tokenizers"

    def _encode(self, text: str, data: bytes) -> Tokens:
        return self._ids(data)


@functools.cache
def _compare_words(json: bytes) -> None:
    """Raise where the library cuts text into other words; `json`: of `byte_level.revealing`."""
    words = _Words(HuggingFaceTokenizer(json), json, CACHE_BYTES)
    words.compare([*class_texts(), *byte_level.EDGE_TEXTS])


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


class _Mallinfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


@functools.cache
def _mallinfo() -> Callable[[], Any] | None:
    """The function of glibc 2.33 and later; None for another C library."""
    try:
        found = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return None
    found.restype = _Mallinfo
    return found


def in_use() -> int:
    """Bytes that the process has allocated and not freed; 0 if its allocator is not glibc's and so cannot be asked."""
    ask = _mallinfo()
    if ask is None:
        return 0
    found = ask()
    return int(found.uordblks + found.hblkhd)
