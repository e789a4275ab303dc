"""The whole pipeline with a byte-level BPE, beside `tokenizers` and tiktoken on the same documents: the goals.

    python tests/benchmarks/byte_level.py [corpus.jsonl.zst ...] [--tokenizer tokenizer.json ...] [--json results.json]

In:  files of JSON lines (zstd) with "text"; without any, made-up text. Tokenizers as `vocabularies` reads them; by
     default the tekken.json of the package mistral-common.
Out: for each tokenizer, text and way the ratio to `tokenizers.Tokenizer.encode` of each document, the texts lying in
     memory, and millions of tokens per second of CPU time: median (lowest to highest). A round is a slice of the
     corpus, which no cache has seen. With workers by the clock, from the first batch on, which means something on an
     idle machine only.
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
import vocabularies
from machine import machine_of
from texts import Text
from vocabularies import Vocabulary

from streampack.cli.bench import clocks
from streampack.cli.bench.checks import check_ids
from streampack.cli.bench.measuring import make_finite
from streampack.cli.bench.slices import Slice
from streampack.cli.bench.stages import MakeDataset, whole_pipeline
from streampack.cli.bench.stopwatch import Spread, Variant, Work, cpu_ratio, interleave
from streampack.records import Tokenizer
from streampack.tokenizers.engines import choose_engine

GOALS = {"english": "15", "code": "20", "multilingual": "10"}


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
    parser.add_argument("--tokenizer", action="append", help="a file or a folder; may be given several times")
    parser.add_argument("--megabytes", type=float, default=18, help="of each file")
    parser.add_argument("--rounds", type=int, default=6, help="the first one is not counted")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    machine = machine_of("streampack", "gigatoken", "tokenizers", "tiktoken", "numpy")
    loaded = texts.load(arguments.corpus, num_slices=arguments.rounds, megabytes=arguments.megabytes)
    found = []
    for vocabulary in map(vocabularies.load, arguments.tokenizer or [None]):
        with tempfile.TemporaryDirectory() as folder:
            rows = [row for text in loaded for row in text_rows(Path(folder, text.name), text, vocabulary)]
        found.append({"tokenizer": vocabulary.name, "rows": [asdict(row) for row in rows]})
        print(f"{vocabulary.name}:")
        for row in rows:
            ratio, speed = row.ratio, row.mtok_per_s
            print(
                f"{row.text:14}{row.what:44}{ratio.median:6.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
                f"{speed.median:8.2f} ({speed.low:.2f} to {speed.high:.2f}) Mtok/s   {row.goal}"
            )
    if arguments.json:
        described = texts.described(loaded)
        arguments.json.write_text(json.dumps({"machine": machine, "texts": described, "tokenizers": found}, indent=1))


def text_rows(folder: Path, text: Text, vocabulary: Vocabulary) -> list[Row]:
    """Every way to get the ids of one text, and the engine's by the clock with workers."""
    plain = vocabulary.streampack()
    engines = {name: choose_engine(plain, name) for name in ("auto", "tokenizers")}
    slices = [texts.shards(folder / str(number), part) for number, part in enumerate(text.slices)]
    make = partial(make_finite, {"seq_len": 4096, "add_bos": False, "add_eos": False})
    for tokenizer in engines.values():
        check_ids(make, slices[0], tokenizer, plain)
    encode = vocabulary.library().encode

    def tokenizers_encode(document: str) -> Any:
        return encode(document, add_special_tokens=False).ids

    variants = [Variant("tokenizers, Tokenizer.encode", alone(text, tokenizers_encode))]
    if (ranks := vocabulary.tiktoken()) is not None:
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


def in_batches(make: MakeDataset, slices: list[Slice], tokenizer: Tokenizer) -> Callable[[int], Work]:
    """The whole pipeline."""
    return lambda number: whole_pipeline(make(slices[number].shards, tokenizer=tokenizer, num_lanes=1))


def alone(text: Text, encode: Callable[[str], Any]) -> Callable[[int], Work]:
    """`encode` of each document."""

    def prepare(number: int) -> Work:
        documents = text.slices[number]
        return lambda: sum(len(encode(document)) for document in documents)

    return prepare


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    main()
