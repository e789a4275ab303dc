"""Faster engines for a tokenizer: another library, or another way to call the same one, with the same ids.

In:  a `SentencePieceTokenizer`, or a `HuggingFaceTokenizer` of a byte-level BPE.
Out: a tokenizer of the same digest, special ids and vocabulary size, whose `encode` gives the same ids faster; or the
     same tokenizer. An engine is a matter of speed alone and no part of the fingerprint.

    gigatoken       another library, several times as fast
    sentencepiece   the library itself, given long texts in parts: a fifth to a third faster
    tokenizers      the library itself, for a tokenizer.json
"""

import logging
from collections.abc import Callable
from typing import Any

from streampack.errors import ConfigError, TokenizerError, check_choice
from streampack.records import Tokenizer
from streampack.tokenizers.comparing import Engine
from streampack.tokenizers.gigatoken import FastByteLevel, FastSentencePiece, GigatokenTokenizer
from streampack.tokenizers.huggingface import HuggingFaceTokenizer
from streampack.tokenizers.parts import PartsTokenizer
from streampack.tokenizers.sentencepiece import SentencePieceTokenizer

ENGINES = ("auto", "sentencepiece", "tokenizers", "gigatoken")

_FAST: dict[type, Callable[[Any], GigatokenTokenizer]] = {
    SentencePieceTokenizer: FastSentencePiece,
    HuggingFaceTokenizer: FastByteLevel,
}
_KINDS: dict[str, type] = {"sentencepiece": SentencePieceTokenizer, "tokenizers": HuggingFaceTokenizer}
"""The engines that are the library of a file -> the tokenizers of such files."""
_OWN: dict[type, str] = {SentencePieceTokenizer: "SentencePiece", HuggingFaceTokenizer: "the library tokenizers"}

_log = logging.getLogger(__name__)


def choose_engine(tokenizer: Tokenizer, engine: str = "auto") -> Tokenizer:
    """`tokenizer`, or a faster one with the same ids.

    Args:
        tokenizer: any; only a BPE model of SentencePiece and a byte-level BPE of a tokenizer.json have a faster engine.
        engine: "sentencepiece" and "tokenizers" leave the library that the file is made for in place, SentencePiece
            part by part where no piece can span the cut; "gigatoken" demands that library; "auto" takes it where it is
            installed, reads all of this file alike, and gives equal ids on texts made to tell the two apart. What was
            taken, and why, is logged (level info).

    Raises:
        ConfigError: no such engine, or not one for this kind of tokenizer.
        TokenizerError: the engine asked for is not installed, does not read this file alike, or gives other ids.
    """
    check_choice(engine, ENGINES, "engine")
    if isinstance(tokenizer, Engine):
        if engine in ("auto", tokenizer.engine):
            return tokenizer
        tokenizer = tokenizer.plain
    own = _KINDS.get(engine)
    if own is not None and isinstance(tokenizer, tuple(_KINDS.values())) and not isinstance(tokenizer, own):
        right = next(name for name, kind in _KINDS.items() if isinstance(tokenizer, kind))
        raise ConfigError(f'engine="{engine}" does not read this tokenizer\'s file: use engine="{right}" or "auto"')
    fast = _FAST.get(type(tokenizer))  # a subclass may have an `encode` of its own
    if fast is None:
        if engine == "gigatoken":
            kind = type(tokenizer).__name__
            what = "SentencePiece models and the byte-level BPE of a tokenizer.json"
            raise ConfigError(f'engine="gigatoken" is for {what}, and this is {kind}: use engine="auto"')
        return tokenizer
    if engine in ("auto", "gigatoken"):
        try:
            found = fast(tokenizer)
        except TokenizerError as error:
            if engine == "gigatoken":
                raise
            _log.info("tokenizing with %s: %s", _OWN[type(tokenizer)], error)
        else:
            what = "tokenizing with %s: the ids of %s on all texts that were compared for this file"
            _log.info(what, found.library, _OWN[type(tokenizer)])
            return found
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return tokenizer
    try:
        return PartsTokenizer(tokenizer)
    except TokenizerError as error:
        _log.info("each text goes to SentencePiece as a whole: %s", error)
        return tokenizer
