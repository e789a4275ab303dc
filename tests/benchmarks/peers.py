"""Streampack beside other libraries on the same documents: text to packs of 4096 with labels.

    pip install -e '.[fast,bench,peers]'
    python tests/benchmarks/peers.py [corpus.jsonl.zst ...] [--json results.json]

In:  files of JSON lines (zstd) with "text"; without any, made-up text.
Out: for each library whether its ids are right, tokens per CPU second as ratio to plain SentencePiece on the same
     documents (median, lowest to highest; a round is a slice of the corpus, all libraries in turn), the first
     batch, and the clock with 2 workers on everything.

Pre-tokenized formats are compared with streampack on .npy members. Making a pipeline is not timed but in "first batch".
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
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import texts
from pipelines import BATCH_SIZE, PEERS, SEQ_LEN, Batch, Model, Peer, Source

from streampack import PackedDataLoader, PackedDataset, Packing
from streampack.cli.bench.stopwatch import Spread, Variant, Work, cpu_ratio, interleave, read
from streampack.records import Tokenizer
from streampack.tokenizers.engines import choose_engine
from streampack.tokenizers.sentencepiece import SentencePieceTokenizer


def main() -> None:
    """Print a table; write the results."""
    arguments = parse()
    model = Model(arguments.model)
    plain = SentencePieceTokenizer(arguments.model)
    peers = [peer for peer in PEERS if is_there(peer)]
    results = []
    for text in texts.load(arguments.corpus, num_slices=arguments.rounds, megabytes=arguments.megabytes):
        with tempfile.TemporaryDirectory() as name, quiet():
            parts = [*text.slices, [document for part in text.slices for document in part]]
            sources = [write(Path(name, str(index)), part, model, peers) for index, part in enumerate(parts)]
            # One of them has made "spawn" the default, for which pipelines would have to be pickled.
            multiprocessing.set_start_method("fork", force=True)
            result = compare(sources, peers, model, plain, workers=arguments.workers)
        results.append({"text": text.name, "megabytes": text.megabytes, "mean_bytes": text.mean_bytes, "rows": result})
        show(results[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1), "utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="*")
    parser.add_argument("--model", default=None, help="a SentencePiece model; by default Mistral's")
    parser.add_argument("--megabytes", type=float, default=12, help="of each file")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2, help="for the clock; 0 leaves it out")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.model = arguments.model or texts.mistral_model()
    return arguments


def is_there(peer: Peer) -> bool:
    try:
        version(peer.version_of)
    except ModuleNotFoundError:
        print(f"{peer.name}: {peer.version_of} is not installed, left out", file=sys.stderr)
        return False
    return True


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


def compare(
    sources: list, peers: list[Peer], model: Model, plain: SentencePieceTokenizer, *, workers: int
) -> list[dict]:
    """A row for each way."""
    encode = model.processor.encode
    own, fast = choose_engine(plain, "sentencepiece"), choose_engine(plain, "auto")
    ways: dict[str, Callable[[int, int], Iterable[Batch]]] = {}  # (number of the source, workers) -> batches
    ways["streampack, sentencepiece"] = lambda number, w: ours(sources[number][1], own, w)
    if type(fast) is not type(own):
        ways["streampack, fast engine"] = lambda number, w: ours(sources[number][1], fast, w)
    for peer in peers:
        ways[peer.name] = lambda number, w, peer=peer: peer.batches(sources[number][0][peer.name], model, w)
    ways["streampack, .npy members"] = lambda number, w: ours(sources[number][2]["npy"], None, w)
    by_name = {peer.name: peer for peer in peers}
    rounds = len(sources) - 1
    right = {name: check(make(0, 0), sources[0][2]["ids"], by_name.get(name)) for name, make in ways.items()}

    def prepare_plain(number: int) -> Work:
        documents, ids = sources[number][2]["texts"], sources[number][2]["ids"]

        def work() -> int:
            for document in documents:
                encode(document)
            return sum(map(len, ids))

        return work

    def prepared(make: Callable[[int, int], Iterable[Batch]], number: int, w: int = 0) -> Work:
        batches = make(number, w)
        return lambda: sum(tokens.numel() for tokens, _ in batches)

    variants = [Variant("plain", prepare_plain)]
    variants += [Variant(name, lambda number, make=make: prepared(make, number)) for name, make in ways.items()]
    readings = interleave(variants, rounds)
    rows = []
    whole = read(prepare_plain(rounds)) if workers else None
    for name, make in ways.items():
        peer = by_name.get(name)
        row = {
            "name": name,
            "version": version(peer.version_of if peer else "streampack"),
            "pretokenized": peer.pretokenized if peer else ".npy" in name,
            "ids": right[name],
            "labels": peer.labels if peer else "shifted, masked",
            "ratio": asdict(cpu_ratio(readings[name], readings["plain"])),
            "first_batch_s": first_batch(lambda make=make: make(0, 0)),
        }
        if whole is not None:
            row["workers"] = workers
            row["clock_ratio"] = asdict(Spread.of([clock(make(rounds, workers)) / whole.per_wall_s for _ in range(2)]))
        rows.append(row)
    return rows


def ours(shards: list[str], tokenizer: Tokenizer | None, workers: int) -> Iterable[Batch]:
    special = tokenizer is not None  # the ids of .npy members have theirs
    dataset = PackedDataset(
        shards,
        tokenizer,
        SEQ_LEN,
        field="txt" if special else "npy",
        add_bos=special,
        add_eos=special,
        num_lanes=max(workers, 1),
        epochs=1,
        shuffle=False,
        packing=Packing("wrap", tail="drop"),
        engine="sentencepiece" if type(tokenizer) is SentencePieceTokenizer else "auto",
    )
    # Children of this process, as the other libraries' workers are: their CPU time counts.
    loader = PackedDataLoader(
        dataset, BATCH_SIZE, num_workers=workers, drop_last=False, multiprocessing_context="fork"
    )
    return ((batch["tokens"], batch["labels"]) for batch in loader)


def check(batches: Iterable[Batch], ids: list[np.ndarray], peer: Peer | None) -> str:
    """Whether the packs hold the documents' ids, in order."""
    # A pack without a target only makes up the number of the last batch.
    found = np.concatenate([tokens[(labels != -100).any(dim=1)].reshape(-1).numpy() for tokens, labels in batches])
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


def show(result: dict) -> None:
    print(f"{result['text']}: {result['megabytes']:.1f} MB, {result['mean_bytes']:,.0f} bytes a document")
    for row in result["rows"]:
        ratio, clock_ratio = row["ratio"], row.get("clock_ratio")
        print(
            f"  {row['name']:30} {row['version']:9} {ratio['median']:6.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
            + (f"   {row['workers']} workers {clock_ratio['median']:6.2f}" if clock_ratio else "")
            + f"   first batch {row['first_batch_s'] * 1e3:6.0f} ms   ids {row['ids']}"
        )


if __name__ == "__main__":
    main()
