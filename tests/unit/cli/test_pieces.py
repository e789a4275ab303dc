"""Token ids as text: of each kind of vocabulary, and where a character is cut."""

from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from streampack.cli.peek.pieces import Pieces
from streampack.testing import ByteTokenizer
from streampack.tokenizers import HuggingFaceTokenizer

TEXT = "The café, 日本 👍 end\n"


def huggingface(model: Any, *, pre_tokenizer: Any, decoder: Any, **stages: Any) -> HuggingFaceTokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    for name, stage in stages.items():
        setattr(tokenizer, name, stage)
    tokenizer.add_special_tokens(["<s>", "</s>", "<|user|>"])
    return HuggingFaceTokenizer(tokenizer.to_str().encode())


def byte_level() -> HuggingFaceTokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["Th", "The", "Ġc", "æĹ", "æĹ¥", "Ġæ"]
    merges = [("T", "h"), ("Th", "e"), ("Ġ", "c"), ("æ", "Ĺ"), ("æĹ", "¥"), ("Ġ", "æ")]
    vocab = {word: index for index, word in enumerate(["<s>", "</s>", "<|user|>", *letters, *words])}
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return huggingface(models.BPE(vocab=vocab, merges=merges), pre_tokenizer=level, decoder=decoders.ByteLevel())


def byte_fallback() -> HuggingFaceTokenizer:
    names = ["<s>", "</s>", "<|user|>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁Thecafnd,é"]
    vocab = {name: index for index, name in enumerate(names)}
    model = models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>")
    spaces = normalizers.Replace(" ", "▁")
    split = pre_tokenizers.Split("never", "isolated")
    return huggingface(model, pre_tokenizer=split, decoder=decoders.ByteFallback(), normalizer=spaces)


@pytest.mark.parametrize("tokenizer", [byte_level(), byte_fallback(), ByteTokenizer()], ids=["level", "fallback", ""])
def test_the_texts_of_all_ids_are_the_text(tokenizer: Any) -> None:
    pieces = Pieces(tokenizer)
    assert "".join(pieces.texts(tokenizer.encode(TEXT).tolist())) == TEXT.replace("\n", "↵")


def test_a_character_of_several_tokens_stands_at_its_last_one_and_half_of_one_is_marked() -> None:
    tokenizer = byte_level()
    pieces, ids = Pieces(tokenizer), tokenizer.encode("日 æ日").tolist()
    assert pieces.texts(ids)[0] == "日"
    half = tokenizer.encode("👍").tolist()
    assert pieces.texts(half) == ["", "", "", "👍"]
    assert pieces.texts([*half[:2], 1]) == ["", "\ufffd", "</s>"]
    assert pieces.of(half) == ["<0xF0>", "<0x9F>", "<0x91>", "<0x8D>"]
    assert pieces.name(half[0]) == "<0xF0>"


def test_special_tokens_words_and_ids_without_a_token_by_themselves() -> None:
    tokenizer = byte_level()
    pieces = Pieces(tokenizer)
    assert [pieces.name(token) for token in (0, 2, *tokenizer.encode("The c").tolist())] == [
        "<s>",
        "<|user|>",
        '"The"',
        '" c"',
    ]
    assert pieces.is_control(2)
    assert not pieces.is_control(3)
    assert pieces.name(10**6) == '"<1000000>"'


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2}, unk_token="[UNK]"), " playing"),
        (models.WordLevel({"[UNK]": 0, "play": 1, "ing": 2}, unk_token="[UNK]"), " play ing"),
    ],
)
def test_words_and_parts_of_words(model: Any, text: str) -> None:
    white, decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece()
    assert "".join(Pieces(huggingface(model, pre_tokenizer=white, decoder=decoder)).texts([1, 2])) == text


class Mine:
    bos_id = eos_id = pad_id = None
    vocab_size, digest = 256, "mine"

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8)


class MineWithBytes(Mine):
    def id_to_piece(self, token: int) -> bytes:
        return bytes([token])


def test_a_tokenizer_of_the_users_may_tell_bytes_or_nothing() -> None:
    ids = list(TEXT.encode())
    assert "".join(Pieces(MineWithBytes()).texts(ids)) == TEXT.replace("\n", "↵")
    assert Pieces(Mine()).texts([7, 8]) == ["7", " 8"]
    assert not Pieces(Mine()).known
