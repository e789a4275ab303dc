"""A SentencePiece model as a tokenizer.

In:  the bytes of a `.model`, then texts.
Out: int32 ids of each text alone.
Never: the text `<s>` of a document as a control id (it gives ordinary pieces); a live handle of the library in a
pickle, which holds the model's bytes instead: the worker loads them again.
"""

import functools
import hashlib
import os
from typing import Any

import numpy as np
import sentencepiece

from streampack.errors import TokenizerError
from streampack.records import ControlToken, Tokens
from streampack.tokenizers.files import describe, no_such_token, not_encoded, read_model_file


class SentencePieceTokenizer:
    """A SentencePiece model: the ids are exactly those of `SentencePieceProcessor.encode(text)`.

    Args:
        model: the model's bytes, or a local path of it.
        bos_token: the control piece that begins a document, instead of the model's own BOS; "": none does.
        eos_token: the control piece that ends a document.
        pad_token: the piece that fills a pack.
        name: what error messages call the model; by default the path.

    Raises:
        TokenizerError: not a SentencePiece model, or it has no such piece.
    """

    def __init__(
        self,
        model: bytes | str | os.PathLike[str],
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
        name: str | None = None,
    ) -> None:
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
        processor = self._processor
        own = [_id_or_none(token) for token in (processor.bos_id(), processor.eos_id(), processor.pad_id())]
        self._names = {"bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token}
        try:
            ids = [self._id_of(key, token, mine) for (key, token), mine in zip(self._names.items(), own, strict=True)]
        except TokenizerError as error:
            raise TokenizerError(error.message, url=name) from error
        self.bos_id, self.eos_id, self.pad_id = ids
        if ids != own:
            self.digest += f" with {', '.join(f'{key} {token}' for key, token in zip(self._names, ids, strict=True))}"
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

    def _id_of(self, key: str, token: str | None, own: int | None) -> int | None:
        """The id of the piece that begins, ends or pads; `own` is the model's, where no argument names one."""
        if not token:
            return own if token is None else None
        found = self._processor.piece_to_id(token)
        control = self.control_tokens()
        if self._processor.id_to_piece(found) != token:
            raise no_such_token(key, token, control)
        if key != "pad_token" and token not in control:  # a text may hold it
            raise no_such_token(key, token, control, "not a control piece")
        return int(found)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), **self._names), (self._model,)  # type: ignore[arg-type]  # its arguments

    def __repr__(self) -> str:
        return f"SentencePieceTokenizer(vocab_size={self.vocab_size}, digest={self.digest!r})"


def _id_or_none(token: int) -> int | None:
    return int(token) if token >= 0 else None
