"""Faster engines for a tokenizer: the same ids from another library, or from the same in another way, where proved.

In:  a `SentencePieceTokenizer`.
Out: a tokenizer of the same digest, special ids and vocabulary size, whose `encode` gives the same ids faster; or the
     same tokenizer. An engine is a matter of speed alone and no part of the fingerprint.

    gigatoken       another library, several times as fast
    sentencepiece   the library itself, given long texts in parts: a fifth to a third faster

Never true: that an engine is used for a model it was not proved for (`bpe.obstacle`, `bpe.can_be_cut`), that its memory
grows without end, that the text of a control token becomes its id (the library is not told of such tokens), or that a
live handle of the library crosses a process.
"""

import importlib.metadata
import logging
import re
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from streampack.errors import ConfigError, TokenizerError
from streampack.records import ControlToken, Tokenizer, Tokens
from streampack.tokenizers import bpe
from streampack.tokenizers.files import check_unicode
from streampack.tokenizers.loading import SentencePieceTokenizer

ENGINES = ("auto", "sentencepiece", "gigatoken")
CHECK_ONE_IN = 256
"""Of so many documents one is encoded by both; chosen by its content, so by no rank or worker."""
CHECK_MAX_BYTES = 2**20
"""A larger document is not encoded by both: SentencePiece takes hundreds of bytes of memory for each of its bytes."""
CACHE_BYTES = 32 * 2**20
"""UTF-8 after which the library starts afresh, because its cache has no bound: 2 to 4 bytes for a byte of ordinary
text, 13 for one of random numbers. To start afresh takes about 40 ms, and 5 % of the rate in all."""

PART = 300
"""Characters: SentencePiece's BPE is fastest at 200 to 500, where caches hold its list of joins and calls are few."""

_log = logging.getLogger(__name__)


def choose_engine(tokenizer: Tokenizer, engine: str = "auto") -> Tokenizer:
    """`tokenizer`, or a faster one with the same ids.

    Args:
        tokenizer: any; only a SentencePiece BPE model has a faster engine.
        engine: "sentencepiece" leaves SentencePiece in place, part by part where that is proved; "gigatoken" demands
            that library; "auto" takes it where it is installed and its ids are proved equal for this model. What was
            taken, and why, is logged (level info).

    Raises:
        ConfigError: no such engine, or not one for this kind of tokenizer.
        TokenizerError: the engine asked for is not installed, or not proved to give the same ids for this model.
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine={engine!r} must be one of {', '.join(map(repr, ENGINES))}")
    if isinstance(tokenizer, Engine):
        if engine in ("auto", tokenizer.engine):
            return tokenizer
        tokenizer = tokenizer.plain
    if type(tokenizer) is not SentencePieceTokenizer:  # a subclass may have an `encode` of its own
        if engine == "gigatoken":
            kind = type(tokenizer).__name__
            raise ConfigError(f'engine="gigatoken" is for SentencePiece models, and this is {kind}: use engine="auto"')
        return tokenizer
    if engine != "sentencepiece":
        try:
            fast = GigatokenTokenizer(tokenizer)
        except TokenizerError as error:
            if engine == "gigatoken":
                raise
            _log.info("tokenizing with SentencePiece: %s", error)
        else:
            _log.info("tokenizing with gigatoken %s: proved to give SentencePiece's ids for this model", _version())
            return fast
    try:
        return PartsTokenizer(tokenizer)
    except TokenizerError as error:
        _log.info("each text goes to SentencePiece as a whole: %s", error)
        return tokenizer


class Engine:
    """What gives another tokenizer's ids, and so has all else of it."""

    engine: str
    """Its name for `choose_engine`."""

    def __init__(self, plain: SentencePieceTokenizer) -> None:
        self.plain = plain
        self.bos_id, self.eos_id, self.pad_id = plain.bos_id, plain.eos_id, plain.pad_id
        self.vocab_size, self.digest = plain.vocab_size, plain.digest

    def control_tokens(self) -> dict[str, ControlToken]:
        """The model's control pieces, by name."""
        return self.plain.control_tokens()

    def id_to_piece(self, token: int) -> str:
        """The vocabulary's piece of an id, with its U+2581 for a space."""
        return self.plain.id_to_piece(token)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.plain!r})"


class PartsTokenizer(Engine):
    """SentencePiece's ids by SentencePiece itself, which gets long texts cut where no piece can lie across.

    Args:
        plain: the tokenizer whose ids to give.
        part: characters of a part, at least.

    Raises:
        ConfigError: no such parts.
        TokenizerError: the ids are not proved to be the same for this model.
    """

    engine = "sentencepiece"

    def __init__(self, plain: SentencePieceTokenizer, *, part: int = PART) -> None:
        super().__init__(plain)
        if part < 1:
            raise ConfigError(f"part={part}: a part has at least one character")
        model = _read_model(plain)
        if not bpe.can_be_cut(model):
            raise TokenizerError("the model may join or change what lies on both sides of a space")
        self._part = part
        self._space_is_implied = model.add_dummy_prefix
        text = " ".join(bpe.edge_texts(model))
        if not np.array_equal(self._joined(text, 1), plain.encode(text)):
            raise TokenizerError("this release of the library gives parts of a text other ids")

    def encode(self, text: str) -> Tokens:
        """The ids of `text`, int32 [n]."""
        if len(text) <= self._part:
            return self.plain.encode(text)
        try:
            return self._joined(text, self._part)
        except TokenizerError:
            check_unicode(text)  # which says where in all of the text
            raise

    def _joined(self, text: str, part: int) -> Tokens:
        parts = bpe.cut(text, part, space_is_implied=self._space_is_implied)
        return np.concatenate([self.plain.encode(each) for each in parts])


class GigatokenTokenizer(Engine):
    """SentencePiece's ids by the Rust library gigatoken (`pip install streampack[fast]`).

    What the library cannot do goes through SentencePiece: normalization of other things than spaces, and the documents
    that hold a user-defined piece.

    Args:
        plain: the tokenizer whose ids to give.
        cache_bytes: UTF-8 after which the library's cache is dropped.

    Raises:
        TokenizerError: the library is not installed, or not proved to give the same ids for this model.
    """

    engine = "gigatoken"

    def __init__(self, plain: SentencePieceTokenizer, *, cache_bytes: int = CACHE_BYTES) -> None:
        _version()  # where it is not installed, say so before the model is looked through
        super().__init__(plain)
        self._cache_bytes = cache_bytes
        self._encode_bytes: Callable[[Any], Any] | None = None
        self._spent = 0
        model = _read_model(plain)
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
        """Refuse a release of the library that does not do what the proof takes for granted."""
        try:
            for text in texts:
                self._check(text, self._encode(text, text.encode()))
        except TokenizerError:
            raise
        except Exception as error:  # another release, with another interface
            found = f"gigatoken {_version()} cannot be used ({type(error).__name__}: {error})"
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
            f"gigatoken {_version()} gives other ids than SentencePiece for a document of {len(text):,} characters, "
            f"{text[:40]!r}...: from token {first} on {ids[first : first + 3].tolist()} instead of "
            f'{right[first : first + 3].tolist()}; use engine="sentencepiece"'
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_encode_bytes": None}


def _read_model(plain: SentencePieceTokenizer) -> bpe.Model:
    try:
        return bpe.read_model(plain.model)
    except ValueError as error:
        raise TokenizerError(f"a model that cannot be taken apart ({error})") from error


def _with_unknown(ids: Tokens, vocab_size: int, unknown_id: int) -> Tokens:
    """`ids` with one unknown id for each run of ids from `vocab_size` on: bytes of characters without a piece."""
    unknown = ids >= vocab_size
    if not unknown.any():
        return ids
    begins = np.diff(unknown, prepend=False)  # of runs of either kind
    return np.where(unknown, np.int32(unknown_id), ids)[~unknown | begins]


def _version() -> str:
    try:
        import gigatoken  # noqa: F401  # installed is what can be imported
    except ImportError as error:
        raise TokenizerError(f"gigatoken is not installed ({error}): pip install streampack[fast]") from error
    return importlib.metadata.version("gigatoken")
