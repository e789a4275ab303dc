"""Byte-level BPE by gigatoken: the ids are those of `tokenizers` on every text, or the engine is not used."""

import copy
import functools
import json
import pickle
import re
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.byte_levels import KNOWN, LLAMA3, QWEN, added, byte_level, level, split
from support.sentencepieces import PROSE

from streampack.errors import ConfigError, TokenizerError
from streampack.tokenizers import HuggingFaceTokenizer
from streampack.tokenizers import byte_level as of_file
from streampack.tokenizers.engines import choose_engine
from streampack.tokenizers.gigatoken import FastByteLevel
from streampack.tokenizers.libraries import libraries_of


def plain(config: dict[str, Any]) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(json.dumps(config).encode())


@functools.cache
def fast(name: str) -> FastByteLevel:
    """By the name of a known model; with "words" after it, a model that shows each cut of a text into words."""
    known, _, words = name.partition(" ")
    config = of_file.revealing(KNOWN[known]) if words else KNOWN[known]
    found = choose_engine(plain(config), "gigatoken")
    assert isinstance(found, FastByteLevel)
    return found


def assert_same(tokenizer: FastByteLevel, text: str) -> None:
    ids = tokenizer._encode(text, text.encode())
    assert ids.dtype == np.int32
    assert ids.tolist() == tokenizer.plain.encode(text).tolist(), text[:100]


BOTH = [f"{name}{words}" for name in KNOWN for words in ("", " words")]


@pytest.mark.parametrize("name", BOTH)
def test_the_ids_of_real_text_are_the_same(name: str) -> None:
    for text in (PROSE, *PROSE.splitlines(), PROSE.upper(), PROSE.replace(" ", "  "), PROSE.replace(" ", "\n\t")):
        assert_same(fast(name), text)


@given(text=st.text(max_size=300))
def test_the_ids_of_any_unicode_are_the_same(text: str) -> None:
    for name in BOTH:
        assert_same(fast(name), text)


MARKS = " \n\r\t'sSdlLtTrReE.,!/\\-_01aAzZǅʰªßſİéÉ日हि한\u1100\u1161\u0301\u0323\u20dd\u200d\u00a0\u2028\u0085½²Ⅷ٣👍🏽"


@given(text=st.text(MARKS, max_size=80))
def test_the_ids_of_what_patterns_look_at_are_the_same(text: str) -> None:
    for name in BOTH:
        assert_same(fast(name), text)


@given(runs=st.lists(st.tuples(st.sampled_from(" \n\t\r.=-ax1日'"), st.integers(1, 70)), max_size=12))
def test_the_ids_of_runs_are_the_same(runs: list[tuple[str, int]]) -> None:
    for name in BOTH:
        assert_same(fast(name), "".join(character * count for character, count in runs))


def test_a_character_that_unicode_has_assigned_lately_is_left_to_the_plain_tokenizer() -> None:
    tokenizer = pickle.loads(pickle.dumps(fast("llama3")))
    tokenizer._handle = lambda data: np.zeros(1, np.uint32)
    assert tokenizer._encode("x\u00e9", b"").tolist() == [0]
    for text in ("\u0378", "a \U0001e6d2&D", "\U0003292f", "\U000e0041", "\uffff"):
        assert tokenizer._encode(text, b"").tolist() == tokenizer.plain.encode(text).tolist()


MARKS_OF_ALL = [chr(point) for point in range(0x300, 0x1F000) if unicodedata.combining(chr(point))]


@pytest.mark.parametrize("other", "\u0301\u0323\u064e")
def test_marks_that_nfc_moves_have_the_same_ids_where_versions_of_unicode_differ(other: str) -> None:
    for mark in MARKS_OF_ALL:
        assert_same(fast("qwen"), f"e{mark}{other} e{other}{mark} \u0628{other}{mark}\u0651")


def test_compositions_have_the_same_ids_where_versions_of_unicode_differ() -> None:
    for point in (*range(0xC0, 0x3400), *range(0xF900, 0x11FFF), *range(0x16D00, 0x16E00), *range(0x1D100, 0x1D200)):
        if not 0xD800 <= point < 0xE000 and (apart := unicodedata.normalize("NFD", chr(point))) != chr(point):
            assert_same(fast("qwen"), f"{apart} {chr(point)}")


@pytest.mark.parametrize("normalized", [False, True])
def test_an_added_token_with_a_mark_after_it_is_found_as_nfc_leaves_it(*, normalized: bool) -> None:
    tokens = [added(600, "<think>", special=False, normalized=normalized), added(601, "<|end|>")]
    tokenizer = FastByteLevel(plain(byte_level(split(QWEN), tokens, {"type": "NFC"})))
    for text in ("<think>\u0338", "a<think>\u0338b", "x\u0301<think>\u0301", "<think>\u0301", "<think>"):
        assert_same(tokenizer, text)


RAW = ["日本", "мир", "a\tb", "日", "本", "a日"]


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_a_word_of_the_vocabulary_that_no_bytes_make_is_never_found(*, ignore_merges: bool) -> None:
    config = byte_level(split(LLAMA3), [added(606, "<|end|>")], ignore_merges=ignore_merges)
    config["model"]["vocab"] |= {word: 600 + index for index, word in enumerate(RAW)}
    config["model"]["merges"] = [["日", "本"], *config["model"]["merges"]]
    tokenizer = choose_engine(plain(config), "gigatoken")
    assert isinstance(tokenizer, FastByteLevel)
    for text in ("日本", "x 日本", "a日本", " мир", "a\tb", "日", "a日"):
        assert_same(tokenizer, text)
        assert tokenizer.encode(text).max() < 600


def test_a_library_that_finds_such_a_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = byte_level(split(LLAMA3), [], ignore_merges=True)
    config["model"]["vocab"]["日本"] = 600
    reduced = of_file.reduced(config)
    reduced["model"]["vocab"]["日本"] = 600
    monkeypatch.setattr(of_file, "reduced", lambda _: reduced)
    with pytest.raises(TokenizerError, match=r"gives \[600\] instead of"):
        choose_engine(plain(config), "gigatoken")


def test_the_text_of_a_special_token_stays_text() -> None:
    tokens = [added(600, "<|endoftext|>"), added(601, "the"), added(602, "<s>", special=False)]
    config = byte_level(split(LLAMA3), tokens=tokens, ignore_merges=True)
    config["model"]["vocab"]["<|endoftext|>"] = 600
    tokenizer = choose_engine(HuggingFaceTokenizer(json.dumps(config).encode(), bos_token="<s>"))
    assert tokenizer.bos_id == 602
    if isinstance(tokenizer, FastByteLevel):
        for text in ("<|endoftext|>", "a<|endoftext|>b", "<s>", "x <s><s>"):
            assert_same(tokenizer, text)
            assert not {600, 602} & set(tokenizer.encode(text).tolist())


SPACES = [added(600 + index, " " * length, special=False, normalized=True) for index, length in enumerate((4, 3, 2))]
MARKED = [added(600, "|||IP|||", special=False), added(601, "<|end|>")]


@pytest.mark.parametrize("tokens", [SPACES, MARKED])
@given(data=st.data())
def test_added_tokens_that_are_not_special_have_their_ids(tokens: list[dict[str, Any]], data: st.DataObject) -> None:
    parts = [*(token["content"] for token in tokens), "|", " ", "a", "\n", "IP", "é"]
    text = "".join(data.draw(st.lists(st.sampled_from(parts), max_size=20)))
    assert_same(_with_added(len(tokens)), text)


@functools.cache
def _with_added(count: int) -> FastByteLevel:
    return FastByteLevel(plain(byte_level(tokens=SPACES if count == 3 else MARKED)))


def with_merges(change: Any) -> dict[str, Any]:
    config = copy.deepcopy(KNOWN["gpt2"])
    config["model"]["merges"] = change(config["model"]["merges"])
    return config


@pytest.mark.parametrize(
    ("config", "obstacle"),
    [
        (byte_level(level(use_regex=False)), "not a byte-level BPE with one of the usual pre-tokenizers"),
        (byte_level({"type": "Whitespace"}), "text can become one of its special tokens"),
        (byte_level(split(LLAMA3, behavior="Contiguous")), "one of the usual pre-tokenizers"),
        (byte_level(split(LLAMA3, behavior="Removed")), "one of the usual pre-tokenizers"),
        (
            byte_level({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level()]}),
            "one of the usual pre-tokenizers",
        ),
        (byte_level(split(r"\p{L}+|\P{L}+")), "Unknown pre_tokenizer Split regexes"),
        (byte_level(normalizer={"type": "NFKC"}), "it normalizes text in another way than NFC"),
        (byte_level(tokens=[added(600, "x y", special=False, lstrip=True)]), "looks at the text around it"),
        (byte_level(level(add_prefix_space=True), tokens=MARKED), "puts a space before each text between them"),
        (byte_level(tokens=[*MARKED, added(602, "a||")]), "'|||IP|||' and of a special token can overlap"),
        (
            byte_level(tokens=[added(600, "ab", special=False), added(601, "cd", special=False, normalized=True)]),
            "before normalization and some after it",
        ),
    ],
)
def test_a_file_without_a_proof_stays_with_its_library(config: dict[str, Any], obstacle: str) -> None:
    tokenizer = plain(config)
    assert choose_engine(tokenizer) is choose_engine(tokenizer, "tokenizers") is tokenizer
    with pytest.raises(TokenizerError, match=re.escape(obstacle)) as caught:
        choose_engine(tokenizer, "gigatoken")
    assert 'use engine="tokenizers"' in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        byte_level(level(add_prefix_space=True)),
        byte_level(split(LLAMA3, behavior="Removed", invert=True)),
        byte_level(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}]}),
        with_merges(lambda merges: merges[:200]),
        with_merges(lambda merges: merges + merges[:50]),
    ],
)
def test_what_is_rare_but_proved_has_the_engine(config: dict[str, Any]) -> None:
    tokenizer = choose_engine(plain(config), "gigatoken")
    assert isinstance(tokenizer, FastByteLevel)
    for text in ("", " a", "a", *PROSE.splitlines()[:20], "x</w> e\u0301"):
        assert_same(tokenizer, text)


def test_a_pattern_that_is_understood_in_another_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the library had taken Qwen's pattern for Llama's: only the digits in a row show it."""

    def reduced(config: dict[str, Any], *, of: Any = of_file.reduced) -> dict[str, Any]:
        return of(config) | {"pre_tokenizer": split(LLAMA3)}

    monkeypatch.setattr(of_file, "reduced", reduced)
    with pytest.raises(TokenizerError, match=r"gigatoken [\d.]+ gives \[.*\] instead of \[.*\] from token"):
        choose_engine(plain(byte_level(split(LLAMA3.replace("{1,3}", "")))), "gigatoken")


def test_an_engine_for_another_kind_of_file_is_refused() -> None:
    for tokenizer in (fast("llama3"), fast("llama3").plain):
        with pytest.raises(ConfigError, match=r'engine="sentencepiece" does not read .*: use engine="tokenizers" or'):
            choose_engine(tokenizer, "sentencepiece")


def test_all_else_is_the_plain_tokenizers() -> None:
    tokenizer = fast("llama3")
    for name in ("digest", "bos_id", "eos_id", "pad_id", "vocab_size", "special_tokens"):
        assert getattr(tokenizer, name) == getattr(tokenizer.plain, name)
    ids, offsets = tokenizer.encode_with_offsets("hello world")
    assert ids.tolist() == tokenizer.encode("hello world").tolist()
    assert offsets[-1, 1] == 11
    assert sorted(libraries_of(tokenizer)) == ["gigatoken", "tokenizers"]


def test_a_pickle_holds_no_handle_and_gives_the_same_ids() -> None:
    tokenizer = fast("qwen")
    tokenizer.encode(PROSE)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again._handle is None
    assert_same(again, PROSE)
