"""Long texts go to SentencePiece in parts: its ids, wherever they are cut, or they are not cut."""

import functools
import importlib.util
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st
from support.sentencepieces import PROSE, piece, train, written
from support.thorough import THOROUGH

from streampack.errors import ConfigError, TokenizerError
from streampack.tokenizers import bpe
from streampack.tokenizers.engines import choose_engine
from streampack.tokenizers.parts import PartsTokenizer
from streampack.tokenizers.sentencepiece import SentencePieceTokenizer

_MISTRAL = Path(importlib.util.find_spec("mistral_common").submodule_search_locations[0]) / "data"
IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
CUT = {
    "mistral": _MISTRAL / "tokenizer.model.v1",
    "control and user-defined pieces": _MISTRAL / "mistral_instruct_tokenizer_240323.model.v3",
    "byte fallback": {"byte_fallback": True, **IDENTITY},
    "no byte fallback": IDENTITY,
    "no dummy prefix": {"byte_fallback": True, "add_dummy_prefix": False, **IDENTITY},
    "user-defined": {"user_defined_symbols": ["<sep>", "and", "▁▁x"], "byte_fallback": True, **IDENTITY},
}
WHOLE = {
    "unigram": {"kind": "unigram", **IDENTITY},
    "nmt_nfkc": {"remove_extra_whitespaces": False},
    "spaces removed": {"normalization_rule_name": "identity"},
    "pieces across spaces": {"split_by_whitespace": False, **IDENTITY},
    "spaces behind words": {"treat_whitespace_as_suffix": True, **IDENTITY},
    "user-defined across spaces": {"user_defined_symbols": ["a▁b"], **IDENTITY},
    "user-defined with a space": {"user_defined_symbols": ["a b"], **IDENTITY},
}


@functools.cache
def model(name: str) -> bytes:
    source = (CUT | WHOLE)[name]
    return train(**source) if isinstance(source, dict) else source.read_bytes()


def ids_of(model: bytes, text: str) -> list[int]:
    return _processor(model).encode(text)


@functools.cache
def _processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


@pytest.mark.parametrize(
    ("name", "part"),
    list(itertools.product(CUT, (1, 7))) if THOROUGH else list(zip(CUT, itertools.cycle((1, 7)))),
)
def test_the_ids_are_those_of_the_whole_text(name: str, part: int) -> None:
    tokenizer = PartsTokenizer(SentencePieceTokenizer(model(name)), part=part)

    @given(st.text(st.sampled_from("ab \n▁☃é<sep>xy"), max_size=60))
    @example("a ")
    @example(" a  b ▁ c▁ d ☃ ☃\n e")
    @example("☃ ▁ ☃ ▁☃")
    def same(text: str) -> None:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert ids.tolist() == ids_of(model(name), text)

    same()
    for text in (PROSE, *PROSE.splitlines(), PROSE.replace(" ", "   "), PROSE.replace(" ", " ▁"), PROSE.upper()):
        assert tokenizer.encode(text).tolist() == ids_of(model(name), text)


@pytest.mark.parametrize("name", WHOLE)
def test_a_model_whose_pieces_may_lie_across_a_space_gets_whole_texts(name: str) -> None:
    plain = SentencePieceTokenizer(model(name))
    with pytest.raises(TokenizerError, match="may join or change the text across a space"):
        PartsTokenizer(plain)
    assert choose_engine(plain, "sentencepiece") is plain


def test_half_a_surrogate_pair_is_named_by_its_place_in_the_whole_text() -> None:
    tokenizer = PartsTokenizer(SentencePieceTokenizer(model("mistral")), part=2)
    with pytest.raises(TokenizerError, match=r"character 8 \('\\ud800'\) is half of a surrogate pair"):
        tokenizer.encode("aa bb cc\ud800 dd")


def test_the_tokenizer_goes_to_another_process() -> None:
    tokenizer = pickle.loads(pickle.dumps(PartsTokenizer(SentencePieceTokenizer(model("mistral")))))
    assert tokenizer.encode(PROSE).tolist() == ids_of(model("mistral"), PROSE)


@given(st.text(), st.integers(1, 9))
def test_parts_put_together_are_the_text(text: str, size: int) -> None:
    implied = bpe.cut(text, size, space_is_implied=True)
    assert " ".join(implied) == text
    assert "".join(bpe.cut(text, size, space_is_implied=False)) == text
    assert all(len(part) >= size for part in implied[:-1])
    assert not any(part.endswith((" ", "▁")) for part in implied[:-1])
    assert len(implied) == 1 or implied[-1]


def test_a_text_is_cut_as_often_as_it_can_be() -> None:
    assert bpe.cut("ab c  de f ", 2, space_is_implied=True) == ["ab", "c  de", "f "]
    assert bpe.cut("ab c  de f ", 1, space_is_implied=False) == ["ab", " c", "  de", " f "]


def test_unused_pieces_are_not_cut() -> None:
    """SentencePiece takes them apart as they were last seen to be joined, wherever in the text that was."""
    pieces = [("ab", 0.0), ("abc", -1.0)]
    assert bpe.can_be_cut(bpe.read_model(written(pieces)))
    assert not bpe.can_be_cut(bpe.read_model(written(pieces, kinds={"ab": bpe.UNUSED})))


def test_models_that_mark_spaces_in_another_way_are_not_cut() -> None:
    pieces = [("ab", 0.0)]
    assert not bpe.can_be_cut(bpe.read_model(written(pieces, f24=1)))  # treat_whitespace_as_suffix
    assert not bpe.can_be_cut(bpe.read_model(written(pieces, more=b"\x1a\x02\x28\x00")))  # no escape_whitespaces


def test_a_space_that_is_unknown_is_not_cut_at() -> None:
    """A run of unknown characters is one id: two runs and a space that is unknown as well are one, too."""
    without = model("no byte fallback").replace("▁".encode(), "☃".encode())
    assert not bpe.can_be_cut(bpe.read_model(without))
    assert ids_of(without, "a ☂ ☂") != [*ids_of(without, "a"), *ids_of(without, "☂"), *ids_of(without, "☂")]


@pytest.mark.parametrize(
    "more",
    [
        piece("㐀".encode() + b"\xe2", kind=bpe.USER_DEFINED),  # found in text byte by byte, across the cut
        piece("㐀".encode(), more=b"\x93\x03\x08\x05\x94\x03"),  # a group
    ],
)
def test_a_model_with_what_models_do_not_have_gets_whole_texts(more: bytes) -> None:
    plain = SentencePieceTokenizer(written([("ab", 0.0)], more=more))
    with pytest.raises(TokenizerError, match="the SentencePiece model cannot be parsed"):
        PartsTokenizer(plain)
    for engine in ("auto", "sentencepiece"):
        assert choose_engine(plain, engine) is plain


def test_a_field_of_a_wire_type_that_it_does_not_have_is_none() -> None:
    """As for protobuf: the piece lies across a space, whatever stands behind its text."""
    across = "㐀▁㐀"
    hidden = piece(across.encode(), 9.0, more=b"\x0dqqqq\x11" + bytes(8))
    read = bpe.read_model(written([("ab", 0.0)], more=piece("㐀".encode()) + hidden))
    assert across in read.joined
    assert not bpe.can_be_cut(read)


def test_a_part_has_a_character() -> None:
    with pytest.raises(ConfigError, match="part=0"):
        PartsTokenizer(SentencePieceTokenizer(model("mistral")), part=0)


def test_another_release_of_the_library_is_tried_before_it_gets_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = SentencePieceTokenizer(model("mistral"))
    encode = plain.encode
    monkeypatch.setattr(plain, "encode", lambda text: np.append(encode(text), np.int32(0)))
    with pytest.raises(TokenizerError, match="gives a text in parts other ids"):
        PartsTokenizer(plain)
