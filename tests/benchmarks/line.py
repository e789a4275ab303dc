"""The whole pipeline against plain SentencePiece on the same documents, and what a run gets by the clock: the goals.

    python tests/benchmarks/line.py [corpus.jsonl.zst ...] [--json results.json]

In:  files of JSON lines (zstd) with "text"; without any, made-up text. The model is Mistral's 32k BPE, or `--model`.
Out: a row per goal: median (lowest to highest) of the ratio, a round being a slice of the corpus, all variants in turn.

"plain" is `SentencePieceProcessor.encode(text)` for each document, the texts lying in memory, to lists as everyone
calls it. The pipeline reads shards and gives batches of 8 packs of 4096. Ratios are of tokens per second of CPU
time; those with workers are by the clock, from the first batch on, and mean something on an idle machine only.
"""

import argparse
import io
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import texts
from machine import machine_of
from texts import Text

from streampack import PackedDataset
from streampack.cli.bench import clocks
from streampack.cli.bench.checks import check_ids
from streampack.cli.bench.measuring import make_finite
from streampack.cli.bench.slices import Slice
from streampack.cli.bench.stages import whole_pipeline
from streampack.cli.bench.stopwatch import Reading, Spread, Variant, Work, cpu_ratio, interleave, read
from streampack.records import Tokenizer
from streampack.tokenizers.engines import choose_engine
from streampack.tokenizers.sentencepiece import SentencePieceTokenizer

TOKENS_PER_DOCUMENT = 1000
"""Of the pre-tokenized documents, about."""
UNIGRAM_VOCABULARY = 8000


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    value: Spread
    unit: str
    goal: str
    mtok_per_s: Spread | None = None
    """Of CPU time, or of the clock where the row is by the clock; None: what the row says is no speed."""


def main() -> None:
    """Print a table; write the results."""
    arguments = parse()
    machine = machine_of("streampack", "gigatoken", "sentencepiece", "torch", "numpy")
    model = Path(arguments.model or texts.mistral_model()).read_bytes()
    loaded = texts.load(arguments.corpus, num_slices=arguments.rounds, megabytes=arguments.megabytes)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for text in loaded:
            rows += text_rows(folder / text.name.replace(" ", "-"), text, model)
        rows += unigram_rows(folder / "unigram", loaded[0])
        rows += token_rows(folder / "npy", loaded, model, multiple=arguments.multiple)
        rows += clock_rows(folder / "clock", loaded[0], model, rounds=min(arguments.rounds, 3))
    for row in rows:
        value = f"{row.value.median:8.3f} ({row.value.low:.3f} to {row.value.high:.3f})"
        speed = f"{row.mtok_per_s.median:6.2f} Mtok/s" if row.mtok_per_s else ""
        print(f"{row.what:62} {value} {row.unit:12} {speed:13} {row.goal}")
    if arguments.json:
        found = {"machine": machine, "texts": texts.described(loaded), "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(found, indent=1), "utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="*")
    parser.add_argument("--model", help="a SentencePiece BPE model; by default Mistral's")
    parser.add_argument("--megabytes", type=float, default=18, help="of each file")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--multiple", type=int, default=4, help="how often the tokens are repeated for .npy members")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def make(shards: Sequence[str], *, tokenizer: Tokenizer | None, **given: Any) -> PackedDataset:
    """The dataset that is measured; the tokenizer is the engine."""
    bare = {"field": "npy", "add_bos": False, "add_eos": False} if tokenizer is None else {}
    return make_finite({"seq_len": 4096} | bare, shards, tokenizer=tokenizer, **given)


def engines(plain: SentencePieceTokenizer) -> dict[str, Tokenizer]:
    fast, own = choose_engine(plain, "auto"), choose_engine(plain, "sentencepiece")
    return {"sentencepiece": own} if type(fast) is type(own) else {"fast engine": fast, "sentencepiece": own}


def plain_work(model: bytes, slices: list[list[str]]) -> Callable[[int], Work]:
    """`encode` as everyone calls it; the units are the pipeline's tokens: with BOS and EOS."""
    encode = sentencepiece.SentencePieceProcessor(model_proto=model).encode

    def prepare(number: int) -> Work:
        documents = slices[number]

        def work() -> int:
            count = 0
            for document in documents:
                count += len(encode(document)) + 2
            return count

        return work

    return prepare


def pipelines(slices: list[Slice], tokenizer: Tokenizer | None) -> Callable[[int], Work]:
    return lambda number: whole_pipeline(make(slices[number].shards, tokenizer=tokenizer, num_lanes=1))


def text_rows(folder: Path, text: Text, model: bytes) -> list[Row]:
    """Both engines on tar, the fast one on tar.zst."""
    plain = SentencePieceTokenizer(model)
    tars = [texts.shards(folder / f"tar{i}", part) for i, part in enumerate(text.slices)]
    zsts = [texts.shards(folder / f"zst{i}", part, compression="zst") for i, part in enumerate(text.slices)]
    variants = [Variant("plain", plain_work(model, text.slices))]
    for name, tokenizer in engines(plain).items():
        for kind, slices in (("tar", tars), ("tar.zst", zsts)):
            if kind == "tar" or name != "sentencepiece":
                check_ids(make, slices[0], tokenizer, plain)
                variants.append(Variant(f"{text.name}, .{kind}, {name}", pipelines(slices, tokenizer)))
    readings = interleave(variants, len(text.slices))
    goal = {"english": "5", "code": "4.2", "multilingual": "5"}.get(text.name, "")
    rows = [cpu_row(f"{text.name}, plain SentencePiece", readings["plain"], readings["plain"], "")]
    for variant in variants[1:]:
        own_goal = "0.97" if variant.name.endswith("sentencepiece") else goal
        rows.append(cpu_row(variant.name, readings[variant.name], readings["plain"], own_goal))
    return rows


def cpu_row(what: str, found: list[Reading], base: list[Reading], goal: str) -> Row:
    """By CPU time."""
    speed = Spread.of([reading.per_cpu_s / 1e6 for reading in found])
    return Row(what, cpu_ratio(found, base), "x plain", goal, speed)


def unigram_rows(folder: Path, text: Text) -> list[Row]:
    """A unigram model, trained here on a part of the text; no engine but SentencePiece is exact for it."""
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for document in text.slices[0] for line in document.splitlines() if line),
        model_writer=writer,
        model_type="unigram",
        vocab_size=UNIGRAM_VOCABULARY,
        byte_fallback=True,
        hard_vocab_limit=False,
        num_threads=2,
        minloglevel=2,
    )
    model = writer.getvalue()
    plain = SentencePieceTokenizer(model)
    slices = [texts.shards(folder / str(i), part) for i, part in enumerate(text.slices)]
    check_ids(make, slices[0], plain, plain)
    name = f"{text.name}, .tar, unigram, sentencepiece"
    variants = [Variant("plain", plain_work(model, text.slices)), Variant(name, pipelines(slices, plain))]
    readings = interleave(variants, len(slices))
    base = cpu_row(f"{text.name}, plain SentencePiece, unigram", readings["plain"], readings["plain"], "")
    return [base, cpu_row(name, readings[name], readings["plain"], "0.92")]


def token_rows(folder: Path, loaded: list[Text], model: bytes, *, multiple: int) -> list[Row]:
    """Documents that are tokens already: in this process by CPU time, on two workers by the clock."""
    plain = SentencePieceTokenizer(model)
    rng = np.random.default_rng(0)
    num_rounds = min(len(text.slices) for text in loaded)
    rounds: list[Slice] = []
    originals: list[list[str]] = []
    for number in range(num_rounds):
        originals.append([document for text in loaded for document in text.slices[number]])
        joined = np.tile(np.concatenate([plain.encode(document) for document in originals[-1]]), multiple)
        cuts = np.cumsum(rng.integers(TOKENS_PER_DOCUMENT // 2, TOKENS_PER_DOCUMENT * 3 // 2, size=len(joined)))
        parts = np.split(joined.astype(np.int32), cuts[cuts < len(joined)])
        rounds.append(texts.shards(folder / str(number), parts, field="npy"))
    check_ids(make, rounds[0], None, None)
    name = ".npy, about 1,000 tokens a document, 0 workers"
    variants = [Variant("plain", plain_work(model, originals)), Variant(name, pipelines(rounds, None))]
    readings = interleave(variants, num_rounds)
    whole = [path for part in rounds for path in part.shards]
    clock: list[float] = []
    speeds: list[float] = []
    main_ms: list[float] = []
    for number in range(min(num_rounds, 3)):
        base = read(plain_work(model, originals)(number))
        found = clocks.scale(lambda: make(whole, tokenizer=None, num_lanes=12), [2], 1)[0]
        clock.append(found.tokens_per_s.median / base.per_wall_s)
        speeds.append(found.tokens_per_s.median / 1e6)
        main_ms.append(found.main_ms.median)
    return [
        cpu_row(name, readings[name], readings["plain"], "40"),
        Row("the same, 2 workers, by the clock", Spread.of(clock), "x plain", "25", Spread.of(speeds)),
        Row("CPU time of the main process for a batch from 2 workers", Spread.of(main_ms), "ms", "below 0.5"),
    ]


def clock_rows(folder: Path, text: Text, model: bytes, *, rounds: int) -> list[Row]:
    """Workers, the first batch and resume, on all of one text."""
    plain = SentencePieceTokenizer(model)
    documents = [document for part in text.slices for document in part]
    shards = texts.shards(folder, documents, num_shards=8).shards
    rows: list[Row] = []
    for name, tokenizer in engines(plain).items():
        whole = partial(make, shards, tokenizer=tokenizer, num_lanes=12)
        for found in clocks.scale(whole, [0, 1, 2, 4], rounds):
            goal = "1.8" if name == "sentencepiece" and found.workers == 2 else ""
            if found.workers:
                speed = Spread(*(each / 1e6 for each in asdict(found.tokens_per_s).values()))
                rows.append(
                    Row(f"{found.workers} workers, {name}, by the clock", found.ratio, "x 0 workers", goal, speed)
                )
                own = Spread(found.own_mb, found.own_mb, found.own_mb)
                rows.append(Row(f"memory of its own of one of {found.workers} workers, {name}", own, "MB", ""))
        for workers in (0, 2):
            seconds = clocks.first_batch(whole, workers, rounds)
            rows.append(Row(f"first batch, {workers} workers, {name}", in_ms(seconds), "ms", ""))
        for resumed in clocks.resume(whole, (0, 10, 90), rounds):
            what = f"resume at {resumed.percent} % of an epoch" if resumed.percent else "fresh start"
            rows.append(Row(f"{what}, {name}", in_ms(resumed.seconds), "ms", ""))
    return rows


def in_ms(seconds: Spread) -> Spread:
    return Spread(seconds.low * 1e3, seconds.median * 1e3, seconds.high * 1e3)


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    main()
