"""Other libraries' ids several times as fast, from the library gigatoken: the only place where it is used.

Used are `Tokenizer.from_json(...).backend`, its `encode(bytes)` and `encode_no_normalize(str)`, which give uint32
arrays. None of these is documented; tried with gigatoken 0.10.0. Another release is taken where it gives the plain
tokenizer's ids for texts made to break it, and refused with its version where it does not.

Never: a model whose ids are not proved to be the same (`bpe.obstacle`); memory that grows
without end; the text of a control token as its id (the library is not told of such tokens); a live handle of the
library in a pickle.
"""

import importlib.metadata
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from streampack.errors import TokenizerError
from streampack.records import Tokens
from streampack.tokenizers import bpe
from streampack.tokenizers.comparing import ComparedEngine
from streampack.tokenizers.parts import read_model
from streampack.tokenizers.sentencepiece import SentencePieceTokenizer

CACHE_BYTES = 32 * 2**20
"""Bytes of UTF-8 after which the library is started again, because its cache has no bound: it grows by 2 to 4 bytes for
a byte of ordinary text, by 13 for a byte of random numbers. A start takes about 40 ms, and costs 5 % of the speed."""


class GigatokenTokenizer(ComparedEngine):
    """A tokenizer's ids by the Rust library gigatoken (`pip install streampack[fast]`), for any model that it reads.

    Args:
        plain: the tokenizer whose ids to give.
        json: the model as the library reads it, without the tokens that no text may become.

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
        self._spent = 0

    def _ids(self, text: bytes | str, size: int) -> Tokens:
        """The library's ids; `size`: bytes of UTF-8."""
        encode = self._handle or self._start()
        ids: Tokens = encode(text).view(np.int32)
        self._spent += size
        if self._spent > self._cache_bytes:
            self._handle = None
        return ids

    def _start(self) -> Callable[[Any], Any]:
        """The library's function, with an empty cache."""
        import gigatoken

        self._handle = self._function(gigatoken.Tokenizer.from_json(self._json).backend)
        self._spent = 0
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
        cache_bytes: UTF-8 after which the library's cache is dropped.

    Raises:
        TokenizerError: the library is not installed, or not proved to give the same ids for this model.
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
        ids = self._ids(data if self._raw else matched, len(data))
        return ids if self._unknown_id is None else _with_unknown(ids, self.vocab_size, self._unknown_id)

    def _function(self, backend: Any) -> Callable[[Any], Any]:
        return super()._function(backend) if self._raw else backend.encode_no_normalize


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
