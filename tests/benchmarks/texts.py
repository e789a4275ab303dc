"""Real or made-up text as slices of shards, for the benchmarks beside it.

In:  files of JSON lines, compressed with zstd, with a document under "text" in each line; or none.
Out: `Text`s: documents in slices of equal size, and shards of a slice in any format.
"""

import argparse
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import zstandard

from streampack.cli.bench.made_up import made_up_documents
from streampack.cli.bench.slices import Slice
from streampack.testing.shards import Source, write_shards


@dataclass(frozen=True, slots=True)
class Text:
    """Documents of one kind of text, in slices."""

    name: str
    slices: list[list[str]]

    @property
    def megabytes(self) -> float:
        return sum(len(text.encode()) for part in self.slices for text in part) / 1e6

    @property
    def mean_bytes(self) -> float:
        return statistics.mean(len(text.encode()) for part in self.slices for text in part)


def parser_of(description: str | None, *, megabytes: float) -> argparse.ArgumentParser:
    """One with the options of `chosen`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--text", default="", help="JSON lines, compressed with zstd; without it, made-up text")
    parser.add_argument("--megabytes", type=float, default=megabytes)
    return parser


def chosen(arguments: argparse.Namespace) -> Text:
    """What the options name, in one slice."""
    (text,) = load([arguments.text] if arguments.text else [], num_slices=1, megabytes=arguments.megabytes)
    return text


def load(paths: Sequence[str], *, num_slices: int, megabytes: float) -> list[Text]:
    """The first `megabytes` of each file, or of made-up text if there is no file, in slices of equal size."""
    if not paths:
        return [Text("made up", _cut(made_up_documents(int(megabytes * 1e6)), num_slices))]
    texts = []
    for path in paths:
        documents = _read(path, int(megabytes * 1e6))
        texts.append(Text(Path(path).name.split(".")[0], _cut(documents, num_slices)))
    return texts


def described(loaded: Sequence[Text]) -> list[dict[str, str | float]]:
    """Plain values for a file of results."""
    return [{"name": text.name, "megabytes": text.megabytes, "mean_bytes": text.mean_bytes} for text in loaded]


def _read(path: str, num_bytes: int) -> list[str]:
    documents: list[str] = []
    size = 0
    with Path(path).open("rb") as file:
        for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), "utf-8"):
            documents.append(json.loads(line)["text"])
            size += len(documents[-1].encode())
            if size >= num_bytes:
                break
    return documents


def _cut(documents: list[str], num_slices: int) -> list[list[str]]:
    # Dealt like cards: what lies together in a file is alike, and each slice shall be like the whole.
    slices = [documents[first::num_slices] for first in range(num_slices)]
    return [part for part in slices if part]


def shards(
    folder: Path,
    documents: Sequence[Source],
    *,
    field: str = "txt",
    compression: str | None = None,
    num_shards: int = 2,
) -> Slice:
    """The documents as shards in `folder`, which must not be there."""
    per_shard = -(-len(documents) // num_shards)
    paths = write_shards(
        folder,
        documents,
        field=field,
        documents_per_shard=per_shard,
        compression=compression,  # type: ignore[arg-type]  # one of those that it takes
    )
    return Slice(tuple(paths), sum(Path(path).stat().st_size for path in paths))


def mistral_model() -> str:
    """The path of Mistral's first 32k BPE model, out of the package mistral-common."""
    found = find_spec("mistral_common")
    if found is None or found.origin is None:
        raise SystemExit("no model: pip install mistral-common, or give --model PATH")
    return str(Path(found.origin).parent / "data" / "tokenizer.model.v1")


def tekken() -> str:
    """The path of a tekken.json of the package mistral-common: a byte-level BPE of 131,072 tokens."""
    return str(Path(mistral_model()).with_name("tekken_240911.json"))
