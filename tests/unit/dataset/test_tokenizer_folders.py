"""A tokenizer by its folder: which file is taken, which tokens begin, end and pad, and the chat template."""

import functools
import json
import logging
from pathlib import Path
from typing import Any

import fsspec
import pytest
import tokenizers
from support.sentencepieces import train
from tokenizers import models, pre_tokenizers

import streampack
from streampack.errors import ConfigError, TokenizerError
from streampack.testing import ByteTokenizer, write_shards
from streampack.tokenizers import HuggingFaceTokenizer, SentencePieceTokenizer

SPECIAL = ["<s>", "</s>", "<pad>", "<|im_end|>"]
GENERATION = "{{ bos_token }}{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"


@functools.cache
def tokenizer_json() -> bytes:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {name: index for index, name in enumerate([*SPECIAL, *alphabet])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer.to_str().encode()


sentencepiece_model = functools.cache(lambda: train(control_symbols="<end>", user_defined_symbols="<user>"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(tokenizer_json())
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    return write_shards(tmp_path_factory.mktemp("shards"), [talk], field="json:messages")


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def dataset(shards: list[str], tokenizer: Any, **arguments: Any) -> streampack.PackedDataset:
    return streampack.PackedDataset(shards, tokenizer, 64, num_lanes=1, **arguments)


def ids(made: streampack.PackedDataset) -> tuple[int | None, int | None, int | None]:
    tokenizer = made.pipeline.tokenizer
    assert tokenizer is not None
    return tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id


def test_the_first_file_that_is_there_is_taken_and_the_log_says_which(
    folder: Path, shards: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "streampack.tokenizers.folders")
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    assert dataset(shards, folder).fingerprint()["tokenizer"].startswith("huggingface:")
    (folder / "tokenizer.json").unlink()
    assert dataset(shards, folder).fingerprint()["tokenizer"].startswith("sentencepiece:")
    said = [f"the tokenizer of the folder {folder} is its tokenizer.{kind}" for kind in ("json", "model")]
    assert caplog.messages == said


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path: Path, shards: list[str]) -> None:
    write(tmp_path, "config.json", {})
    message = f"{tmp_path}: a folder without a tokenizer: none of tokenizer.json, tekken.json, tokenizer.model is in it"
    with pytest.raises(TokenizerError, match=message):
        dataset(shards, tmp_path)


def test_a_folder_with_files_of_other_names_names_them(tmp_path: Path, shards: list[str]) -> None:
    for name in ("tekken_240911.json", "qwen.tiktoken", "config.json", "model.safetensors"):
        write(tmp_path, name, {})
    named = "in it are qwen.tiktoken, tekken_240911.json: if one of them is the tokenizer, give the file itself$"
    for make in (lambda: dataset(shards, tmp_path), lambda: HuggingFaceTokenizer(tmp_path)):
        with pytest.raises(TokenizerError, match=named):
            make()
    write(tmp_path, "vocab.json", {})
    with pytest.raises(TokenizerError, match=r"vocab.json: if .* `AutoTokenizer.*` makes a tokenizer.json"):
        dataset(shards, tmp_path)


def test_a_remote_folder_names_them_too(shards: list[str]) -> None:
    memory = fsspec.filesystem("memory")
    try:
        memory.pipe("memory://other-tokenizer/qwen.tiktoken", b"")
        with pytest.raises(TokenizerError, match="in it are qwen.tiktoken: "):
            dataset(shards, "memory://other-tokenizer/")
    finally:
        memory.rm("memory://other-tokenizer", recursive=True)


def test_an_error_says_what_named_the_token_and_lists_only_special_ones(folder: Path, shards: list[str]) -> None:
    content = json.loads(tokenizer_json())
    content["added_tokens"][3]["special"] = False
    write(folder, "tokenizer.json", content)
    write(folder, "tokenizer_config.json", {"eos_token": "</S>"})
    beside = "This eos_token is from the tokenizer_config.json or special_tokens_map.json beside the file"
    with pytest.raises(TokenizerError, match=r"eos_token='</S>' is not in .*tokens are [^|]*\)\. " + beside):
        dataset(shards, folder)
    with pytest.raises(TokenizerError, match=r"bos_token='<S>' is not in .*tokens are [^|]*\)$"):
        dataset(shards, folder, bos_token="<S>", eos_token="</s>")
    content["post_processor"] = {"type": "BertProcessing", "sep": ["[SEP]", 1], "cls": ["[CLS]", 0]}
    with pytest.raises(TokenizerError, match=r"bos_token='\[CLS\]' of its post-processor is not in"):
        HuggingFaceTokenizer(json.dumps(content).encode())


def test_a_rank_file_of_tiktoken_in_a_folder_asks_for_the_tokenizer_json(tmp_path: Path, shards: list[str]) -> None:
    write(tmp_path, "tokenizer.model", "IQ== 0\nIg== 1\n")
    with pytest.raises(TokenizerError, match="tokenizer.model: .*a tiktoken rank file.*lacks the pattern"):
        dataset(shards, tmp_path)


@pytest.mark.parametrize(
    ("config", "special_tokens_map", "expected"),
    [
        (None, None, (0, 1, 2)),  # by well-known names
        ({"eos_token": "<|im_end|>"}, None, (0, 3, 2)),
        ({"eos_token": {"content": "<|im_end|>", "special": True}}, None, (0, 3, 2)),
        ({"bos_token": None, "eos_token": "</s>", "pad_token": "<|im_end|>"}, None, (None, 1, 3)),
        (None, {"eos_token": "<|im_end|>"}, (0, 3, 2)),
        ({"eos_token": "</s>"}, {"eos_token": {"content": "<|im_end|>"}}, (0, 3, 2)),
        ({"eos_token": "</s>", "added_tokens_decoder": {}}, {"eos_token": "<|im_end|>"}, (0, 1, 2)),
    ],
)
def test_special_tokens_are_read_as_transformers_reads_them(
    folder: Path, shards: list[str], config: Any, special_tokens_map: Any, expected: tuple[int | None, ...]
) -> None:
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", special_tokens_map)):
        if content is not None:
            write(folder, name, content)
    made = dataset(shards, folder, add_bos=expected[0] is not None)
    assert ids(made) == expected


def test_an_argument_comes_before_the_files_and_is_in_the_fingerprint(folder: Path, shards: list[str]) -> None:
    write(folder, "tokenizer_config.json", {"eos_token": "not there"})
    with pytest.raises(TokenizerError, match="eos_token='not there' is not in the .* name another .* eos_token="):
        dataset(shards, folder)
    made = dataset(shards, folder, eos_token="<|im_end|>", bos_token="</s>", pad_token="<s>")
    assert ids(made) == (1, 3, 0)
    assert made.pipeline.pad_id == 0
    tokenizer = HuggingFaceTokenizer(tokenizer_json(), eos_token="<|im_end|>", bos_token="</s>", pad_token="<s>")
    assert made.fingerprint()["tokenizer"] == tokenizer.digest != HuggingFaceTokenizer(tokenizer_json()).digest


def test_a_url_may_be_a_folder(shards: list[str]) -> None:
    memory = fsspec.filesystem("memory")
    try:
        memory.pipe("memory://tokenizers/mine/tokenizer.json", tokenizer_json())
        memory.pipe("memory://tokenizers/mine/tokenizer_config.json", b'{"eos_token": "<|im_end|>"}')
        for url in ("memory://tokenizers/mine", "memory://tokenizers/mine/"):
            assert ids(dataset(shards, url)) == (0, 3, 2)
        with pytest.raises(TokenizerError, match="memory://tokenizers/other: no such tokenizer"):
            dataset(shards, "memory://tokenizers/other")
    finally:
        memory.rm("memory://tokenizers", recursive=True)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_broken_file_is_named(folder: Path, shards: list[str], name: str) -> None:
    write(folder, name, "[]")
    with pytest.raises(TokenizerError, match=f"{folder}/{name}: not a JSON object"):
        dataset(shards, folder)


# The tokens of SentencePiece models


def test_a_control_piece_can_be_bos_and_eos_and_any_piece_pad(tmp_path: Path, shards: list[str]) -> None:
    path = tmp_path / "any.model"
    path.write_bytes(sentencepiece_model())
    plain = SentencePieceTokenizer(path)
    end = plain.control_tokens()["<end>"].id
    made = dataset(shards, path, eos_token="<end>", pad_token="<unk>")
    assert ids(made) == (plain.bos_id, end, 0)
    assert made.fingerprint()["tokenizer"].startswith(plain.digest + " with ")
    same = SentencePieceTokenizer(path, bos_token="<s>", eos_token="</s>")
    assert same.digest == plain.digest  # it is as it was


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("</S>", "bos_token='</S>' is not in the vocabulary of the file: .*its special tokens are </s>, <s>, <end>"),
        ("<user>", "bos_token='<user>' is not a control piece of the file"),
    ],
)
def test_another_token_is_an_error_that_lists_candidates(
    tmp_path: Path, shards: list[str], token: str, message: str
) -> None:
    path = tmp_path / "any.model"
    path.write_bytes(sentencepiece_model())
    with pytest.raises(TokenizerError, match=f"^{path}: {message}"):
        dataset(shards, path, bos_token=token)


# What cannot be


@pytest.mark.parametrize(
    ("tokenizer", "arguments", "message"),
    [
        (ByteTokenizer(), {"eos_token": "</s>"}, "eos_token='</s>' is for a tokenizer that is given by its path"),
        (None, {"eos_token": "</s>"}, "eos_token='</s>' is a token of a tokenizer, and there is none"),
        ("x", {"eos_token": 2}, "eos_token=2 must be a string"),
        ("x", {"pad_token": "<pad>", "pad_id": 0}, "pad_id=0 and pad_token='<pad>': give one of the two"),
    ],
)
def test_tokens_by_name_that_cannot_be(
    shards: list[str], tokenizer: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        dataset(shards, tokenizer, **arguments)


# Chat templates


def talk(shards: list[str], folder: Path, **arguments: Any) -> list[int]:
    """The tokens of the conversation."""
    made = dataset(shards, folder, field="json:messages", chat="tokenizer", epochs=1, **arguments)
    pack = next(iter(made))
    return pack["tokens"][pack["segment_ids"] > 0].tolist()


def test_the_chat_template_is_that_of_the_folder(folder: Path, shards: list[str]) -> None:
    write(folder, "tokenizer_config.json", {"bos_token": "</s>", "chat_template": GENERATION})
    text = HuggingFaceTokenizer(tokenizer_json()).encode("hiho").tolist()
    assert talk(shards, folder) == [1, *text]
    assert talk(shards, folder, bos_token="<s>") == [0, *text]
    write(folder, "chat_template.jinja", GENERATION.replace("bos_token", "eos_token"))  # comes first
    write(folder, "tokenizer_config.json", {"eos_token": "<|im_end|>", "chat_template": GENERATION})
    assert talk(shards, folder) == [3, *text]


def test_a_folder_without_a_template_and_no_folder_are_errors(folder: Path, shards: list[str]) -> None:
    with pytest.raises(ConfigError, match=f'{folder}: chat="tokenizer" takes .*neither its tokenizer_config.json nor'):
        talk(shards, folder)
    with pytest.raises(ConfigError, match='chat="tokenizer" takes the chat template of the tokenizer\'s folder: give'):
        talk(shards, folder / "tokenizer.json")

