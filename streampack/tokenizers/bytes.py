"""Bytes as tokens: a tokenizer without a model, for tests and demonstrations.

>>> ByteTokenizer().encode("hi").tolist()
[107, 108]
"""

import numpy as np

from streampack.records import Tokens
from streampack.tokenizers.files import check_unicode


class ByteTokenizer:
    """UTF-8 bytes as tokens (id = byte + 3), for tests and demonstrations: no model, every text, 259 ids."""

    pad_id, bos_id, eos_id = 0, 1, 2
    vocab_size = 259
    digest = "bytes:1"

    def encode(self, text: str) -> Tokens:
        """The ids of `text`, int32 [n]."""
        check_unicode(text)
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) + np.int32(3)

    def id_to_piece(self, token: int) -> str:
        """The text of an id; bytes as SentencePiece writes them."""
        return ("<pad>", "<s>", "</s>")[token] if token < 3 else f"<0x{token - 3:02X}>"
