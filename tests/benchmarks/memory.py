"""A worker's memory over gigabytes of text: it must be flat after the first 200 MB.

    python tests/benchmarks/memory.py [corpus.jsonl.zst ...] [--megabytes 2000] [--json results.json]

In:  files of JSON lines (zstd) with "text", read again and again in other orders; without any, made-up text.
Out: megabytes that the worker has for itself at each tenth of the way, and the highest one before and after 200 MB.
"""

import argparse
import json
import multiprocessing
import tempfile
from pathlib import Path

import texts
from machine import machine_of
from support.workers import worker_pids

from streampack import PackedDataLoader, PackedDataset
from streampack.cli.bench.clocks import own_memory_mb

FIRST_MB = 200


def main() -> None:
    """Print the curve; write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="*")
    parser.add_argument("--model", help="a SentencePiece model; by default Mistral's")
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    machine = machine_of("streampack", "gigatoken", "sentencepiece", "numpy")
    loaded = texts.load(arguments.corpus, num_slices=1, megabytes=18)
    documents = [document for text in loaded for document in text.slices[0]]
    curve: list[tuple[float, float]] = []  # (MB of text so far, MB of the worker's own)
    with tempfile.TemporaryDirectory() as folder:
        shards = texts.shards(Path(folder, "shards"), documents, num_shards=8).shards
        dataset = PackedDataset(
            list(shards), arguments.model or texts.mistral_model(), 4096, num_lanes=12, engine=arguments.engine
        )
        bytes_a_token = sum(len(text.encode()) for text in documents) / count_tokens(dataset, documents)
        with PackedDataLoader(dataset, 8, num_workers=1) as loader:
            for batch in loader:
                if len(curve) * arguments.megabytes / 100 <= (done := loader.stats()["tokens"] * bytes_a_token / 1e6):
                    curve.append((done, max(own_memory_mb(pid) for pid in worker_pids(loader))))
                if done >= arguments.megabytes or batch is None:
                    break
    early = max(memory for done, memory in curve if done <= FIRST_MB)
    late = max(memory for _, memory in curve)
    for done, memory in curve[:: max(len(curve) // 10, 1)]:
        print(f"{done:8,.0f} MB of text   {memory:8.1f} MB of its own")
    print(f"at most {early:.1f} MB in the first {FIRST_MB} MB of text, {late:.1f} MB over {curve[-1][0]:,.0f} MB")
    if arguments.json:
        found = {"machine": machine, "curve": curve, "early_mb": early, "late_mb": late}
        arguments.json.write_text(json.dumps(found), "utf-8")


def count_tokens(dataset: PackedDataset, documents: list[str]) -> int:
    """How many tokens a part of the documents makes, scaled to all of them."""
    tokenizer = dataset.pipeline.tokenizer
    assert tokenizer is not None, "the dataset was given a model"
    some = documents[:: max(len(documents) // 200, 1)]
    share = sum(len(text.encode()) for text in some) / sum(len(text.encode()) for text in documents)
    return int(sum(len(tokenizer.encode(text)) + 2 for text in some) / share)


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    main()
