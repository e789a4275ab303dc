"""Token ids as text, as far as the tokenizer tells.

A tokenizer may have a method that `streampack.Tokenizer` does not ask for: `id_to_piece(id)`, the piece as its library
writes it (SentencePiece: `▁the`, `</s>`, `<0x0A>`). Without it the ids are shown.
"""

import codecs
import re
from collections.abc import Callable, Sequence

from streampack.cli.console import printable
from streampack.records import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Pieces:
    """The text of token ids."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        found = getattr(tokenizer, "id_to_piece", None)
        self._piece: Callable[[int], str] | None = found if callable(found) else None
        self._size = 0 if tokenizer is None else tokenizer.vocab_size
        self._control = set() if tokenizer is None else {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} - {None}

    @property
    def known(self) -> bool:
        """Whether there are pieces, and not only ids."""
        return self._piece is not None

    def is_control(self, token: int) -> bool:
        """Whether it is BOS, EOS or the padding's token."""
        return token in self._control

    def of(self, tokens: Sequence[int]) -> list[str] | None:
        """The piece of each token, as the library writes it; None where only ids are known."""
        return None if self._piece is None else [self._one(token) for token in tokens]

    def name(self, token: int) -> str:
        """One token by itself, for a sentence: `</s>`, `" the"`, or its id."""
        if self._piece is None:
            return str(token)
        piece = self._one(token)
        return piece if self.is_control(token) or _BYTE.fullmatch(piece) else f'"{printable(piece.replace("▁", " "))}"'

    def texts(self, tokens: Sequence[int]) -> list[str]:
        """What each token adds to the running text; a character of several byte pieces stands at its last one."""
        pieces = self.of(tokens)
        if pieces is None:
            return [f"{' ' if index else ''}{token}" for index, token in enumerate(tokens)]
        texts: list[str] = []
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for piece in pieces:
            byte = _BYTE.fullmatch(piece)
            if byte is None:
                if texts and (rest := decoder.decode(b"", final=True)):
                    texts[-1] += rest
                texts.append(printable(piece.replace("▁", " ")))
            else:
                texts.append(printable(decoder.decode(bytes.fromhex(byte[1]))))
        if texts:
            texts[-1] += decoder.decode(b"", final=True)
        return texts

    def _one(self, token: int) -> str:
        assert self._piece is not None, "asked only where there are pieces"
        return self._piece(token) if 0 <= token < self._size else f"<{token}>"
