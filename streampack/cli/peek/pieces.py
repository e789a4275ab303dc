"""Token ids as text, as far as the tokenizer tells.

A tokenizer may have a method that `streampack.Tokenizer` does not ask for: `id_to_piece(id)`, the bytes that an id
stands for, or its text as SentencePiece writes pieces (`▁the`, `</s>`, `<0x0A>`). Without it the ids are shown.
"""

import codecs
import re
from collections.abc import Callable, Sequence

from streampack.chat.templates import control_tokens_of
from streampack.cli.console import printable
from streampack.records import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_LOST = re.compile("[\udc80-\udcff]")
"""A byte that is not UTF-8, as `surrogateescape` decodes it."""


class Pieces:
    """The text of token ids."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        found = getattr(tokenizer, "id_to_piece", None)
        self._piece: Callable[[int], str | bytes] | None = found if callable(found) else None
        self._size, self._control = 0, set[int | None]()
        if tokenizer is not None:
            self._size = tokenizer.vocab_size
            self._control = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
            self._control |= {token.id for token in control_tokens_of(tokenizer).values()}

    @property
    def known(self) -> bool:
        """Whether there are pieces, and not only ids."""
        return self._piece is not None

    def is_control(self, token: int) -> bool:
        """Whether it is BOS, EOS, the padding's token or another special token."""
        return token in self._control

    def of(self, tokens: Sequence[int]) -> list[str] | None:
        """The piece of each token, as the tokenizer writes it, bytes as text; None where only ids are known."""
        return None if self._piece is None else [_written(self._one(token)) for token in tokens]

    def name(self, token: int) -> str:
        """One token by itself, for a sentence: `</s>`, `" the"`, or its id."""
        if self._piece is None:
            return str(token)
        piece = self._one(token)
        written = _written(piece)
        if self.is_control(token) or _BYTE.fullmatch(written):
            return written
        return f'"{printable(written if isinstance(piece, bytes) else written.replace("▁", " "))}"'

    def texts(self, tokens: Sequence[int]) -> list[str]:
        """What each token adds to the running text; a character of several tokens stands at its last one."""
        if self._piece is None:
            return [f"{' ' if index else ''}{token}" for index, token in enumerate(tokens)]
        texts: list[str] = []
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            piece = self._one(token)
            if isinstance(piece, str) and (byte := _BYTE.fullmatch(piece)):
                piece = bytes.fromhex(byte[1])
            if isinstance(piece, bytes):
                texts.append(printable(decoder.decode(piece)))
                continue
            if texts and (rest := decoder.decode(b"", final=True)):
                texts[-1] += rest
            texts.append(printable(piece if self.is_control(token) else piece.replace("▁", " ")))
        if texts:
            texts[-1] += decoder.decode(b"", final=True)
        return texts

    def _one(self, token: int) -> str | bytes:
        assert self._piece is not None, "asked only where there are pieces"
        piece = self._piece(token) if 0 <= token < self._size else None
        return piece if isinstance(piece, (str, bytes)) else f"<{token}>"  # an id may be of no token


def _written(piece: str | bytes) -> str:
    """A piece as text; a byte of it that is no text by itself as `<0xE2>`."""
    if isinstance(piece, str):
        return piece
    return _LOST.sub(lambda match: f"<0x{ord(match[0]) - 0xDC00:02X}>", piece.decode("utf-8", "surrogateescape"))
