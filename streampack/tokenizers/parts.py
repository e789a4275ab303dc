"""SentencePiece's ids faster: from the library itself, which gets long texts in parts.

Never: a cut that a piece of the model could span (`bpe.can_be_cut`).
"""

import numpy as np

from streampack.errors import ConfigError, TokenizerError
from streampack.records import Tokens
from streampack.tokenizers import bpe
from streampack.tokenizers.comparing import Engine
from streampack.tokenizers.files import check_unicode
from streampack.tokenizers.sentencepiece import SentencePieceTokenizer

PART = 300
"""Characters: SentencePiece's BPE is fastest at 200 to 500, where caches hold its list of joins and calls are few."""


def read_model(plain: SentencePieceTokenizer) -> bpe.Model:
    """The model taken apart; a TokenizerError where that is impossible."""
    try:
        return bpe.read_model(plain.model)
    except ValueError as error:
        raise TokenizerError(f"the SentencePiece model cannot be parsed ({error})") from error


class PartsTokenizer(Engine):
    """SentencePiece's ids by SentencePiece itself, which gets long texts cut where no piece can span the cut.

    Args:
        plain: the tokenizer whose ids to give.
        part: characters of a part, at least.

    Raises:
        ConfigError: `part` is less than 1.
        TokenizerError: the ids are not proved to be the same for this model.
    """

    engine = "sentencepiece"

    def __init__(self, plain: SentencePieceTokenizer, *, part: int = PART) -> None:
        super().__init__(plain)
        if part < 1:
            raise ConfigError(f"part={part}: a part has at least one character")
        model = read_model(plain)
        if not bpe.can_be_cut(model):
            raise TokenizerError("the model may join or change the text across a space")
        self._part = part
        self._space_is_implied = model.add_dummy_prefix
        text = " ".join(bpe.edge_texts(model))
        if not np.array_equal(self._joined(text, 1), plain.encode(text)):
            raise TokenizerError("this release of SentencePiece gives a text in parts other ids than the whole text")

    def encode(self, text: str) -> Tokens:
        """The ids of `text`, int32 [n]."""
        if len(text) <= self._part:
            whole: Tokens = self.plain.encode(text)
            return whole
        try:
            return self._joined(text, self._part)
        except TokenizerError:
            check_unicode(text)  # its error counts characters of the whole text
            raise

    def _joined(self, text: str, part: int) -> Tokens:
        parts = bpe.cut(text, part, space_is_implied=self._space_is_implied)
        return np.concatenate([self.plain.encode(each) for each in parts])
