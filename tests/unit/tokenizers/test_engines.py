"""Faster engines: the ids are SentencePiece's on every text, or the engine is not used, or it is an error."""

import functools
import importlib.util
import itertools
import logging
import multiprocessing
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import gigatoken
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sentencepieces import PROSE, train, written
from support.thorough import long, nightly

import streampack
from streampack.errors import ConfigError, TokenizerError
from streampack.hashing import hash_name
from streampack.records import MOST_DIFFERENCES, Tokenizer
from streampack.tokenizers import bpe, comparing
from streampack.tokenizers import gigatoken as gigatoken_module
from streampack.tokenizers.bytes import ByteTokenizer
from streampack.tokenizers.comparing import ONE_IN
from streampack.tokenizers.engines import choose_engine
from streampack.tokenizers.gigatoken import FastSentencePiece
from streampack.tokenizers.loading import check_tokenizer
from streampack.tokenizers.parts import PartsTokenizer
from streampack.tokenizers.sentencepiece import SentencePieceTokenizer

_MISTRAL = Path(importlib.util.find_spec("mistral_common").submodule_search_locations[0]) / "data"
MISTRAL = _MISTRAL / "tokenizer.model.v1"
MISTRAL_WITH_TOOLS = _MISTRAL / "mistral_instruct_tokenizer_240323.model.v3"

IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
MODELS = {
    "mistral": MISTRAL,
    "control and user-defined pieces": MISTRAL_WITH_TOOLS,
    "defaults: nmt_nfkc, no byte fallback": {},
    "byte fallback, spaces kept": {"byte_fallback": True, **IDENTITY},
    "byte fallback, nmt_nfkc": {"byte_fallback": True},
    "no dummy prefix": {"byte_fallback": True, "add_dummy_prefix": False, **IDENTITY},
    "user-defined and control": {
        "user_defined_symbols": ["<sep>", "[TOOL]"],
        "control_symbols": ["<turn>"],
        "pad_id": 3,
        "byte_fallback": True,
        **IDENTITY,
    },
}


_made: dict[str, FastSentencePiece] = {}


def fast(name: str = "mistral") -> FastSentencePiece:
    if name not in _made:
        source = MODELS[name]
        _made[name] = FastSentencePiece(SentencePieceTokenizer(train(**source) if isinstance(source, dict) else source))
    return _made[name]


@functools.cache
def pieces_of(name: str) -> tuple[tuple[str, float, int], ...]:
    return bpe.read_model(fast(name).plain.model).pieces


@functools.cache
def small() -> bytes:
    """A model of few pieces, for tests to which any will do."""
    return train(**MODELS["byte fallback, spaces kept"])


def stays_with_sentencepiece(plain: SentencePieceTokenizer, engine: str = "auto") -> bool:
    chosen = choose_engine(plain, engine)
    return chosen is plain or (type(chosen) is PartsTokenizer and chosen.plain is plain)


def assert_same(tokenizer: FastSentencePiece, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == tokenizer.plain.encode(text).tolist(), text[:100]


# The same ids


@pytest.mark.parametrize("name", MODELS)
def test_the_ids_of_real_text_are_the_same(name: str) -> None:
    for text in (PROSE, *PROSE.splitlines(), *PROSE.split(), PROSE.upper(), PROSE.replace(" ", "  ")):
        assert_same(fast(name), text)


@pytest.mark.parametrize("name", MODELS)
def test_the_ids_of_edge_texts_are_the_same(name: str) -> None:
    texts = bpe.edge_texts(bpe.read_model(fast(name).plain.model))
    assert len(set(texts)) >= 18
    for text in texts:
        assert_same(fast(name), text)


@given(text=st.text(max_size=300))
def test_the_ids_of_any_unicode_are_the_same(text: str) -> None:
    for name in MODELS:
        assert_same(fast(name), text)


@pytest.mark.parametrize("name", ["mistral", "user-defined and control", "defaults: nmt_nfkc, no byte fallback"])
@given(data=st.data())
def test_the_ids_of_strings_made_of_pieces_are_the_same(name: str, data: st.DataObject) -> None:
    """Pieces of all types, whole and cut, once and in runs, with and without the spaces between them."""
    pieces = [text for text, _, _ in pieces_of(name)]
    part = st.tuples(st.sampled_from(pieces), st.integers(1, 9), st.integers(0, 3))
    parts = data.draw(st.lists(part, max_size=15))
    text = "".join(piece * count + piece[:cut] for piece, count, cut in parts)
    for form in (text, text.replace("▁", " "), text.replace("▁", "")):
        assert_same(fast(name), form)


@given(runs=st.lists(st.tuples(st.sampled_from(" \n\t▁.=-ax。\0"), st.integers(1, 70)), max_size=12))
def test_the_ids_of_runs_are_the_same(runs: list[tuple[str, int]]) -> None:
    assert_same(fast(), "".join(character * count for character, count in runs))


@pytest.mark.parametrize("name", MODELS)
def test_no_control_token_can_be_written_in_a_document(name: str) -> None:
    tokenizer = fast(name)
    control = {token: text for token, (text, _, kind) in enumerate(pieces_of(name)) if kind == 3}
    assert control
    for text in ("<unk>", *[*control.values()][:50]):
        for document in (text, f"a {text} b", f"a{text}b", text * 3, text[:-1], f"{text}{text[1:]}"):
            assert_same(tokenizer, document)
            assert not set(tokenizer.encode(document).tolist()) & set(control), document


def test_a_user_defined_piece_keeps_its_id_where_it_stands() -> None:
    tokenizer = fast("user-defined and control")
    piece = next(token for token, (text, _, _) in enumerate(pieces_of("user-defined and control")) if text == "<sep>")
    for text in ("<sep>", "one<sep>two", "one <sep> two", "<sep><sep>", "x <sep", "a [TOOL]<sep>b"):
        assert_same(tokenizer, text)
    assert piece in tokenizer.encode("one<sep>two").tolist()
    assert piece not in tokenizer.encode("one<se p>two").tolist()


def test_a_run_of_characters_without_pieces_gives_one_unknown_id() -> None:
    tokenizer = fast("defaults: nmt_nfkc, no byte fallback")
    assert 0 in tokenizer.encode("abc ᚠ def").tolist()
    for text in ("ᚠ", "ᚠᚠ", "ᚠ ᚠ", "ᚠaᚠ", "abc ᚠ def", "日本語", "日本語 a👩‍👩‍👧‍👦b"):
        assert_same(tokenizer, text)


def test_it_is_the_same_tokenizer_but_for_the_speed() -> None:
    plain = SentencePieceTokenizer(MISTRAL)
    tokenizer = choose_engine(plain)
    assert isinstance(tokenizer, FastSentencePiece)
    assert isinstance(tokenizer, Tokenizer)
    assert check_tokenizer(tokenizer) is tokenizer
    for name in ("digest", "bos_id", "eos_id", "pad_id", "vocab_size"):
        assert getattr(tokenizer, name) == getattr(plain, name)
    assert tokenizer.id_to_piece(5000) == plain.id_to_piece(5000)
    assert repr(tokenizer) == f"FastSentencePiece({plain!r})"


def test_half_a_surrogate_pair_is_the_error_it_is_without_an_engine() -> None:
    with pytest.raises(TokenizerError, match=r"character 1 \('\\ud800'\) is half of a surrogate pair"):
        fast().encode("a\ud800b")


# The proof


@given(data=st.data())
def test_models_of_distinct_scores_give_the_same_ids(data: st.DataObject) -> None:
    """Any pieces, in any order: also models that no training would make."""
    texts = st.text("abc", min_size=2, max_size=5)
    pieces = data.draw(st.lists(texts, unique=True, min_size=1, max_size=20))
    model = written([(text, -float(rank)) for rank, text in enumerate(pieces)])
    assert bpe.obstacle(bpe.read_model(model)) is None
    tokenizer = FastSentencePiece(SentencePieceTokenizer(model))
    for length in range(1, 6):
        for letters in itertools.product("abc", repeat=length):
            assert_same(tokenizer, "".join(letters))
    for text in data.draw(st.lists(st.text("abc ▁", max_size=60), max_size=5)):
        assert_same(tokenizer, text)


def test_equal_scores_can_make_other_ids_and_so_stay_with_sentencepiece(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = SentencePieceTokenizer(written([("bb", -1.0), ("ab", -1.0)]))
    assert stays_with_sentencepiece(plain)
    with pytest.raises(
        TokenizerError, match="pieces have equal scores, as 'bb' and 'ab'; use engine=\"sentencepiece\""
    ):
        choose_engine(plain, "gigatoken")
    monkeypatch.setattr(bpe, "obstacle", lambda model: None)
    unproved = FastSentencePiece(plain)
    assert unproved._encode("abb", b"abb").tolist() != plain.encode("abb").tolist()


@pytest.mark.parametrize(
    ("model", "obstacle"),
    [
        (train("unigram"), "it is a unigram model, not a BPE model"),
        (train("char"), "it is a character model, not a BPE model"),
        (written([("ab", 0.0)], f24=1), "it marks spaces in an unusual way"),
        (written([("ab", 0.0), ("ac", -1.0)], kinds={"ac": 5}), "it has unused pieces"),
        (
            written([("ab", 0.0), ("\n", 0.0)], kinds={"\n": 4}),
            "its 1 user-defined pieces are in ordinary text, as '\\n'",
        ),
        (written([("ab", 0.0), ("ad", -1.0)]), "the piece 'ad' is not made of characters that are pieces"),
        (written([("aa", -9.0), ("aaa", -9.0), ("aab", 0.0)]), "pieces have equal scores, as 'aa' and 'aaa'"),
        (written([("aa", -9.0), ("aaa", -9.0), ("bc", -10.0)]), "pieces have equal scores, as 'aa' and 'aaa'"),
    ],
)
def test_a_model_without_a_proof_stays_with_sentencepiece(
    model: bytes, obstacle: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain = SentencePieceTokenizer(model)
    with caplog.at_level(logging.INFO, logger="streampack"):
        assert stays_with_sentencepiece(plain)
    assert f"tokenizing with SentencePiece: no faster engine for this model: {obstacle}" in caplog.text
    with pytest.raises(TokenizerError, match=re.escape(obstacle)):
        choose_engine(plain, "gigatoken")


def test_runs_of_equal_score_are_proved_as_mistral_has_them() -> None:
    model = written([("ab", 0.0), *(("▁" * length, -9.0) for length in (2, 3, 4, 6))])
    assert bpe.obstacle(bpe.read_model(model)) is None
    tokenizer = FastSentencePiece(SentencePieceTokenizer(model))
    for first, second in itertools.product(range(20), repeat=2):
        assert_same(tokenizer, f"{' ' * first}ab{' ' * second}c")


# The choice


def test_sentencepiece_is_there_for_the_asking() -> None:
    plain = SentencePieceTokenizer(small())
    assert stays_with_sentencepiece(plain, "sentencepiece")
    for engine in ("gigatoken", "sentencepiece"):
        chosen = choose_engine(plain, engine)
        assert choose_engine(chosen, "auto") is choose_engine(chosen, engine) is chosen
    parts = choose_engine(fast("byte fallback, spaces kept"), "sentencepiece")
    assert type(parts) is PartsTokenizer
    assert parts.plain is fast("byte fallback, spaces kept").plain
    assert type(choose_engine(parts, "gigatoken")) is FastSentencePiece


def test_the_choice_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="streampack"):
        choose_engine(SentencePieceTokenizer(small()))
    assert re.search(r"tokenizing with gigatoken [\d.]+: the ids of SentencePiece on all texts that", caplog.text)


def test_a_tokenizer_with_an_encode_of_its_own_is_left_alone() -> None:
    class Reversed(SentencePieceTokenizer):
        def encode(self, text: str) -> np.ndarray:
            return super().encode(text)[::-1]

    for tokenizer in (ByteTokenizer(), Reversed(small())):
        assert choose_engine(tokenizer) is choose_engine(tokenizer, "sentencepiece") is tokenizer
        with pytest.raises(ConfigError, match=f"of a tokenizer.json, and this is {type(tokenizer).__name__}: use"):
            choose_engine(tokenizer, "gigatoken")


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ConfigError, match="engine='rust' is not known;.* of auto, sentencepiece, tokenizers, gig"):
        choose_engine(ByteTokenizer(), "rust")


def test_without_the_library_auto_is_sentencepiece(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    plain = SentencePieceTokenizer(small())
    with caplog.at_level(logging.INFO, logger="streampack"):
        assert stays_with_sentencepiece(plain)
    assert "gigatoken is not installed" in caplog.text
    with pytest.raises(TokenizerError, match=r"gigatoken is not installed .*: pip install streampack\[fast\]"):
        choose_engine(plain, "gigatoken")


class OffByOne:
    """gigatoken, but for the last id of every document."""

    def __init__(self, tokenizer: gigatoken.Tokenizer) -> None:
        self.backend = self
        self._encode = tokenizer.backend.encode

    @classmethod
    def from_json(cls, data: bytes) -> "OffByOne":
        return cls(gigatoken.Tokenizer.from_json(data))

    def encode(self, text: bytes) -> np.ndarray:
        ids = self._encode(text)
        ids[-1:] += 1
        return ids


@pytest.mark.parametrize(
    ("release", "message"),
    [
        *nightly([(SimpleNamespace(), "cannot be used (AttributeError")]),
        (SimpleNamespace(Tokenizer=OffByOne), "instead of [259] from token 0 on for a document of 1 characters, ' '"),
    ],
)
def test_another_release_of_the_library_is_tried_before_it_is_used(
    release: SimpleNamespace, message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", release)
    plain = SentencePieceTokenizer(MISTRAL)
    with pytest.raises(TokenizerError, match=re.escape(message)):
        choose_engine(plain, "gigatoken")
    with caplog.at_level(logging.INFO, logger="streampack"):
        assert stays_with_sentencepiece(plain)
    assert message in caplog.text


# The sample


def erring(tokenizer: FastSentencePiece) -> FastSentencePiece:
    """A copy whose library is wrong on each document."""
    copy = pickle.loads(pickle.dumps(tokenizer))
    copy._handle = OffByOne.from_json(copy._json).encode
    return copy


def differing(documents: list[str]) -> list[str]:
    """The documents that are found to differ, by an engine that is wrong on each."""
    tokenizer, found = erring(fast()), []
    for text in documents:
        is_right = tokenizer.encode(text).tolist() == tokenizer.plain.encode(text).tolist()
        assert is_right == bool(tokenizer.untold())
        if is_right:
            found.append(text)
    return found


def test_one_document_in_256_is_compared_the_same_ones_in_every_process_and_has_the_right_ids() -> None:
    documents = [f"{index}: {PROSE[index % 900 : index % 900 + index % 40]}" for index in range(20 * ONE_IN)]
    found = differing(documents)
    assert 10 <= len(found) <= 30
    assert differing(documents[::-1]) == found[::-1]


def test_a_difference_is_told_once_for_a_text_with_the_document_and_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparing, "ONE_IN", 1)
    tokenizer = erring(fast())
    assert tokenizer.untold() == []
    right = tokenizer.plain.encode("some document").tolist()
    for _ in range(2):
        assert tokenizer.encode("some document").tolist() == right
    (told,) = tokenizer.untold()
    assert told.text == hash_name("some document")
    message = (
        rf"gigatoken [\d.]+ gives \[{right[-1] + 1}\] instead of \[{right[-1]}\] from token {len(right) - 1} on for a "
        r"document of 13 characters, 'some document'\.\.\.\. The document has the ids of sentencepiece\. Others that "
        'are not among those compared, one in 1, may be wrong: use engine="sentencepiece", or another release'
    )
    assert re.fullmatch(message, told.what)
    for number in range(3 * MOST_DIFFERENCES):
        tokenizer.encode(f"another document {number // 2}")
    assert pickle.loads(pickle.dumps(tokenizer)).untold() == []
    assert [each.text for each in tokenizer.untold()] == [
        hash_name(f"another document {number}") for number in range(MOST_DIFFERENCES + 1)
    ]
    assert tokenizer.untold() == []


def test_a_difference_in_length_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "ONE_IN", 1)
    tokenizer = pickle.loads(pickle.dumps(fast()))
    tokenizer._handle = lambda data: tokenizer.plain.encode(data.decode())[:-1].view(np.uint32)
    assert tokenizer.encode("some document").tolist() == tokenizer.plain.encode("some document").tolist()
    assert re.search(r"gives \[\] instead of \[\d+\] from token 1 on", tokenizer.untold()[0].what)


class PanicException(BaseException):
    """As Rust's libraries raise it."""


@pytest.mark.parametrize("error", [RuntimeError, PanicException])
def test_a_library_that_fails_on_a_document_differs_on_it(error: type[BaseException]) -> None:
    def fail(data: bytes) -> np.ndarray:
        raise error("out of bounds")

    tokenizer = pickle.loads(pickle.dumps(fast()))
    tokenizer._handle = fail
    assert tokenizer.encode("some document").tolist() == tokenizer.plain.encode("some document").tolist()
    assert f"fails ({error.__name__}: out of bounds) for a document of 13 characters" in tokenizer.untold()[0].what


def test_an_interrupt_is_no_difference() -> None:
    def interrupt(data: bytes) -> np.ndarray:
        raise KeyboardInterrupt

    tokenizer = pickle.loads(pickle.dumps(fast()))
    tokenizer._handle = interrupt
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode("some document")


# Memory, time, processes


def restarts(monkeypatch: pytest.MonkeyPatch, in_use: Iterable[int], *, cache_bytes: int) -> list[int]:
    """The documents, of 100 bytes and with a look at each third one, after which the library is started again."""
    monkeypatch.setattr(gigatoken_module, "LOOK_BYTES", 250)
    monkeypatch.setattr(gigatoken_module, "in_use", iter(in_use).__next__)
    tokenizer = pickle.loads(pickle.dumps(fast()))
    tokenizer._cache_bytes = cache_bytes
    handles = []
    for _ in range(20):
        tokenizer.encode("a" * 100)
        handles.append(tokenizer._handle)
    assert_same(tokenizer, PROSE)
    return [index for index, handle in enumerate(handles) if handle is None]


def test_the_cache_is_dropped_when_it_has_grown_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    assert restarts(monkeypatch, itertools.count(1000, 10), cache_bytes=15) == [5, 11, 17]
    assert restarts(monkeypatch, itertools.repeat(1000), cache_bytes=15) == []


def test_where_the_allocator_cannot_be_asked_the_text_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert restarts(monkeypatch, itertools.repeat(0), cache_bytes=4 * 599) == [5, 11, 17]


def test_what_is_allocated_is_known() -> None:
    before = gigatoken_module.in_use()
    if before:  # glibc
        held = bytearray(50_000_000)
        assert gigatoken_module.in_use() - before >= len(held)


GROWTH = """
import sys, types
import numpy as np
package = types.ModuleType("streampack"); package.__path__ = [{package!r}]
sys.modules["streampack"] = package  # without torch
from streampack.tokenizers.gigatoken import FastSentencePiece
from streampack.tokenizers.sentencepiece import SentencePieceTokenizer

def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

tokenizer = FastSentencePiece(SentencePieceTokenizer({model!r}), cache_bytes={cache_bytes})
numbers = np.random.default_rng(0)
sizes = []
for _ in range(600):
    tokenizer.encode(" ".join(map(str, numbers.integers(0, 10**8, 2000))))
    sizes.append(resident_mb())
print(max(sizes[300:]) - max(sizes[:150]))  # the first look is after 2 MiB, 117 documents
"""


@long
def test_memory_is_bounded_over_text_that_never_comes_again() -> None:
    """Eleven megabytes of numbers; what the last half adds to the first quarter."""

    def grown_mb(cache_bytes: int) -> float:
        names = {"package": str(Path(streampack.__file__).parent), "model": str(MISTRAL)}
        program = GROWTH.format(cache_bytes=cache_bytes, **names)
        return float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)

    assert grown_mb(2**40) > 30
    assert grown_mb(2**22) < 10


def test_a_long_document_without_a_place_to_cut_takes_no_longer_than_with_sentencepiece() -> None:
    for text in ("a" * 200_000, "ab" * 100_000, " " * 200_000, PROSE.replace(" ", "") * 50):
        seconds = []
        for encode in (fast().encode, fast().plain.encode):
            start = time.process_time()
            encode(text)
            seconds.append(time.process_time() - start)
        assert seconds[0] < 5 * seconds[1] + 0.1, text[:10]


def test_a_pickle_holds_no_handle_and_gives_the_same_ids() -> None:
    for name in MODELS:
        tokenizer = fast(name)
        tokenizer.encode(PROSE)
        copy = pickle.loads(pickle.dumps(tokenizer))
        assert copy._handle is None
        assert copy.digest == tokenizer.digest
        assert_same(copy, PROSE)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_the_same_ids(method: str) -> None:
    fast().encode(PROSE)  # a forked worker has the parent's handle, which stands on memory alone
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        found = pool.submit(fast().encode, PROSE).result()
    assert found.tolist() == fast().plain.encode(PROSE).tolist()
