"""Files of a tokenizer or a chat template that cannot be: the error is about them, and says which file to give."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from support.chats import ChatBytes

import streampack
from streampack.errors import ConfigError, TokenizerError
from streampack.tokenizers import HuggingFaceTokenizer, SentencePieceTokenizer

DATA = files("streampack") / "examples" / "data"


def dataset(tokenizer: Any, **arguments: Any) -> streampack.PackedDataset:
    return streampack.PackedDataset(f"{DATA}/*.tar*", tokenizer, 64, **arguments)


def said(tokenizer: Any) -> str:
    with pytest.raises(TokenizerError) as raised:
        dataset(tokenizer)
    message = str(raised.value)
    assert "shard" not in message
    return message


@pytest.mark.parametrize("name", ["missing/tokenizer.json", "file:///missing/t.model", "a/b/c"])
def test_a_path_that_is_not_there(name: str) -> None:
    assert said(name).startswith(f"{name}: no such tokenizer: give the path or URL of a SentencePiece model")


@pytest.mark.parametrize(
    ("name", "of_hub"),
    [
        ("gpt2", "gpt2"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("mistralai/Mistral-Nemo/tekken.json", "mistralai/Mistral-Nemo"),
        ("huggingface.co/Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("hf.co/Qwen/Qwen3-8B/tree/main", "Qwen/Qwen3-8B"),
        ("models--Qwen--Qwen3-8B", "Qwen/Qwen3-8B"),
        ("hf://meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("HF://mistralai/Mistral-Nemo/tekken.json", "mistralai/Mistral-Nemo"),
        ("hf://gpt2/tokenizer.json", "gpt2"),
        ("hf://models/Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("hf://", "NAME"),
        ("https://huggingface.co", "NAME"),
        ("https://huggingface.co/Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("https://hf.co/Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("https://huggingface.co/gpt2/blob/main/tokenizer.json", "gpt2"),
    ],
)
@pytest.mark.parametrize("kind", [dataset, HuggingFaceTokenizer, SentencePieceTokenizer])
def test_a_name_of_the_hub_is_answered_with_what_to_download(name: str, of_hub: str, kind: Any) -> None:
    with pytest.raises(TokenizerError) as raised:
        kind(name)
    files = '"tokenizer*" tekken.json special_tokens_map.json chat_template.jinja'
    assert f"`hf download {of_hub} {files} --local-dir DIR`" in str(raised.value)
    assert str(raised.value).endswith("give the folder, tokenizer=DIR")


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        ("Qwen/Qwen3-8B@main", ""),
        ("Qwen/Qwen3-8B@v1", "--revision v1 "),
        ("hf://Qwen/Qwen3-8B@refs/pr/1/tokenizer.json", "--revision refs/pr/1 "),
        ("https://huggingface.co/Qwen/Qwen3-8B/tree/abc", "--revision abc "),
    ],
)
def test_a_revision_is_kept(name: str, revision: str) -> None:
    message = said(name)
    assert "`hf download Qwen/Qwen3-8B " in message
    assert f"chat_template.jinja {revision}--local-dir DIR`" in message


@pytest.mark.parametrize("name", ["cl100k_base", "o200k_harmony", "p50k_edit"])
def test_an_encoding_of_tiktoken_is_no_name_of_the_hub(name: str) -> None:
    assert said(name).startswith(f"{name}: no such tokenizer: encodings of tiktoken are not known by name")
    assert "hf download" not in said(name)


@pytest.mark.parametrize("text", ["", "a\nb", '{"model": {"type": "BPE"}}', "x" * 5000])
def test_a_text_that_is_no_path(text: str) -> None:
    assert said(text).startswith("tokenizer='")
    assert "give the path or URL" in said(text)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "Git LFS pointer.*git lfs pull"),
        (b"IQ== 0\nIg== 1\n", "a tiktoken rank file.* lacks the pattern .* give the tokenizer.json"),
    ],
)
def test_a_file_of_another_kind_is_named_for_what_it_is(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=f"{path}: not a SentencePiece model, .*tekken.json: .*{found}"):
        dataset(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "the chat template cannot be read: there is no such file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "a Git LFS pointer and not the file"),
        (b"always the same", "not a Jinja template, but a text without {{ }} and {% %}"),
    ],
)
def test_a_chat_template_that_cannot_be_is_named(tmp_path: Path, content: bytes | None, found: str) -> None:
    path = tmp_path / "chat_template.jinja"
    if content is not None:
        path.write_bytes(content)
    chat = streampack.Chat(str(path), train_on="all")
    with pytest.raises(ConfigError) as raised:
        dataset(ChatBytes(), field="json:messages", chat=chat)
    assert str(raised.value).startswith(f"{path}: ")
    assert found in str(raised.value)


def test_a_tokenizer_of_a_path_says_the_same(tmp_path: Path) -> None:
    for kind in (SentencePieceTokenizer, HuggingFaceTokenizer):
        with pytest.raises(TokenizerError, match=f"{tmp_path}: a folder, and not a file of a tokenizer: give the path"):
            kind(tmp_path)
    (tmp_path / "my.model").write_bytes(b"")
    with pytest.raises(TokenizerError, match="give the file in it, '.*/my.model'"):
        SentencePieceTokenizer(tmp_path)
