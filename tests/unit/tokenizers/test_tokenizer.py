"""The tokenizers against the libraries they stand on, with real models and models trained here."""

import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from support.sentencepieces import PROSE, train
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from streampack.errors import TokenizerError
from streampack.records import Tokenizer
from streampack.tokenizers.bytes import ByteTokenizer
from streampack.tokenizers.huggingface import HuggingFaceTokenizer
from streampack.tokenizers.loading import check_tokenizer, load_tokenizer, special_ids
from streampack.tokenizers.sentencepiece import SentencePieceTokenizer

_MISTRAL = Path(importlib.util.find_spec("mistral_common").submodule_search_locations[0]) / "data"
MISTRAL_MODELS = sorted(path for path in _MISTRAL.iterdir() if ".model" in path.name)

EDGE_TEXTS = [
    "",
    " ",
    "   leading and trailing   ",
    "\n",
    "line\nline\r\nline\n\n\n",
    "\t\ttabs\t",
    "a\x00b",  # NUL is a character like another
    "\ufeffbyte order mark",
    "no\u00a0break, thin\u2009space, zero\u200bwidth",
    "<s>",
    "</s>",
    "<unk>",
    "a <s> in the middle</s>",
    "<0x41>",  # the name of a byte piece
    "[INST] not a turn [/INST]",
    "▁▁ SentencePiece's own space mark ▁",
    "e\u0301 and \u00e9",  # decomposed and composed
    "ﬁ ligature, ２ full width",
    "👩‍👩‍👧‍👦 family, 🇩🇪 flag",
    "日本語とعربىとहिन्दी",
    "\U0010ffff\ufffe noncharacters",
    "a" * 5000,
    "x" + " " * 300 + "y",
    "1234567890.0987654321",
]


@pytest.fixture(scope="module")
def bpe_model() -> bytes:
    return train("bpe", byte_fallback=True, normalization_rule_name="identity", pad_id=3)


@pytest.fixture(scope="module")
def unigram_model() -> bytes:
    return train("unigram")


@pytest.fixture(scope="module")
def no_bos_model() -> bytes:
    return train("bpe", bos_id=-1)


def byte_level_bpe(**special: object) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": 600, "initial_alphabet": alphabet, "show_progress": False} | special
    tokenizer.train_from_iterator(PROSE.splitlines(), trainers.BpeTrainer(**options))
    return tokenizer


def as_bytes(tokenizer: tokenizers.Tokenizer) -> bytes:
    return tokenizer.to_str().encode()


def ids_of(model: bytes, text: str) -> list[int]:
    return sentencepiece.SentencePieceProcessor(model_proto=model).encode(text)


# SentencePiece


@pytest.mark.parametrize("path", MISTRAL_MODELS, ids=lambda path: path.name)
def test_mistrals_models_give_the_ids_that_sentencepiece_gives(path: Path) -> None:
    ours, theirs = SentencePieceTokenizer(path), sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text in [*EDGE_TEXTS, PROSE]:
        ids = ours.encode(text)
        assert ids.dtype == np.int32
        assert ids.tolist() == theirs.encode(text), text
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (1, 2, theirs.vocab_size())
    assert ours.pad_id is None, "the model says -1"


def test_there_is_a_mistral_model_to_test_with() -> None:
    assert len(MISTRAL_MODELS) >= 3


@pytest.mark.parametrize("kind", ["bpe_model", "unigram_model"])
def test_trained_models_give_the_ids_that_sentencepiece_gives(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    ours, theirs = SentencePieceTokenizer(model), sentencepiece.SentencePieceProcessor(model_proto=model)

    @given(st.text())
    def same(text: str) -> None:
        assert ours.encode(text).tolist() == theirs.encode(text)

    same()
    for text in [*EDGE_TEXTS, *PROSE.splitlines()]:
        assert ours.encode(text).tolist() == theirs.encode(text), text


@pytest.mark.parametrize("text", ["<s>", "</s>", "x<s>y</s>z", "<pad>", " <s> ", "<s></s>" * 20])
@pytest.mark.parametrize("path", MISTRAL_MODELS, ids=lambda path: path.name)
def test_the_text_of_a_control_token_gives_ordinary_pieces_in_mistrals_models(path: Path, text: str) -> None:
    tokenizer = SentencePieceTokenizer(path)
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(tokenizer.encode(text).tolist())


@pytest.mark.parametrize("text", ["<s>", "</s>", "x<s>y</s>z", "<pad>", " <s> ", "<s></s>" * 20])
@pytest.mark.parametrize("kind", ["bpe_model", "unigram_model"])
def test_the_text_of_a_control_token_gives_ordinary_pieces_in_trained_models(
    kind: str, text: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = SentencePieceTokenizer(request.getfixturevalue(kind))
    ids = tokenizer.encode(text).tolist()
    assert ids
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} & set(ids)


def test_ids_are_none_where_the_model_has_no_such_token(bpe_model: bytes, no_bos_model: bytes) -> None:
    assert SentencePieceTokenizer(no_bos_model).bos_id is None
    full = SentencePieceTokenizer(bpe_model)
    assert (full.bos_id, full.eos_id, full.pad_id) == (1, 2, 3)


def test_a_path_and_its_bytes_are_the_same_tokenizer(tmp_path: Path, bpe_model: bytes, unigram_model: bytes) -> None:
    path = tmp_path / "any.name"
    path.write_bytes(bpe_model)
    ours = SentencePieceTokenizer(bpe_model)
    for same in (SentencePieceTokenizer(path), SentencePieceTokenizer(str(path))):
        assert same.digest == ours.digest
    assert ours.digest.startswith("sentencepiece:")
    assert SentencePieceTokenizer(unigram_model).digest != ours.digest


def test_a_list_of_ids_from_an_older_library_becomes_an_array(bpe_model: bytes) -> None:
    ours = SentencePieceTokenizer(bpe_model)
    ours._numpy = False  # as before sentencepiece 0.2.3
    for text in EDGE_TEXTS:
        ids = ours.encode(text)
        assert (ids.dtype, ids.ndim) == (np.int32, 1)
        assert ids.tolist() == ids_of(bpe_model, text)


# tokenizer.json


def test_a_tokenizer_json_gives_the_ids_that_the_library_gives() -> None:
    theirs = byte_level_bpe(special_tokens=["<|endoftext|>"])
    ours = HuggingFaceTokenizer(as_bytes(theirs))

    @given(st.text())
    def same(text: str) -> None:
        assert ours.encode(text).tolist() == theirs.encode(text, add_special_tokens=False).ids

    same()
    for text in [*EDGE_TEXTS, PROSE]:
        assert ours.encode(text).tolist() == theirs.encode(text, add_special_tokens=False).ids, text
    assert ours.encode("").dtype == np.int32
    assert ours.vocab_size == theirs.get_vocab_size()


def test_truncation_and_padding_set_in_the_file_are_switched_off() -> None:
    theirs = byte_level_bpe(special_tokens=["<|endoftext|>"])
    whole = theirs.encode(PROSE).ids
    theirs.enable_truncation(8)
    theirs.enable_padding(length=2000, pad_token="<|endoftext|>")
    assert len(theirs.encode(PROSE).ids) == 2000
    ours = HuggingFaceTokenizer(as_bytes(theirs))
    assert ours.encode(PROSE).tolist() == whole
    assert ours.encode("a").tolist() == theirs.encode("a", add_special_tokens=False).ids[:1]
    assert ours.pad_id == 0, "the file's padding token"


def unigram_tokenizer() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=500, special_tokens=["<pad>", "<s>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(PROSE.splitlines(), trainer)
    return tokenizer


def word_tokenizer() -> tokenizers.Tokenizer:
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3, "word": 4}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>", "<unk>"])
    return tokenizer


@pytest.mark.parametrize(
    "theirs",
    [
        byte_level_bpe(special_tokens=["<pad>", "<s>", "</s>"]),
        unigram_tokenizer(),  # the text is a piece of the vocabulary, with the best score of all
        word_tokenizer(),  # and here it is a word
    ],
    ids=["bpe", "unigram", "words"],
)
def test_the_text_of_a_special_token_never_gives_its_id(theirs: tokenizers.Tokenizer) -> None:
    ours = HuggingFaceTokenizer(as_bytes(theirs))
    control = {ours.bos_id, ours.eos_id, ours.pad_id}
    assert control == {theirs.token_to_id(token) for token in ("<s>", "</s>", "<pad>")}
    text = "word <s> word</s> <pad> <s></s>"
    assert control & set(theirs.encode(text, add_special_tokens=False).ids), "the library alone gives control ids"
    assert not control & set(ours.encode(text).tolist())
    assert ours.encode("word of the ferry").tolist() == theirs.encode("word of the ferry").ids


def test_a_token_named_as_eos_is_guarded_also_if_the_file_does_not_call_it_special() -> None:
    theirs = byte_level_bpe()
    theirs.add_tokens(["<|im_end|>"])
    ours = HuggingFaceTokenizer(as_bytes(theirs), eos_token="<|im_end|>")
    assert ours.eos_id == theirs.token_to_id("<|im_end|>") == 600
    assert ours.vocab_size == 601
    assert 600 in theirs.encode("a <|im_end|> b").ids
    assert 600 not in ours.encode("a <|im_end|> b")


def template(single: str, *tokens: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=single, special_tokens=[(token, i) for i, token in enumerate(tokens)])


SPECIAL = ["<s>", "</s>", "<|endoftext|>", "[CLS]", "<pad>"]


@pytest.mark.parametrize(
    ("special", "post_processor", "named", "expected"),
    [
        (["<s>", "</s>", "<pad>"], None, {}, (0, 1, 2)),  # by well-known names
        (["<|endoftext|>"], None, {}, (None, 0, None)),  # ends documents; whether it begins them, nobody says
        (["<|endoftext|>"], None, {"bos_token": "<|endoftext|>"}, (0, 0, None)),  # GPT-2
        (["<s>", "</s>", "<|endoftext|>"], None, {}, (0, None, None)),  # two could be the EOS: no guess
        (["<s>", "</s>", "<|endoftext|>"], None, {"eos_token": "</s>"}, (0, 1, None)),
        (SPECIAL, template("<s> $A </s>", *SPECIAL), {}, (0, 1, 4)),  # the post-processor decides
        (SPECIAL, template("[CLS] $A <|endoftext|>", "-", "-", *SPECIAL[2:]), {}, (3, 2, 4)),
        (SPECIAL, template("<s> [CLS] $A", *SPECIAL), {}, (None, None, 4)),  # two tokens in front: no guess
        (
            SPECIAL,
            processors.Sequence([processors.ByteLevel(), template("[CLS] $A", *SPECIAL)]),  # as Llama 3 has it
            {"eos_token": "</s>"},
            (3, 1, 4),
        ),
        (SPECIAL, processors.RobertaProcessing(("</s>", 1), ("[CLS]", 3)), {}, (3, 1, 4)),
        (["<begin>"], None, {}, (None, None, None)),
    ],
)
def test_special_tokens_are_found_where_the_file_leaves_no_doubt(
    special: list[str], post_processor: object, named: dict[str, str], expected: tuple[int | None, ...]
) -> None:
    theirs = byte_level_bpe(special_tokens=special)
    if post_processor is not None:
        theirs.post_processor = post_processor
    ours = HuggingFaceTokenizer(as_bytes(theirs), **named)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == expected
    assert ours.encode("a b").tolist() == theirs.encode("a b", add_special_tokens=False).ids


def test_the_digest_of_a_tokenizer_json_names_what_decides_on_the_stream() -> None:
    theirs = byte_level_bpe(special_tokens=["<s>", "</s>"])
    digest = HuggingFaceTokenizer(as_bytes(theirs)).digest
    pretty = json.dumps(json.loads(theirs.to_str()), indent=3, sort_keys=True).encode()
    assert HuggingFaceTokenizer(pretty).digest == digest, "white space and the order of keys are no difference"
    assert HuggingFaceTokenizer(as_bytes(theirs), eos_token="<s>").digest != digest
    theirs.enable_truncation(5)
    assert HuggingFaceTokenizer(as_bytes(theirs)).digest == digest, "truncation is switched off"
    assert HuggingFaceTokenizer(as_bytes(byte_level_bpe(special_tokens=["<s>"]))).digest != digest


def test_a_name_that_is_not_in_the_vocabulary_is_an_error() -> None:
    data = as_bytes(byte_level_bpe())
    with pytest.raises(TokenizerError, match="^tok.json: eos_token='</done>' is not in the vocabulary"):
        HuggingFaceTokenizer(data, eos_token="</done>", name="tok.json")


def test_without_the_library_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data = as_bytes(byte_level_bpe())
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # how Python marks a module that cannot be imported
    with pytest.raises(TokenizerError, match=r"^a.json: .* pip install streampack\[hf\]"):
        load_tokenizer(data, name="a.json")


# Both


@pytest.fixture(params=["sentencepiece", "huggingface", "bytes"])
def tokenizer(request: pytest.FixtureRequest, bpe_model: bytes) -> Tokenizer:
    if request.param == "bytes":
        return ByteTokenizer()
    if request.param == "sentencepiece":
        return SentencePieceTokenizer(bpe_model)
    return HuggingFaceTokenizer(as_bytes(byte_level_bpe(special_tokens=["<a>", "</s>"])), bos_token="<a>")


def test_a_pickle_gives_the_same_ids(tokenizer: Tokenizer) -> None:
    tokenizer.encode("used before")
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy is not tokenizer
    for name in ("digest", "bos_id", "eos_id", "pad_id", "vocab_size"):
        assert getattr(copy, name) == getattr(tokenizer, name)
    for text in EDGE_TEXTS:
        assert copy.encode(text).tolist() == tokenizer.encode(text).tolist()


def test_a_pickle_loads_in_a_new_process(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.pickle"
    path.write_bytes(pickle.dumps(tokenizer))
    program = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).encode('the ferry left').tolist())"
    output = subprocess.run([sys.executable, "-W", "ignore", "-c", program, path], capture_output=True, check=True)
    assert json.loads(output.stdout) == tokenizer.encode("the ferry left").tolist()


def test_the_protocol_is_met(tokenizer: Tokenizer) -> None:
    assert isinstance(tokenizer, Tokenizer)
    assert check_tokenizer(tokenizer) is tokenizer
    ids = tokenizer.encode(PROSE)
    assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
    assert special_ids(tokenizer, add_bos=True, add_eos=True) == (tokenizer.bos_id, tokenizer.eos_id)
    assert special_ids(tokenizer, add_bos=False, add_eos=False) == (None, None)
    assert special_ids(tokenizer, add_bos=False, add_eos=True) == (None, tokenizer.eos_id)


def test_half_of_a_surrogate_pair_is_an_error_that_says_where(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"character 2 \('\\ud800'\) is half of a surrogate pair"):
        tokenizer.encode("ab\ud800")


def test_bytes_are_tokens_of_the_byte_tokenizer() -> None:
    assert ByteTokenizer().encode("aé\x00").tolist() == [100, 198, 172, 3]
    assert ByteTokenizer().encode("").tolist() == []

    @given(st.text())
    def comes_back(text: str) -> None:
        ids = ByteTokenizer().encode(text)
        assert ids.dtype == np.int32
        assert bytes(id_ - 3 for id_ in ids.tolist()).decode() == text

    comes_back()


def test_a_missing_bos_is_an_error_that_names_the_remedy(no_bos_model: bytes) -> None:
    with pytest.raises(TokenizerError, match="add_bos=True, but the tokenizer has no BOS token: pass add_bos=False"):
        special_ids(SentencePieceTokenizer(no_bos_model), add_bos=True, add_eos=True)
    assert special_ids(SentencePieceTokenizer(no_bos_model), add_bos=False, add_eos=True) == (None, 2)


def test_a_missing_eos_of_a_tokenizer_json_names_the_tokens_to_choose_from() -> None:
    ours = HuggingFaceTokenizer(as_bytes(byte_level_bpe(special_tokens=["<s>", "<stop>"])))
    message = r"add_eos=False .* or name one with eos_token= .--eos-token.; special tokens of the file: <s>, <stop>"
    with pytest.raises(TokenizerError, match=message):
        special_ids(ours, add_bos=True, add_eos=True)


# Known by content


def test_the_content_decides_and_not_the_name(bpe_model: bytes, unigram_model: bytes) -> None:
    json_bytes = as_bytes(byte_level_bpe())
    assert isinstance(load_tokenizer(bpe_model, name="tokenizer.json"), SentencePieceTokenizer)
    assert isinstance(load_tokenizer(unigram_model, name="x"), SentencePieceTokenizer)
    assert isinstance(load_tokenizer(json_bytes, name="tokenizer.model"), HuggingFaceTokenizer)
    assert isinstance(load_tokenizer(b" \n" + json_bytes, name="x"), HuggingFaceTokenizer)
    for path in MISTRAL_MODELS:
        assert isinstance(load_tokenizer(path.read_bytes(), name="x"), SentencePieceTokenizer)


def test_a_byte_order_mark_before_a_tokenizer_json_is_passed_over() -> None:
    data = as_bytes(byte_level_bpe())
    assert load_tokenizer(b"\xef\xbb\xbf" + data, name="x").digest == HuggingFaceTokenizer(data).digest


def test_what_the_library_cannot_encode_is_an_error_of_the_tokenizer() -> None:
    words = tokenizers.Tokenizer(models.WordLevel({"word": 0}, unk_token="<unk>"))  # without that token
    with pytest.raises(TokenizerError, match="the tokenizer's library does not encode the text 'other'"):
        HuggingFaceTokenizer(as_bytes(words)).encode("other")


def test_a_model_whose_first_bytes_look_like_json_is_loaded() -> None:
    """The first piece of this one is so long that its length is the character `{`."""
    model = train("bpe", unk_piece="<" + "u" * 112 + ">")
    assert model[:2] == b"\n{", "what the test is about"
    assert isinstance(load_tokenizer(model, name="x"), SentencePieceTokenizer)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "an empty file"),
        (b"  \n", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"<html><body>Sign in", "a web page"),
        (b'{"tokenizer_class": "LlamaTokenizer"}', "tokenizer_config.json: give the tokenizer.json"),
        (b'{"added_tokens_decoder": {}}', "tokenizer_config.json"),
        (b'{"config": {}, "vocab": [], "special_tokens": []}', "a broken tekken.json: .*missing .*`pattern`"),
        (b'{"the": 1, "a": 2}', "a vocab.json"),
        (b'{"architectures": [], "hidden_size": 1}', "the keys 'architectures', 'hidden_size'"),
        (b"{}", "a JSON object with the keys .none."),
        (b'{"model": "x"}', "the keys 'model'"),
        (b'{"model": {"type": "BPE"', "broken JSON"),
        (b"[1, 2]", "a JSON list"),
        (b"IQ== 0\nIg== 1\n", "a tiktoken rank file.* lacks the pattern .* give the tokenizer.json"),
        (b"#version: 0.2\nt h\n", "a merges.txt"),
        (b"\x1f\x8b\x08\x00", "a compressed file"),
        (b"PK\x03\x04zip", "a zip archive"),
        (b"garbage", "7 bytes that begin with b'garbage'"),
        (b"\n\x05abc", "5 bytes that begin with"),
        (b'{"model": {"type": "BPE", "merges": []}}', "cannot be used .KeyError: 'vocab'"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}', "cannot be used .*out of vocabulary"),
    ],
)
def test_what_is_no_model_is_named_for_what_it_is(data: bytes, found: str) -> None:
    with pytest.raises(TokenizerError, match=f"(?s)^s3://b/t.model: .*{found}"):
        load_tokenizer(data, name="s3://b/t.model")


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_an_error_and_nothing_else(data: bytes) -> None:
    with pytest.raises(TokenizerError, match="^x: "):
        load_tokenizer(data, name="x")


@pytest.mark.parametrize("cut", [1, 10, 1000])
def test_a_model_that_was_cut_is_an_error(bpe_model: bytes, cut: int) -> None:
    with pytest.raises(TokenizerError, match="not a SentencePiece model, tokenizer.json or tekken.json"):
        load_tokenizer(bpe_model[:-cut], name="x")


def test_a_path_that_cannot_be_read_is_an_error_with_its_name(tmp_path: Path) -> None:
    for kind in (SentencePieceTokenizer, HuggingFaceTokenizer):
        with pytest.raises(TokenizerError, match="missing.model: no such tokenizer: give the path"):
            kind(tmp_path / "missing.model")
        with pytest.raises(TokenizerError, match="^s3://b/t.model: only local paths are read here"):
            kind("s3://b/t.model")


# What users bring


class Own:
    bos_id = eos_id = 1
    pad_id = None
    vocab_size = 3
    digest = "own:1"

    def encode(self, text: str) -> np.ndarray:
        return np.zeros(len(text), dtype=np.uint16)


def test_an_object_with_all_parts_is_a_tokenizer() -> None:
    own = Own()
    assert check_tokenizer(own) is own


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bos_id", "<s>", "bos_id must be an int or None .it is str '<s>'"),
        ("eos_id", lambda: 2, "eos_id must be an int or None .it is a method"),  # sentencepiece's own processor
        ("pad_id", -1, "pad_id must be an int or None .it is int -1"),
        ("vocab_size", None, "vocab_size must be an int .it is NoneType None"),
        ("vocab_size", True, "vocab_size must be an int .it is bool True"),
        ("digest", "", "digest must be a string that changes with the ids"),
        ("encode", None, "encode must be a method"),
        ("encode", lambda text: [1, 2], r"encode must return a 1-D integer array, as np.asarray.*it is list \[1, 2\]"),
        ("encode", lambda text: np.zeros(3), "encode must return a 1-D integer array"),
    ],
)
def test_what_is_wrong_with_an_object_is_named(name: str, value: object, message: str) -> None:
    own = Own()
    setattr(own, name, value)
    with pytest.raises(TokenizerError, match=rf"test_tokenizer.Own cannot be used as a tokenizer: {message}"):
        check_tokenizer(own)


def test_every_missing_part_is_named_at_once() -> None:
    with pytest.raises(TokenizerError, match="bos_id.*eos_id.*pad_id.*vocab_size.*digest.*encode.*missing.*wrap it"):
        check_tokenizer(object())


def test_a_class_in_the_place_of_a_tokenizer_is_an_error() -> None:
    with pytest.raises(TokenizerError, match=r"the class ByteTokenizer is given as the .* ByteTokenizer\(\)"):
        check_tokenizer(ByteTokenizer)


def test_a_tokenizer_json_without_a_vocabulary_is_an_error() -> None:
    empty = b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}'
    with pytest.raises(TokenizerError, match="t.json: a tokenizer.json with an empty vocabulary"):
        load_tokenizer(empty, name="t.json")
    with pytest.raises(TokenizerError, match=r"SentencePieceProcessor cannot .*bos_id .*digest .*it is missing"):
        check_tokenizer(sentencepiece.SentencePieceProcessor())
