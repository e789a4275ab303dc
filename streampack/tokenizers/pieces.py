"""What the ids of a `tokenizer.json` stand for, to show them.

In:  the file's content.
Out: for each id its bytes, or its text as SentencePiece writes pieces, with U+2581 for a space.
"""

from collections.abc import Mapping
from typing import Any

BYTE_LEVEL = {byte: chr(byte) for byte in (*range(33, 127), *range(161, 173), *range(174, 256))}
"""Byte -> the character that stands for it in a byte-level vocabulary."""
BYTE_LEVEL |= {byte: chr(256 + index) for index, byte in enumerate(sorted({*range(256)} - BYTE_LEVEL.keys()))}
_BYTES = {character: byte for byte, character in BYTE_LEVEL.items()}


def pieces_of(config: Mapping[str, Any]) -> dict[int, str | bytes]:
    """Id -> bytes, of a token of a byte-level vocabulary; else text; of an added token its name."""
    model, vocab = config["model"], config["model"]["vocab"]
    words = vocab.items() if isinstance(vocab, dict) else ((entry[0], token) for token, entry in enumerate(vocab))
    pieces: dict[int, str | bytes] = {}
    # Such a stage may be inside of a sequence of them.
    is_byte_level = any("'ByteLevel'" in str(config.get(stage)) for stage in ("decoder", "pre_tokenizer", "normalizer"))
    starts = {"WordPiece": model.get("continuing_subword_prefix"), "WordLevel": ""}.get(model.get("type"))
    suffix = model.get("end_of_word_suffix")
    for word, token in words:
        if is_byte_level and _BYTES.keys() >= {*word}:
            pieces[token] = bytes(map(_BYTES.__getitem__, word))
        elif starts is not None:
            is_inside = bool(starts) and word.startswith(starts)
            pieces[token] = word[len(starts) :] if is_inside else f"\u2581{word}"
        elif suffix and word.endswith(suffix):
            pieces[token] = f"{word.removesuffix(suffix)}\u2581"
        else:
            pieces[token] = word
    return pieces | {token["id"]: token["content"] for token in config.get("added_tokens", [])}
