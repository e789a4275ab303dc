"""SentencePiece models: trained on the tests' prose, and written piece by piece."""

import io
import struct
from pathlib import Path

import sentencepiece

PROSE = (Path(__file__).parent / "data" / "prose.txt").read_text("utf-8")


def train(kind: str = "bpe", **options: object) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROSE.splitlines()),
        model_writer=model,
        model_type=kind,
        vocab_size=700,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + _varint(value >> 7)


def _message(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(body)) + body


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def piece(text: bytes, score: float = 0.0, kind: int = 1, *, more: bytes = b"") -> bytes:
    """A piece of a model, with any bytes behind its fields."""
    fields = _message(1, text) + _varint(2 << 3 | 5) + struct.pack("<f", score) + _number(3, kind)
    return _message(1, fields + more)


def written(
    joined: list[tuple[str, float]], *, kinds: dict[str, int] | None = None, more: bytes = b"", **trainer: int
) -> bytes:
    """A BPE model of these pieces, the letters a, b and c, and all bytes; spaces are kept."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces += [(text, score, (kinds or {}).get(text, 1)) for text, score in joined]
    pieces += [(letter, -1000.0 - index, 1) for index, letter in enumerate("abc▁")]
    body = b"".join(piece(text.encode(), score, kind) for text, score, kind in pieces) + more
    fields = {3: 2, 35: 1} | {int(name.removeprefix("f")): value for name, value in trainer.items()}
    body += _message(2, b"".join(_number(field, value) for field, value in fields.items()))
    return body + _message(3, _message(1, b"identity") + _number(3, 0) + _number(4, 0))
