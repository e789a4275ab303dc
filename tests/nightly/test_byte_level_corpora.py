"""Byte-level BPE by gigatoken on whole corpora: every id is that of `tokenizers`.

`STREAMPACK_CORPORA`: files of JSON lines, compressed with zstd, with a document under "text" (separated by colons);
without it, made-up text. `STREAMPACK_TOKENIZERS`: files of tokenizers besides Mistral's, such as GPT-2's and Llama 3's
tokenizer.json.
"""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import zstandard
from support.byte_levels import QWEN, split

from streampack.cli.bench.made_up import made_up_documents
from streampack.tokenizers import HuggingFaceTokenizer
from streampack.tokenizers.engines import choose_engine
from streampack.tokenizers.gigatoken import FastByteLevel

_SPEC = find_spec("mistral_common")
assert _SPEC is not None
_TEKKEN = Path(next(iter(_SPEC.submodule_search_locations or ()))) / "data" / "tekken_240911.json"
CORPORA = [name for name in os.environ.get("STREAMPACK_CORPORA", "").split(":") if name] or ["made up"]
TOKENIZERS = [str(_TEKKEN), *filter(None, os.environ.get("STREAMPACK_TOKENIZERS", "").split(":"))]


def documents(corpus: str) -> list[str]:
    if corpus == "made up":
        return made_up_documents(1_000_000)
    with zstandard.open(corpus, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def load(path: str, *, as_qwen: bool) -> FastByteLevel:
    plain = HuggingFaceTokenizer(path)
    if as_qwen:
        config = plain.library_config()
        assert config is not None
        config |= {"pre_tokenizer": split(QWEN), "normalizer": {"type": "NFC"}}
        plain = HuggingFaceTokenizer(json.dumps(config).encode())
    found = choose_engine(plain, "gigatoken")
    assert isinstance(found, FastByteLevel)
    return found


@pytest.mark.parametrize("as_qwen", [False, True])
@pytest.mark.parametrize("path", TOKENIZERS)
def test_the_ids_of_whole_corpora_are_the_same(path: str, as_qwen: bool) -> None:
    tokenizer = load(path, as_qwen=as_qwen)
    for corpus in CORPORA:
        for text in documents(corpus):
            ids = tokenizer._encode(text, text.encode())
            assert ids.tolist() == tokenizer.plain.encode(text).tolist(), (corpus, text[:100])
