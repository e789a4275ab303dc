"""A SentencePiece model as a tokenizer.

In:  the bytes of a `.model`, then texts.
Out: int32 ids of each text alone.
Never: the text `<s>` of a document as a control id (it gives ordinary pieces); a live handle of the library in a
pickle, which holds the model's bytes instead: the worker loads them again.
"""

import hashlib
import os

import numpy as np
import sentencepiece

from streampack.errors import TokenizerError
from streampack.records import ControlToken, Tokens
from streampack.tokenizers.files import describe, not_encoded, read_model_file


class SentencePieceTokenizer:
    """A SentencePiece model: the ids are exactly those of `SentencePieceProcessor.encode(text)`.

    Args:
        model: the model's bytes, or a local path of it.
        name: what error messages call the model; by default the path.
    """

    def __init__(self, model: bytes | str | os.PathLike[str], *, name: str | None = None) -> None:
        self._model, name = read_model_file(model, name)
        try:
            # An empty model loads, and then writes to stderr at each use.
            if not self._model:
                raise ValueError("no bytes")
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._model)
        except (RuntimeError, ValueError, OSError) as error:
            raise TokenizerError(f"not a SentencePiece model: {describe(self._model)} ({error})", url=name) from error
        self.digest = f"sentencepiece:{hashlib.sha256(self._model).hexdigest()}"
        self.vocab_size = int(self._processor.vocab_size())
        self.bos_id = _id_or_none(self._processor.bos_id())
        self.eos_id = _id_or_none(self._processor.eos_id())
        self.pad_id = _id_or_none(self._processor.pad_id())
        try:
            self._numpy = isinstance(self._processor.encode("", out_type="numpy"), np.ndarray)
        except (RuntimeError, ValueError, TypeError):  # sentencepiece before 0.2.3 knows lists only
            self._numpy = False

    def encode(self, text: str) -> Tokens:
        """The ids of `text`, int32 [n] (read-only where the library hands out its own buffer)."""
        try:
            if self._numpy:
                ids: Tokens = self._processor.encode(text, out_type="numpy")
                return ids
            return np.array(self._processor.encode(text), dtype=np.int32)
        except Exception as error:  # whatever the library raises
            raise not_encoded(text, error) from error

    def control_tokens(self) -> dict[str, ControlToken]:
        """The model's control pieces, by name."""
        processor = self._processor
        control = [token for token in range(self.vocab_size) if processor.is_control(token)]
        return {str(processor.id_to_piece(token)): ControlToken(token) for token in control}

    @property
    def model(self) -> bytes:
        """The model's bytes."""
        return self._model

    def normalize(self, text: str) -> str:
        """`text` as the model's pieces are matched against it, with U+2581 for spaces."""
        return str(self._processor.normalize(text))

    def id_to_piece(self, token: int) -> str:
        """The vocabulary's piece of an id, with its U+2581 for a space."""
        return str(self._processor.id_to_piece(token))

    def __reduce__(self) -> tuple[type["SentencePieceTokenizer"], tuple[bytes]]:
        return type(self), (self._model,)

    def __repr__(self) -> str:
        return f"SentencePieceTokenizer(vocab_size={self.vocab_size}, digest={self.digest!r})"


def _id_or_none(token: int) -> int | None:
    return int(token) if token >= 0 else None
