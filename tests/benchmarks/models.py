"""Tokenizers as other libraries are given them, loaded once in each process.

In:  a file of SentencePiece, or a folder with a tokenizer.json.
Out: the ids of a document: BOS + ids + EOS, where the tokenizer has them.
"""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers


class Model(ABC):
    """A tokenizer, loaded once in each process."""

    path: str
    begin: list[int]
    """BOS, if it has one."""
    end: list[int]

    @abstractmethod
    def ids(self, text: str) -> list[int]: ...

    def encode(self, text: str) -> list[int]:
        return [*self.begin, *self.ids(text), *self.end]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def encode_array(self, text: str) -> np.ndarray:
        return np.array(self.encode(text))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)


class SentencePieceModel(Model):
    """Of a file of SentencePiece."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.processor = sentencepiece.SentencePieceProcessor(model_file=path)
        self.begin, self.end = [self.processor.bos_id()], [self.processor.eos_id()]

    def ids(self, text: str) -> list[int]:
        return self.processor.encode(text)

    def encode_array(self, text: str) -> np.ndarray:
        return np.concatenate([self.begin, self.processor.encode(text, out_type="numpy"), self.end])


class ByteLevelModel(Model):
    """Of a folder with a tokenizer.json and a tokenizer_config.json, as published models have them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.tokenizer = tokenizers.Tokenizer.from_file(str(Path(path, "tokenizer.json")))
        self.tokenizer.encode_special_tokens = True  # the text of a special token is text
        config = json.loads(Path(path, "tokenizer_config.json").read_bytes())
        self.begin, self.end = (
            [self.tokenizer.token_to_id(config[key])] if key in config else [] for key in ("bos_token", "eos_token")
        )

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        encoded = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        return [[*self.begin, *each.ids, *self.end] for each in encoded]
