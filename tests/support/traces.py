"""A run of everything that a trace must follow, and what its documents are, by the standard library alone."""

import gzip
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece

from streampack import testing
from streampack.examples.make_data import DATA

MODEL = f"{DATA}/devil.model"


def write_run(folder: Path, *, packs: int = 300, more: str = "") -> Path:
    """A config: two sources, plain and compressed shards, bad records, windows, stages, a hold-out and a budget."""
    web = [f"web {n} " + "word and other words " * (n % 13) for n in range(400)]
    testing.write_shards(folder / "web", web[:300], documents_per_shard=60)
    testing.write_shards(folder / "web/more", web[300:], documents_per_shard=50, compression="gz", format="ustar")
    code: list[str | bytes] = [f"def f{n}(): return {n}\n" * (1 + n % 9) for n in range(300)]
    code[5::40], code[25::40] = [b"{no json"] * 8, [b'{"text": 5}'] * 7
    testing.write_shards(folder / "code", code, field="jsonl:text", documents_per_shard=75, documents_per_member=7)
    path = folder / "run.yaml"
    path.write_text(
        f"""
dataset:
  sources:
    web: {{data: ["{folder}/web/*.tar", "{folder}/web/more/*.tar.gz"]}}
    code: {{data: {folder}/code/, field: "jsonl:text"}}
  stages:
    - weights: {{web: 3, code: 1}}
    - {{at_packs: 90, seq_len: 96, packing: next_fit}}
    - {{at_packs: 170, weights: {{web: 1, code: 1}}, packing: best_fit}}
{more}
  tokenizer: {MODEL}
  seq_len: 64
  num_lanes: 12
  num_packs: {packs}
  hold_out: {{part: train, fraction: 0.1}}
  on_error: skip
""",
        "utf-8",
    )
    return path


def check_pack(tokens: Sequence[int], traced: Mapping[str, Any]) -> None:
    """The documents of a traced pack, looked up where it says, are the tokens of the batch's row."""
    assert traced["segments"], traced
    row = 0
    for segment in traced["segments"]:
        assert segment["first_row"] == row
        here = segment["byte_offset"] if segment["ordinal"] is None else segment["ordinal"]
        key, member = _samples(segment["url"].removeprefix("file://"))[here]
        assert key == segment["key"]
        text = member.decode()
        if segment["source"] == "code":
            lines = [line for line in text.split("\n") if line.strip()]
            text = json.loads(lines[segment["record"]])["text"]
        ids = [1, *_model().encode(text), 2]
        row += segment["num_rows"]
        document_rows = slice(segment["document_row"], segment["document_row"] + segment["num_rows"])
        assert list(tokens[segment["first_row"] : row]) == ids[document_rows], segment
    assert row == traced["num_tokens"]


@cache
def _model() -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=MODEL)


@cache
def _samples(path: str) -> dict[int, tuple[str, bytes]]:
    """(key, content) by byte offset of the first header; in a compressed shard by ordinal."""
    data = Path(path).read_bytes()
    is_plain = not path.endswith(".gz")
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data if is_plain else gzip.decompress(data))) as tar:
        for ordinal, member in enumerate(tar):
            file = tar.extractfile(member)
            assert file is not None
            found[member.offset if is_plain else ordinal] = member.name.split(".")[0], file.read()
    return found
