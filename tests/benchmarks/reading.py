"""What reading blocks costs: CPU from files to samples, `shuffle=True` against "shards", the same shards.

    python tests/benchmarks/reading.py [--rounds 12] [--megabytes 128]

For each kind of member: four shards, eight lanes, nothing tokenized. Each lane is read in both orders in turn. The
lowest time of each counts, so that what else the machine does is left out. Goal: at most 1.5.
"""

import argparse
import functools
import io
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from streampack import PackedDataset
from streampack.lanes.run import RunSource

NUM_SHARDS, NUM_LANES = 4, 8


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--megabytes", type=int, default=128)
    arguments = parser.parse_args()
    for kind, mean in (("txt", 5000), ("npy", 5000), ("txt", 1000)):
        with tempfile.TemporaryDirectory() as folder:
            paths = [str(Path(folder) / f"{index}.tar") for index in range(NUM_SHARDS)]
            for index, path in enumerate(paths):
                write(path, kind, mean, seed=index, num_bytes=arguments.megabytes * 10**6 // NUM_SHARDS)
            shards, blocks = lowest(paths, kind, arguments.rounds)
            name = f".{kind} of {mean:,} bytes"
            print(f"{name}: {blocks / shards:.2f} ({shards * 1e3:.0f} and {blocks * 1e3:.0f} ms)")


def write(path: str, kind: str, mean: int, *, seed: int, num_bytes: int) -> None:
    rng = np.random.default_rng(seed)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        while tar.offset < num_bytes:
            size = int(rng.exponential(mean)) + 10
            content = io.BytesIO()
            if kind == "npy":
                np.save(content, rng.integers(0, 30_000, size // 2).astype(np.uint16))
            else:
                content.write((b"lorem ipsum dolor " * (size // 18 + 1))[:size])
            info = tarfile.TarInfo(f"{tar.offset:012d}.{kind}")
            info.size = content.tell()
            content.seek(0)
            tar.addfile(info, content)


class NoTokenizer:
    """Stands where text needs a tokenizer."""

    bos_id = eos_id = pad_id = None
    vocab_size = 1
    digest = "none"

    def encode(self, _: str) -> np.ndarray[Any, Any]:
        return np.zeros(1, dtype=np.int32)


def lowest(paths: list[str], kind: str, rounds: int) -> tuple[float, float]:
    """CPU seconds of all lanes together, of each the lowest, in the order of shards and in that of blocks."""
    sources = [opened(paths, kind, order) for order in ("shards", True)]
    times = [[[read(source, lane) for source in sources] for lane in range(NUM_LANES)] for _ in range(rounds)]
    shards, blocks = np.array(times).min(axis=0).sum(axis=0).tolist()
    return shards, blocks


def opened(paths: list[str], kind: str, order: str | bool) -> RunSource:
    tokenizer = None if kind == "npy" else NoTokenizer()
    dataset = PackedDataset(
        paths, tokenizer, 512, field=kind, add_bos=False, add_eos=False, pad_id=0, num_lanes=NUM_LANES, shuffle=order
    )
    return dataset.run().sources[0]


def read(source: RunSource, lane: int) -> float:
    """CPU seconds of one lane."""
    corpus, pipeline = source.corpus, source.pipelines[0]
    shard = functools.lru_cache(16)(corpus.table.__getitem__)
    began = time.process_time()
    pieces = corpus.pieces(0, lane)
    step = corpus.window or 1
    for first in range(0, len(pieces), step):
        group = [(shard(piece.shard), piece, -1) for piece in pieces[first : first + step]]
        fetched = pipeline.fetch(group) if corpus.window else None
        for of, piece, resume in group:
            for _ in pipeline.samples(of, piece, resume=resume, max_range_bytes=2**23, fetched=fetched):
                pass
        if fetched is not None:
            fetched.close()
    return time.process_time() - began


if __name__ == "__main__":
    main()
