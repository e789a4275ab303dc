"""Blocks and windows against whole shards where each request to S3 waits: throughput and first batch.

    python tests/benchmarks/latency.py [--text english.jsonl.zst] [--wait-ms 50] [--pairs 3] [--megabytes 96]

One rank with 8 lanes and 2 workers reads plain tars from a SeaweedFS on the loopback, through a proxy in a process of
its own that waits before it answers. Each pair takes the same number of packs with `shuffle=True` and with "shards", by
the clock. Server and proxy take their share of the cores, of both alike: with a fast tokenizer that is what counts.
"""

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import texts

from streampack import PackedDataLoader, PackedDataset

sys.path.insert(0, str(Path(__file__).parent.parent))
from support import servers
from support.proxy import Fault, Proxy

MODEL = Path(__file__).parents[2] / "streampack" / "examples" / "data" / "devil.model"
LANES, SHARDS, BATCH, SEQ_LEN = 8, 16, 8, 4096


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", default="", help="JSON lines, compressed with zstd; without it, made-up text")
    parser.add_argument("--wait-ms", type=float, default=50)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=96)
    parser.add_argument("--engine", default="auto")
    arguments = parser.parse_args()
    (text,) = texts.load([arguments.text] if arguments.text else [], num_slices=1, megabytes=arguments.megabytes)
    with tempfile.TemporaryDirectory() as folder:
        shards = texts.shards(Path(folder), text.slices[0], field="txt", num_shards=SHARDS).shards
        urls = [servers.put_s3(f"latency/{Path(path).name}", Path(path).read_bytes()) for path in shards]
    server, (mine, theirs) = servers.s3(), multiprocessing.Pipe()
    proxy = multiprocessing.Process(target=wait, args=(theirs, server.url, arguments.wait_ms / 1000), daemon=True)
    proxy.start()
    storage = server.at(mine.recv())
    ratios = []
    for number in range(arguments.pairs):
        order: list[Any] = [True, "shards"] if number % 2 == 0 else ["shards", True]
        found = {shuffle: speed(urls, storage, shuffle, arguments) for shuffle in order}
        ratios.append(found[True][0] / found["shards"][0])
        for shuffle, (tokens, first) in sorted(found.items(), key=str):
            print(f"pair {number}: {shuffle!s:6} {tokens:,.0f} tokens a second, first batch after {first:.2f} s")
    print(f"blocks / shards: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    proxy.terminate()


def wait(pipe: Any, upstream: str, seconds: float) -> None:
    """The proxy's process."""
    proxy = Proxy(upstream=upstream)
    proxy.always = Fault("delay", seconds=seconds)
    pipe.send(proxy.url)
    time.sleep(24 * 3600)


def speed(urls: list[str], storage: dict[str, Any], shuffle: Any, arguments: Any) -> tuple[float, float]:
    """Tokens a second after the first batch, and seconds to the first batch."""
    dataset = PackedDataset(
        urls, str(MODEL), SEQ_LEN, num_lanes=LANES, shuffle=shuffle, storage=storage, engine=arguments.engine
    )
    batches = int(arguments.megabytes * 2**20 / 5 / SEQ_LEN / BATCH)
    with PackedDataLoader(dataset, batch_size=BATCH, num_workers=2) as loader:
        begin = time.perf_counter()
        iterator = iter(loader)
        next(iterator)
        first = time.perf_counter()
        for _ in range(batches):
            next(iterator)
        seconds = time.perf_counter() - first
    return batches * BATCH * SEQ_LEN / seconds, first - begin


if __name__ == "__main__":
    main()
