"""Streampack beside other libraries on the same documents: text to packs of 4096 with labels.

    pip install -e '.[fast,bench,peers]'
    python tests/benchmarks/peers.py [corpus.jsonl.zst ...] [--tokenizer tokenizer.json] [--json results.json]

In:  files of JSON lines (zstd) with "text"; without any, made-up text. A SentencePiece model, by default Mistral's, and
     byte-level vocabularies as `vocabularies` reads them, by default the tekken.json of the package mistral-common.
Out: for each tokenizer, text and library whether its ids are right, tokens per CPU second and their ratio to the
     tokenizer's own library on the same documents (median, lowest to highest; a round is a slice of the corpus, all
     libraries in turn), the first batch, and the clock with 2 workers on everything.

Pre-tokenized formats are compared with streampack on .npy members. Making a pipeline is not timed but in "first batch".
torchtitan wants an older `datasets` than the others: `pip install --no-deps torchtitan==0.3.0`, and what it imports.
"""

import argparse
import contextlib
import io
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import texts
import vocabularies
from machine import machine_of
from models import ByteLevelModel, Model, SentencePieceModel
from pipelines import BATCH_SIZE, PEERS, SEQ_LEN, Batch, Peer, Source
from texts import Text
from vocabularies import Vocabulary

from streampack import PackedDataLoader, PackedDataset, Packing
from streampack.cli.bench.stopwatch import Spread, Variant, Work, cpu_ratio, interleave, read
from streampack.records import Tokenizer
from streampack.tokenizers.engines import choose_engine
from streampack.tokenizers.huggingface import HuggingFaceTokenizer
from streampack.tokenizers.sentencepiece import SentencePieceTokenizer

OWN_ENGINES = {SentencePieceTokenizer: "sentencepiece", HuggingFaceTokenizer: "tokenizers"}
"""By which a tokenizer without an engine stays without one."""


@dataclass(frozen=True)
class Tokenizing:
    """One tokenizer: for the peers, for streampack, and what its libraries do with it alone."""

    name: str
    model: Model
    engines: dict[str, Tokenizer]
    alone: dict[str, tuple[str, Callable[[str], Any]]]
    """Name -> package and `encode`; all are compared with the first one."""


def main() -> None:
    """Print a table; write the results."""
    arguments = parse()
    machine = machine_of("streampack", "gigatoken", "sentencepiece", "tokenizers", "tiktoken", "torch", "numpy")
    loaded = texts.load(arguments.corpus, num_slices=arguments.rounds, megabytes=arguments.megabytes)
    installed = [peer for peer in PEERS if is_there(peer)]
    found = []
    with tempfile.TemporaryDirectory() as top:
        given = [vocabularies.load(name) for name in arguments.tokenizer or [None]]
        ways = [of_sentencepiece(arguments.model or texts.mistral_model())]
        ways += [of_byte_level(vocabulary, Path(top, vocabulary.name)) for vocabulary in given]
        for way in ways:
            peers = [p for p in installed if isinstance(way.model, ByteLevelModel) or not p.needs_tokenizer_json]
            results = [measure(way, text, peers, workers=arguments.workers) for text in loaded]
            found.append({"tokenizer": way.name, "base": next(iter(way.alone)), "texts": results})
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "tokenizers": found}, indent=1), "utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="*")
    parser.add_argument("--model", default=None, help="a SentencePiece model; by default Mistral's")
    parser.add_argument("--tokenizer", action="append", help="of a byte-level BPE; may be given several times")
    parser.add_argument("--megabytes", type=float, default=12, help="of each file")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2, help="for the clock; 0 leaves it out")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def is_there(peer: Peer) -> bool:
    try:
        version(peer.version_of)
    except ModuleNotFoundError:
        print(f"{peer.name}: {peer.version_of} is not installed, left out", file=sys.stderr)
        return False
    return True


def of_sentencepiece(path: str) -> Tokenizing:
    model = SentencePieceModel(path)
    alone = {"SentencePieceProcessor.encode": ("sentencepiece", model.ids)}
    return Tokenizing("SentencePiece", model, engines(SentencePieceTokenizer(path), "sentencepiece"), alone)


def of_byte_level(vocabulary: Vocabulary, folder: Path) -> Tokenizing:
    """The folder is made."""
    plain = vocabulary.streampack()
    ids = {"bos_token": plain.bos_id, "eos_token": plain.eos_id}
    names = {key: vocabulary.library().id_to_token(number) for key, number in ids.items() if number is not None}
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(vocabulary.data)
    (folder / "tokenizer_config.json").write_text(json.dumps(names), "utf-8")
    model = ByteLevelModel(str(folder))
    alone: dict[str, tuple[str, Callable[[str], Any]]] = {"tokenizers, Tokenizer.encode": ("tokenizers", model.ids)}
    if (ranks := vocabulary.tiktoken()) is not None:
        alone["tiktoken, encode_ordinary"] = ("tiktoken", ranks.encode_ordinary)
    return Tokenizing(vocabulary.name, model, engines(plain, "tokenizers"), alone)


def engines(plain: Tokenizer, own: str) -> dict[str, Tokenizer]:
    """The library's own, and the fast one if there is one."""
    chosen = {f"streampack, {own}": choose_engine(plain, own)}
    fast = choose_engine(plain, "auto")
    return chosen if type(fast) is type(plain) else chosen | {"streampack, fast engine": fast}


def measure(way: Tokenizing, text: Text, peers: list[Peer], *, workers: int) -> dict[str, Any]:
    """The results of one text."""
    with tempfile.TemporaryDirectory() as name, quiet():
        parts = [*text.slices, [document for part in text.slices for document in part]]
        sources = [write(Path(name, str(index)), part, way.model, peers) for index, part in enumerate(parts)]
        # One of them has made "spawn" the default, for which pipelines would have to be pickled.
        multiprocessing.set_start_method("fork", force=True)
        rows = compare(sources, peers, way, workers=workers)
    result = {"text": text.name, "megabytes": text.megabytes, "mean_bytes": text.mean_bytes, "rows": rows}
    show(way.name, result)
    return result


@contextlib.contextmanager
def quiet() -> "Iterable[None]":
    """Without the progress bars, warnings and logs of others."""
    os.environ.update(HF_DATASETS_DISABLE_PROGRESS_BARS="1", TQDM_DISABLE="1", DISABLE_VERSION_CHECK="1")
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def write(folder: Path, documents: list[str], model: Model, peers: list[Peer]) -> tuple[Source, list[str], dict]:
    """The documents as tars, as .npy members, and in each library's format."""
    folder.mkdir()
    ids = [model.encode_array(text).astype(np.int32) for text in documents]
    shards = list(texts.shards(folder / "tar", documents).shards)
    tokens = list(texts.shards(folder / "npy", ids, field="npy").shards)
    own = {}
    for index, peer in enumerate(peers):
        place = folder / f"peer-{index}"
        place.mkdir()
        own[peer.name] = Source(place, shards, documents, ids)
        if peer.write is not None:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                peer.write(own[peer.name])
    return own, shards, {"npy": tokens, "ids": ids, "texts": documents}


def compare(sources: list, peers: list[Peer], way: Tokenizing, *, workers: int) -> list[dict]:
    """A row for each way to do it."""
    model = way.model
    ways: dict[str, Callable[[int, int], Iterable[Batch]]] = {}  # (number of the source, workers) -> batches
    for name, engine in way.engines.items():
        ways[name] = lambda number, w, engine=engine: ours(sources[number][1], engine, model, w)
    for peer in peers:
        ways[peer.name] = lambda number, w, peer=peer: peer.batches(sources[number][0][peer.name], model, w)
    ways["streampack, .npy members"] = lambda number, w: ours(sources[number][2]["npy"], None, model, w)
    by_name = {peer.name: peer for peer in peers}
    rounds = len(sources) - 1
    first = sources[0][2]
    for name, (_, encode) in way.alone.items():
        for document in first["texts"]:
            if list(encode(document)) != model.ids(document):
                raise SystemExit(f"{name}: other ids than the peers' tokenizer")
    right = {name: check(make(0, 0), first["ids"], by_name.get(name)) for name, make in ways.items()}

    def prepare_alone(encode: Callable[[str], Any], number: int) -> Work:
        documents, ids = sources[number][2]["texts"], sources[number][2]["ids"]

        def work() -> int:
            for document in documents:
                encode(document)
            return sum(map(len, ids))

        return work

    def prepared(make: Callable[[int, int], Iterable[Batch]], number: int, w: int = 0) -> Work:
        batches = make(number, w)
        return lambda: sum(tokens.numel() for tokens, _ in batches)

    variants = [Variant(name, partial(prepare_alone, encode)) for name, (_, encode) in way.alone.items()]
    variants += [Variant(name, partial(prepared, make)) for name, make in ways.items()]
    readings = interleave(variants, rounds)
    base = next(iter(way.alone))

    def row(name: str, package: str) -> dict[str, Any]:
        return {
            "name": name,
            "version": version(package),
            "ratio": asdict(cpu_ratio(readings[name], readings[base])),
            "mtok_per_s": asdict(Spread.of([reading.per_cpu_s / 1e6 for reading in readings[name]])),
        }

    rows = [
        row(name, package) | {"pretokenized": False, "ids": "equal", "labels": ""}
        for name, (package, _) in way.alone.items()
    ]
    whole = read(prepare_alone(way.alone[base][1], rounds)).per_wall_s if workers else None
    for name, make in ways.items():
        peer = by_name.get(name)
        rows.append(row(name, peer.version_of if peer else "streampack"))
        rows[-1] |= {
            "pretokenized": peer.pretokenized if peer else ".npy" in name,
            "ids": right[name],
            "labels": peer.labels if peer else "shifted, masked",
            "first_batch_s": first_batch(lambda make=make: make(0, 0)),
        }
        if whole is not None:
            speeds = [clock(make(rounds, workers)) for _ in range(2)]
            rows[-1]["workers"] = workers
            rows[-1]["clock_ratio"] = asdict(Spread.of([speed / whole for speed in speeds]))
            rows[-1]["clock_mtok_per_s"] = asdict(Spread.of([speed / 1e6 for speed in speeds]))
    return rows


def ours(shards: list[str], tokenizer: Tokenizer | None, model: Model, workers: int) -> Iterable[Batch]:
    special = tokenizer is not None  # the ids of .npy members have theirs
    dataset = PackedDataset(
        shards,
        tokenizer,
        SEQ_LEN,
        field="txt" if special else "npy",
        add_bos=special and bool(model.begin),
        add_eos=special and bool(model.end),
        num_lanes=max(workers, 1),
        epochs=1,
        shuffle=False,
        packing=Packing("wrap", tail="drop"),
        engine=OWN_ENGINES.get(type(tokenizer), "auto"),
    )
    # Children of this process, as the other libraries' workers are: their CPU time counts.
    loader = PackedDataLoader(dataset, BATCH_SIZE, num_workers=workers, drop_last=False, multiprocessing_context="fork")
    return ((batch["tokens"], batch["labels"]) for batch in loader)


def check(batches: Iterable[Batch], ids: list[np.ndarray], peer: Peer | None) -> str:
    """Whether the packs hold the documents' ids, in order."""
    # A pack without a target only makes up the number of the last batch.
    found = np.concatenate([tokens[(labels != -100).any(dim=1)].reshape(-1).numpy() for tokens, labels in batches])
    if peer and peer.leaves_out_last:
        ids = [part[:-1] for part in ids]
    step = (peer.documents_at_once if peer else None) or len(ids)
    groups = [np.concatenate(ids[first : first + step]) for first in range(0, len(ids), step)]
    expected = np.concatenate([group[: len(group) // SEQ_LEN * SEQ_LEN] for group in groups])
    size = min(len(found), len(expected))
    if not np.array_equal(found[:size], expected[:size]):
        return f"differ from token {int(np.argmax(found[:size] != expected[:size])):,} on"
    lost = sum(map(len, ids)) - len(found)
    if abs(len(found) - len(expected)) > SEQ_LEN:
        return f"{lost:,} of {sum(map(len, ids)):,} missing"
    if step < len(ids):
        return f"equal; drops the rest after every {step:,} documents"
    return "equal"


def first_batch(make: Callable[[], Iterable[Batch]]) -> float:
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        next(iter(make()))
        seconds.append(time.perf_counter() - begin)
    return median(seconds)


def clock(batches: Iterable[Batch]) -> float:
    """Tokens per second from the first batch on."""
    rest = iter(batches)
    next(rest)
    return read(lambda: sum(tokens.numel() for tokens, _ in rest)).per_wall_s


def show(tokenizer: str, result: dict) -> None:
    print(f"{tokenizer}, {result['text']}: {result['megabytes']:.1f} MB, {result['mean_bytes']:,.0f} bytes a document")
    for row in result["rows"]:
        ratio, clock_ratio = row["ratio"], row.get("clock_ratio")
        print(
            f"  {row['name']:30} {row['version']:9} {ratio['median']:6.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
            f" {row['mtok_per_s']['median']:7.2f} Mtok/s"
            + (f"   {row['workers']} workers {clock_ratio['median']:6.2f}" if clock_ratio else "")
            + (f"   first batch {row['first_batch_s'] * 1e3:6.0f} ms" if "first_batch_s" in row else "")
            + f"   ids {row['ids']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
