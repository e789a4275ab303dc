"""Byte-level BPE models as content of a tokenizer.json: trained on the tests' prose, with patterns of known models."""

import functools
import json
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from support.sentencepieces import PROSE

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace("{1,3}", "")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def level(**changes: Any) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True, **changes}


def split(pattern: str, **changes: Any) -> dict[str, Any]:
    """Words by a pattern, as Llama 3 and those after it have them."""
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False, **changes}
    return {"type": "Sequence", "pretokenizers": [step, level(use_regex=False)]}


def added(token: int, content: str, **changes: Any) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": content, **flags, "special": True, **changes}


@functools.cache
def _trained() -> str:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(PROSE.splitlines(), trainer)
    return tokenizer.to_str()


def byte_level(
    pre_tokenizer: dict[str, Any] | None = None,
    tokens: list[dict[str, Any]] | None = None,
    normalizer: dict[str, Any] | None = None,
    **model: Any,
) -> dict[str, Any]:
    """A model of 600 tokens, with `<|endoftext|>` as a special token after them."""
    config: dict[str, Any] = json.loads(_trained())
    config["pre_tokenizer"] = pre_tokenizer or level()
    config["normalizer"] = normalizer
    config["added_tokens"] = [added(600, "<|endoftext|>")] if tokens is None else tokens
    config["model"] |= model
    return config


KNOWN = {
    "gpt2": byte_level(),
    "llama3": byte_level(split(LLAMA3), ignore_merges=True),
    "qwen": byte_level(split(QWEN), normalizer={"type": "NFC"}),
    "tekken": byte_level(split(TEKKEN), ignore_merges=True),
}
