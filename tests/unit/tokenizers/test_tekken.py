"""A tekken.json against mistral-common, with a part of a published file and with vocabularies made to break it."""

import base64
import functools
import importlib.util
import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sentencepieces import PROSE
from support.thorough import long

from streampack.errors import TokenizerError
from streampack.tokenizers.huggingface import HuggingFaceTokenizer
from streampack.tokenizers.loading import load_tokenizer

_MISTRAL = Path(importlib.util.find_spec("mistral_common").submodule_search_locations[0]) / "data"
_NUM_SPECIAL = 30


@functools.cache
def _published() -> str:
    """A file of Mistral's with its first 3,000 byte strings."""
    text = (_MISTRAL / "tekken_240911.json").read_text("utf-8")
    file = json.loads(text)
    file["config"] |= {"default_vocab_size": 3000 + _NUM_SPECIAL, "default_num_special_tokens": _NUM_SPECIAL}
    return json.dumps(file | {"vocab": file["vocab"][:3100]})


def published(**changes: Any) -> dict[str, Any]:
    return json.loads(_published()) | changes


def ours(file: dict[str, Any]) -> HuggingFaceTokenizer:
    return load_tokenizer(json.dumps(file).encode(), name="tekken.json")


def tekkenizer() -> Any:
    """mistral-common's; it takes half a second to import, so not where tests are only collected."""
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    return Tekkenizer


def theirs(file: dict[str, Any], folder: Path) -> Any:
    path = folder / "tekken.json"
    path.write_text(json.dumps(file))
    return tekkenizer().from_file(path)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[HuggingFaceTokenizer, Any]:
    return ours(published()), theirs(published(), tmp_path_factory.mktemp("tekken"))


def test_special_tokens_have_the_first_ids_and_begin_end_and_pad(both: Any) -> None:
    mine, mistral = both
    assert (mine.bos_id, mine.eos_id, mine.pad_id) == (mistral.bos_id, mistral.eos_id, mistral.pad_id) == (1, 2, 11)
    assert mine.vocab_size == mistral.n_words == 3030
    assert {name: token.id for name, token in mine.control_tokens().items()} == mistral._special_tokens_reverse_vocab


TEXTS = [
    "",
    "The quick brown fox, it's CamelCase and HTTPServer.\r\n\n\tif (a<=b) { return 1234567; } // ok\n/",
    "日本語とعربىとहिन्दी, e\u0301 \u00e9 ﬁ ２ 👩‍👩‍👧‍👦 🇩🇪 x\u200b\u2028\ufeff\u00a0 \x85 \x00",
    "</s> [INST] <pad> <SPECIAL_20> are text",
    "aaaaaaaaaaaaaaaa " + "!?" * 40 + " " * 70 + "\n" * 9,
    "Ça, ÀÉÎ ǅ ʰ ªº Ⅷ ½ ³ ๓",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_tekken_json_gives_the_ids_that_mistral_common_gives(both: Any, text: str) -> None:
    mine, mistral = both
    assert mine.encode(text).tolist() == mistral.encode(text, bos=False, eos=False)


@given(st.text(max_size=80))
def test_any_unicode_gives_the_ids_that_mistral_common_gives(both: Any, text: str) -> None:
    mine, mistral = both
    assert mine.encode(text).tolist() == mistral.encode(text, bos=False, eos=False)


@long
def test_a_whole_published_file_gives_the_ids_that_mistral_common_gives() -> None:
    """On prose, and on characters between others."""
    path = _MISTRAL / "tekken_240911.json"
    mine, mistral = load_tokenizer(path.read_bytes(), name=str(path)), tekkenizer().from_file(path)
    marks = [chr(point) for point in (*range(0xD800), *range(0xE000, 0x20000), *range(0x20000, 0x110000, 97))]
    texts = ["".join(f"a{mark}b {mark}{mark} A{mark}1. {mark}\n" for mark in each) for each in batched(marks, 50)]
    for text in [PROSE, *TEXTS, *texts]:
        assert mine.encode(text).tolist() == mistral.encode(text, bos=False, eos=False)


def batched(values: list[str], size: int) -> list[list[str]]:
    return [values[begin : begin + size] for begin in range(0, len(values), size)]


def _vocabulary(*joined: bytes) -> list[dict[str, Any]]:
    strings = [bytes([byte]) for byte in range(256)] + list(joined)
    return [
        {"rank": rank, "token_bytes": base64.b64encode(string).decode(), "token_str": None}
        for rank, string in enumerate(strings)
    ]


@pytest.mark.parametrize(
    "joined",
    [
        (b"bc", b"ab", b"abc", b"abcd"),  # abc is bc first
        (b"abab", b"ab"),  # above what it is made of: only joined after ab, of a lower priority
        (b"aa", b"aaa", b"aaaa"),  # neighbours that overlap
        (b"ab", b"ba", b"aba", b"bab", b"abab"),
        (b"xyz", b"ab"),  # made of no two: found as a whole word only
        (b"cd", b"bcd", b"ab", b"abcd", b"abc", b"ad"),
    ],
)
def test_any_order_of_ranks_gives_tiktokens_ids(joined: tuple[bytes, ...], tmp_path: Path) -> None:
    vocab = _vocabulary(*joined)
    file = published(vocab=vocab)
    file["config"]["default_vocab_size"] = len(vocab) + _NUM_SPECIAL
    mine, mistral = ours(file), theirs(file, tmp_path)
    letters = "xyz" if b"xyz" in joined else "abcd"
    for length in range(1, 7):
        for text in map("".join, itertools.product(letters, repeat=length)):
            assert mine.encode(text).tolist() == mistral.encode(text, bos=False, eos=False), text


def test_the_digest_is_of_what_decides_on_the_ids() -> None:
    file = published()
    same = dict(reversed(file.items())) | {"image": None, "vocab": file["vocab"][:3000]}
    assert ours(same).digest == ours(file).digest
    other = published(special_tokens=[{"rank": 1, "token_str": "<s>", "is_control": True}])
    assert ours(other).digest != ours(file).digest
    assert ours(other).eos_id is None


def test_a_pickle_gives_the_same_ids_and_tokens() -> None:
    tokenizer = HuggingFaceTokenizer(json.dumps(published()).encode(), eos_token="[INST]")
    again = pickle.loads(pickle.dumps(tokenizer))
    assert (again.digest, again.eos_id) == (tokenizer.digest, 3)
    assert again.encode(TEXTS[1]).tolist() == tokenizer.encode(TEXTS[1]).tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab": [{"rank": 0}]}, r"missing required field `token_bytes` - at `\$.vocab"),
        ({"vocab": _vocabulary()}, "default_vocab_size=3030 and .*=30 do not fit 256 entries of vocab"),
        ({"vocab": _vocabulary()[1:] * 20}, r"vocab\[0\] has the rank 1, and ranks count from 0 without gaps"),
        ({"vocab": _vocabulary(*[b"ab"] * 3000)}, "an entry without bytes, or two with the same"),
        ({"special_tokens": [{"rank": 30, "token_str": "<s>"}]}, "special_tokens do not fit .*=30"),
        ({"special_tokens": [{"rank": rank, "token_str": "<s>"} for rank in (0, 1)]}, "a rank or a name twice"),
        ({"special_tokens": [{"rank": 0, "token_str": "the"}]}, "text has a token of the special token 'the'"),
    ],
)
def test_a_broken_file_is_an_error_that_says_where(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=f"^tekken.json: .*tekken.json.*{message}"):
        ours(published(**changes))
