"""SentencePiece's ids several times as fast, from the library gigatoken: the only place where it is used.

Used are `Tokenizer.from_json(...).backend`, its `encode(bytes)` and `encode_no_normalize(str)`, which give uint32
arrays. None of these is documented; tried with gigatoken 0.10.0. Another release is taken where it gives
SentencePiece's ids for the texts of `bpe.edge_texts`, and refused with its version where it does not.

Never: a model whose ids are not proved to be the same (`bpe.obstacle`); memory that grows without end; the text of a
control token as its id (the library is not told of such tokens); a live handle of the library in a pickle.
"""

import importlib.metadata
import re
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from streampack.errors import TokenizerError
from streampack.records import Tokens
from streampack.tokenizers import bpe
from streampack.tokenizers.parts import Engine, read_model
from streampack.tokenizers.sentencepiece import SentencePieceTokenizer

CHECK_ONE_IN = 256
"""One document in so many is encoded by both libraries; it is chosen by its content, not by rank or worker."""
CHECK_MAX_BYTES = 2**20
"""Bytes: a larger document is not encoded by both, as SentencePiece takes hundreds of bytes of memory for each byte."""
CACHE_BYTES = 32 * 2**20
"""Bytes of UTF-8 after which the library is started again, because its cache has no bound: it grows by 2 to 4 bytes for
a byte of ordinary text, by 13 for a byte of random numbers. A start takes about 40 ms, and costs 5 % of the speed."""


class GigatokenTokenizer(Engine):
    """SentencePiece's ids by the Rust library gigatoken (`pip install streampack[fast]`).

    SentencePiece does what the library cannot: it normalizes anything but spaces, and encodes documents that hold a
    user-defined piece.

    Args:
        plain: the tokenizer whose ids to give.
        cache_bytes: UTF-8 after which the library's cache is dropped.

    Raises:
        TokenizerError: the library is not installed, or not proved to give the same ids for this model.
    """

    engine = "gigatoken"

    def __init__(self, plain: SentencePieceTokenizer, *, cache_bytes: int = CACHE_BYTES) -> None:
        version()  # where it is not installed, say so before the model is looked through
        super().__init__(plain)
        self._cache_bytes = cache_bytes
        self._encode_bytes: Callable[[Any], Any] | None = None
        self._spent = 0
        model = read_model(plain)
        obstacle = bpe.obstacle(model)
        if obstacle is not None:
            raise TokenizerError(f'no faster engine for this model: {obstacle}; use engine="sentencepiece"')
        reserved = sorted(model.texts(bpe.USER_DEFINED), key=len, reverse=True)
        self._reserved = re.compile("|".join(map(re.escape, reserved))) if reserved else None
        self._raw = model.only_escapes_spaces
        self._unknown_id = None if model.byte_fallback else model.unknown_id
        self._json = bpe.tokenizer_json(model)
        self._compare([*bpe.edge_texts(model), *bpe.tied_texts(model)])

    def encode(self, text: str) -> Tokens:
        """The ids of `text`, int32 [n].

        Raises:
            TokenizerError: SentencePiece gives other ids; one document in `CHECK_ONE_IN` is compared.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError:
            return self.plain.encode(text)  # which says what is wrong
        ids = self._encode(text, data)
        # Ends and length are cheap to hash and differ where documents do.
        chosen = zlib.crc32(data[:64], zlib.crc32(data[-64:], len(data) & 0xFFFFFFFF)) % CHECK_ONE_IN == 0
        if chosen and len(data) <= CHECK_MAX_BYTES:
            self._check(text, ids)
        return ids

    def _encode(self, text: str, data: bytes) -> Tokens:
        """The ids of `text`, whose UTF-8 is `data`."""
        matched = text if self._raw else self.plain.normalize(text)
        if self._reserved is not None and self._reserved.search(matched):
            return self.plain.encode(text)
        engine = self._encode_bytes or self._start()
        # Bytes, because a string keeps the UTF-8 that a library asks it for.
        ids: Tokens = engine(data if self._raw else matched).view(np.int32)
        self._spent += len(data)
        if self._spent > self._cache_bytes:
            self._encode_bytes = None
        return ids if self._unknown_id is None else _with_unknown(ids, self.vocab_size, self._unknown_id)

    def _start(self) -> Callable[[Any], Any]:
        """The library's function, with an empty cache."""
        import gigatoken

        backend: Any = gigatoken.Tokenizer.from_json(self._json).backend
        start: Callable[[Any], Any] = backend.encode if self._raw else backend.encode_no_normalize
        self._encode_bytes, self._spent = start, 0
        return start

    def _compare(self, texts: list[str]) -> None:
        """Raise for a release of the library that does not behave as the proof assumes."""
        try:
            for text in texts:
                self._check(text, self._encode(text, text.encode()))
        except TokenizerError:
            raise
        except Exception as error:  # another release, with another interface
            found = f"gigatoken {version()} cannot be used ({type(error).__name__}: {error})"
            raise TokenizerError(f'{found}: install another release, or use engine="sentencepiece"') from error
        finally:
            self._encode_bytes = None  # each process starts its own

    def _check(self, text: str, ids: Tokens) -> None:
        right = self.plain.encode(text)
        if np.array_equal(ids, right):
            return
        shared = min(len(ids), len(right))
        first = int(np.argmax(np.append(ids[:shared] != right[:shared], True)))  # the shared part's end if all is equal
        raise TokenizerError(
            f"gigatoken {version()} gives other ids than SentencePiece for a document of {len(text):,} characters, "
            f"{text[:40]!r}...: from token {first} on {ids[first : first + 3].tolist()} instead of "
            f'{right[first : first + 3].tolist()}; use engine="sentencepiece"'
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_encode_bytes": None}


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
