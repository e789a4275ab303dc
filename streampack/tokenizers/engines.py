"""Faster engines for a tokenizer: another library, or another way to call the same one, where equal ids are proved.

In:  a `SentencePieceTokenizer`.
Out: a tokenizer of the same digest, special ids and vocabulary size, whose `encode` gives the same ids faster; or the
     same tokenizer. An engine is a matter of speed alone and no part of the fingerprint.

    gigatoken       another library, several times as fast
    sentencepiece   the library itself, given long texts in parts: a fifth to a third faster
"""

import logging

from streampack.errors import ConfigError, TokenizerError, check_choice
from streampack.records import Tokenizer
from streampack.tokenizers import gigatoken
from streampack.tokenizers.comparing import Engine
from streampack.tokenizers.gigatoken import FastSentencePiece
from streampack.tokenizers.parts import PartsTokenizer
from streampack.tokenizers.sentencepiece import SentencePieceTokenizer

ENGINES = ("auto", "sentencepiece", "gigatoken")

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
    check_choice(engine, ENGINES, "engine")
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
            fast = FastSentencePiece(tokenizer)
        except TokenizerError as error:
            if engine == "gigatoken":
                raise
            _log.info("tokenizing with SentencePiece: %s", error)
        else:
            version = gigatoken.version()
            _log.info("tokenizing with gigatoken %s: proved to give SentencePiece's ids for this model", version)
            return fast
    try:
        return PartsTokenizer(tokenizer)
    except TokenizerError as error:
        _log.info("each text goes to SentencePiece as a whole: %s", error)
        return tokenizer
