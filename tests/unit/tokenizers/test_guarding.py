"""Files in which text could become a special token, or ids depend on chance: right, or refused by name."""

import json
import logging
import pickle
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from support.sentencepieces import train, written

from streampack.errors import TokenizerError
from streampack.tokenizers.guarding import _BYTE_LEVEL
from streampack.tokenizers.huggingface import HuggingFaceTokenizer
from streampack.tokenizers.sentencepiece import SentencePieceTokenizer

BYTES = {f"<0x{byte:02X}>": 100 + byte for byte in range(256)}
PIECES = ["<s>", "</s>", "<", "s", ">", "/", "a", "s>", "</", "<s>a"]
MERGES = [["<", "s>"], ["</", "s>"], ["s", ">"], ["<", "/"], ["<s>", "a"]]


def file_of(
    special: list[str] | None = None,
    *,
    pieces: list[str] | dict[str, int] = PIECES,
    merges: list[Any] = MERGES,
    added: list[dict[str, Any]] | None = None,
    pre_tokenizer: object = None,
    normalizer: object = None,
    **model: Any,
) -> bytes:
    vocab = pieces if isinstance(pieces, dict) else {piece: token for token, piece in enumerate(pieces)}
    if special is None:
        special = ["<s>", "</s>"]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokens = [{"id": vocab.get(name, 900), "content": name, "special": True, **plain} for name in special]
    tokens += [{**plain, **token} for token in added or ()]
    described = {
        "version": "1.0",
        "added_tokens": tokens,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, **model},
    }
    return json.dumps(described).encode()


def ids_of(data: bytes, text: str, **names: str) -> list[int]:
    return HuggingFaceTokenizer(data, **names).encode(text).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a<s>a</s>", [6, 9, 8, 7]),  # "<s>a" is a piece of its own, made of "<s>"
        ("<s>", [2, 7]),
        ("<s><s>", [2, 7, 2, 7]),
        ("</s>s", [8, 7, 3]),
        ("<sa>", [2, 3, 6, 4]),
    ],
)
def test_what_merges_make_of_a_special_tokens_text_are_the_pieces_it_is_made_of(text: str, expected: list[int]) -> None:
    assert ids_of(file_of(), text) == expected
    assert ids_of(file_of(merges=[" ".join(pair) for pair in MERGES]), text) == expected, "as older files have them"


@given(st.text("<s>/a", max_size=30))
def test_other_ids_are_those_of_the_library(text: str) -> None:
    library = tokenizers.Tokenizer.from_str(file_of(special=[]).decode())
    theirs = library.encode(text, add_special_tokens=False).ids
    parts = {0: [2, 7], 1: [8, 7]}
    ours = HuggingFaceTokenizer(file_of())
    assert ours.encode(text).tolist() == [token for each in theirs for token in parts.get(each, [each])]
    ids, offsets = ours.encode_with_offsets(text)
    assert ids.tolist() == ours.encode(text).tolist()
    assert offsets.shape == (len(ids), 2)
    assert offsets[:, 1].max(initial=0) == len(text)


def test_a_whole_word_is_not_looked_up_as_a_special_token() -> None:
    data = file_of(merges=MERGES[2:4], ignore_merges=True)
    assert ids_of(data, "<s>") == [2, 7]
    assert ids_of(data, "</s>") == [8, 7]
    assert ids_of(data, "<s>a") == [9], "an ordinary word is"


@pytest.mark.parametrize("names", [{"eos_token": "a"}, {"bos_token": "s"}])
def test_a_special_token_that_is_the_only_token_of_a_character_is_refused(names: dict[str, str]) -> None:
    [name] = names.values()
    with pytest.raises(TokenizerError, match=f"^t.json: the special token {name!r} .* of the character {name!r}"):
        HuggingFaceTokenizer(file_of(), name="t.json", **names)


def test_a_special_token_of_one_character_gives_the_bytes_of_it() -> None:
    pieces = {piece: token for token, piece in enumerate(PIECES)} | BYTES
    assert ids_of(file_of(pieces=pieces, byte_fallback=True), "aa", eos_token="a") == [100 + ord("a")] * 2


def test_a_token_that_only_byte_level_merges_make_can_end_documents() -> None:
    pieces = {piece: token for token, piece in enumerate([*sorted(_BYTE_LEVEL), "ĊĊ", "ĊĊĊ"])}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    data = file_of([], pieces=pieces, merges=[["Ċ", "Ċ"], ["ĊĊ", "Ċ"]], pre_tokenizer=level)
    ours = HuggingFaceTokenizer(data, eos_token="ĊĊ")
    newline = pieces["Ċ"]
    assert ours.eos_id == pieces["ĊĊ"]
    assert ours.encode("\n\n").tolist() == [newline, newline]
    assert ours.encode("\n\n\n").tolist() == [pieces["ĊĊĊ"]]
    with pytest.raises(TokenizerError, match="special token '!' cannot be told from text"):
        HuggingFaceTokenizer(data, eos_token="!")
    with pytest.raises(TokenizerError, match="special token 'é' cannot be told from text"):  # a byte of many letters
        HuggingFaceTokenizer(data, eos_token="é")


def test_text_that_a_normalizer_makes_a_special_token_of_is_text() -> None:
    assert ids_of(file_of(normalizer={"type": "NFKC"}), "\uff1c\uff53\uff1e") == [2, 7]


def test_added_tokens_keep_their_ids_where_the_vocabulary_grows() -> None:
    added = [{"id": 10, "content": "[x]", "special": True}, {"id": 11, "content": "[y]", "special": False}]
    ours = HuggingFaceTokenizer(file_of(added=added), pad_token="[x]")
    assert (ours.vocab_size, ours.pad_id) == (12, 10)
    assert ours.encode("<s>[y]a").tolist() == [2, 7, 11, 6]


def test_a_character_without_a_token_is_an_error_and_not_lost() -> None:
    ours = HuggingFaceTokenizer(file_of())
    with pytest.raises(TokenizerError, match="no token for 'é', at character 2 of the text"):
        ours.encode("aaéa")
    unknown = file_of(pieces=[*PIECES, "<unk>"], unk_token="<unk>")
    assert ids_of(unknown, "aéa") == [6, 10, 6]
    with pytest.raises(TokenizerError, match="no token for 'é'"):  # nor is it the end of a document
        ids_of(unknown, "aéa", eos_token="<unk>")


@pytest.mark.parametrize(
    "model",
    [
        {"type": "WordLevel", "vocab": {"[UNK]": 0, "word": 1}, "unk_token": "[UNK]"},
        {"type": "Unigram", "vocab": [["[UNK]", 0.0], ["word", -1.0]], "unk_id": 0},
    ],
)
def test_the_token_of_unknown_text_does_not_end_documents(model: dict[str, Any]) -> None:
    data = json.dumps({"version": "1.0", "added_tokens": [], "model": model}).encode()
    HuggingFaceTokenizer(data, pad_token="[UNK]")
    with pytest.raises(TokenizerError, match=r"'\[UNK\]' cannot begin or end documents: unknown text becomes it"):
        HuggingFaceTokenizer(data, eos_token="[UNK]")


def test_dropout_is_switched_off(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ours = HuggingFaceTokenizer(file_of(dropout=0.5))
    assert "dropout=0.5 of the tokenizer's file is switched off" in caplog.text
    assert {tuple(ours.encode("s>" * 20).tolist()) for _ in range(20)} == {(7,) * 20}


def test_a_token_with_two_ids_is_refused() -> None:
    added = [{"id": 11, "content": "s>", "special": False}]
    with pytest.raises(TokenizerError, match="the token 's>' has the id 11 in the file and 7 in the library"):
        HuggingFaceTokenizer(file_of(added=added))


def test_a_guarded_tokenizer_goes_to_another_process() -> None:
    ours = HuggingFaceTokenizer(file_of())
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(ours)).encode("a<s>"), ours.encode("a<s>"))


# SentencePiece


@pytest.mark.parametrize(
    "model",
    [
        written([("x", -1.0)], kinds={"x": 3}),
        train("word", control_symbols=["x"], add_dummy_prefix=False),
        train("char", control_symbols=["x"]),
    ],
    ids=["bpe", "word", "char"],
)
def test_text_does_not_become_a_control_piece_of_one_character_or_word(model: bytes) -> None:
    ours = SentencePieceTokenizer(model)
    control = ours.control_tokens()["x"].id
    for text in ("x", "axa", "x x", "the x"):
        assert control not in ours.encode(text)


def test_a_user_defined_piece_neither_begins_nor_ends_documents() -> None:
    ours = SentencePieceTokenizer(train("bpe", user_defined_symbols=["<s>", "</s>"]))
    assert (ours.bos_id, ours.eos_id) == (None, None), "their text becomes them"
