"""What a start asks of a bucket: the first batch of one rank of a large job, and a node whose bucket refuses requests.

    python tests/benchmarks/scale/first_batch.py rank [--lanes 61440 --ranks 4096 --workers 4 --wait-ms 50 --unpaced]
    python tests/benchmarks/scale/first_batch.py node [--processes 64 --rate 400 --requests 40 --alone]

The bucket is a server in a process of its own on the loopback, which waits before each answer. `rank`: 100,000 shards
of 1 GB of token ids from a manifest, the loader of one rank with `dp_rank` and `dp_size`; seconds from the loader's
construction to the first batch, and requests until then. `node`: processes begin at one moment and read shards; above
so many requests a second the bucket answers 503; `--alone`: each process is slowed by its own refusals only. Out: one
line of JSON for each try.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import re
import socketserver
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from streampack import PackedDataLoader, PackedDataset, RetryPolicy, Storage
from streampack.storage import pacing
from streampack.storage.access import StorageReader

sys.path.insert(0, str(Path(__file__).parents[2]))
from support.tars import entry

SHARD_BYTES, SEQ_LEN = 10**9, 8192


class Bucket(socketserver.ThreadingTCPServer):
    """Any number of objects of one size, whose bytes are a body again and again; counts its answers."""

    allow_reuse_address = daemon_threads = True
    request_queue_size = 1024

    def __init__(self, body: bytes, wait_s: float, rate: float) -> None:
        """`rate`: answers a second, the others are refused; 0: all are answered."""
        super().__init__(("127.0.0.1", 0), _Connection)
        self.body, self.wait_s, self.rate = memoryview(body * 2), wait_s, rate
        self.size = SHARD_BYTES // len(body) * len(body) + 1024
        self.lock = threading.Lock()
        self.tokens, self.at = rate / 10, time.monotonic()
        self.counts = {"answered": 0, "refused": 0}

    def refuses(self) -> bool:
        """Whether this request is one too many: a bucket of tokens for a tenth of a second."""
        with self.lock:
            now = time.monotonic()
            self.tokens, self.at = min(self.tokens + (now - self.at) * self.rate, self.rate / 10), now
            is_refused = self.rate > 0 and self.tokens < 1
            self.tokens -= not is_refused
            self.counts["refused" if is_refused else "answered"] += 1
            return is_refused

    def parts(self, start: int, stop: int) -> Iterator[memoryview | bytes]:
        end, period = self.size - 1024, len(self.body) // 2
        while start < min(stop, end):
            length = min(period, min(stop, end) - start)
            yield self.body[start % period : start % period + length]
            start += length
        if start < stop:
            yield bytes(stop - start)


class _Connection(socketserver.BaseRequestHandler):
    server: Bucket

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while self._answer():
                pass

    def _answer(self) -> bool:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (came := self.request.recv(65536)):
                return False
            head += came
        if head.startswith(b"GET /counts"):
            self._send("200 OK", [json.dumps(self.server.counts).encode()])
            return True
        time.sleep(self.server.wait_s)
        if self.server.refuses():
            self._send("503 Slow Down", [b"<Error><Code>SlowDown</Code></Error>"])
            return True
        asked = re.search(rb"(?i)range: bytes=(\d+)-(\d+)", head)
        assert asked is not None, head
        start, stop = int(asked[1]), min(int(asked[2]) + 1, self.server.size)
        where = f"Content-Range: bytes {start}-{stop - 1}/{self.server.size}\r\n"
        self._send("206 Partial Content", list(self.server.parts(start, stop)), f'{where}ETag: "v1"\r\n')
        return True

    def _send(self, status: str, parts: list[Any], more: str = "") -> None:
        length = sum(map(len, parts))
        self.request.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{more}\r\n".encode())
        for part in parts:
            self.request.sendall(part)


def _serve(pipe: Any, wait_s: float, rate: float) -> None:
    server = Bucket(_body(), wait_s, rate)
    pipe.send((server.server_address[1], server.size))
    server.serve_forever()


@contextlib.contextmanager
def bucket(wait_s: float, rate: float = 0) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Its address, the bytes of each object, and the options that reach it."""
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(theirs, wait_s, rate), daemon=True)
    process.start()
    port, size = mine.recv()
    url = f"http://127.0.0.1:{port}"
    options = {"endpoint_url": url, "key": "k", "secret": "s", "client_kwargs": {"region_name": "us-east-1"}}
    try:
        yield url, size, options
    finally:
        process.kill()


def counts(url: str) -> dict[str, int]:
    import urllib.request

    with urllib.request.urlopen(f"{url}/counts", timeout=10) as answer:
        return dict(json.load(answer))


def _body() -> bytes:
    """Whole samples of about 2 KB: 4 MB, without the end of the archive."""
    rng = np.random.default_rng(0)
    entries = []
    for number in range(2000):
        file = io.BytesIO()
        np.save(file, rng.integers(3, 32000, int(rng.integers(100, 1800)), dtype=np.uint16))
        entries.append(entry(f"{number:07}.npy", file.getvalue()))
    return b"".join(entries)


def rank(arguments: argparse.Namespace) -> dict[str, float]:
    """The first batch of one rank."""
    with bucket(arguments.wait_ms / 1000) as (url, size, options), tempfile.TemporaryDirectory() as folder:
        lines = (
            json.dumps({"url": f"s3://bucket/{number % 50:02}/{number:06}.tar", "size": size, "etag": '"v1"'}) + "\n"
            for number in range(arguments.shards)
        )
        manifest = Path(folder, "manifest.jsonl")
        manifest.write_text("".join(lines))
        began = time.perf_counter()
        dataset = PackedDataset(
            f"@{manifest}",
            None,
            SEQ_LEN,
            field="npy",
            add_bos=False,
            add_eos=False,
            num_lanes=arguments.lanes,
            storage=Storage(options=options, retry=RetryPolicy.immediate() if arguments.unpaced else RetryPolicy()),
        )
        made = time.perf_counter()
        with PackedDataLoader(
            dataset, 1, num_workers=arguments.workers, dp_rank=arguments.ranks // 3, dp_size=arguments.ranks
        ) as loader:
            next(iter(loader))
            first = time.perf_counter()
            return {"dataset_s": made - began, "first_batch_s": first - made, **counts(url)}


def node(arguments: argparse.Namespace) -> dict[str, float]:
    """All processes of a node."""
    with bucket(arguments.wait_ms / 1000, arguments.rate) as (url, size, _):
        context = multiprocessing.get_context("fork")
        begin = context.Barrier(arguments.processes + 1)
        processes = [
            context.Process(target=_read, args=(begin, f"{url}/{number}.tar", size, arguments))
            for number in range(arguments.processes)
        ]
        for process in processes:
            process.start()
        begin.wait()
        began = time.perf_counter()
        for process in processes:
            process.join()
        return {"seconds": time.perf_counter() - began, **counts(url)}


def _read(begin: Any, url: str, size: int, arguments: argparse.Namespace) -> None:
    if arguments.alone:
        _alone()
    storage = StorageReader()
    begin.wait()
    ahead = 4
    stretches: list[Any] = []
    for index in range(arguments.requests):
        start = index * 2**16
        stretches.append(storage.stretch(url, start, start + 2**16, size=size, etag='"v1"'))
        if len(stretches) > ahead:
            assert len(stretches.pop(0).held()) == 2**16
    for stretch in stretches:
        assert len(stretch.held()) == 2**16


def _alone() -> None:
    """Let this process share nothing with the others of its node."""
    pacing.Pace.of = classmethod(lambda cls, _: cls(memoryview(bytearray(64))))  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rank", "node"])
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--lanes", type=int, default=61_440)
    parser.add_argument("--ranks", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--wait-ms", type=float, default=50)
    parser.add_argument("--processes", type=int, default=64)
    parser.add_argument("--rate", type=float, default=400, help="requests a second that the bucket answers")
    parser.add_argument("--requests", type=int, default=40, help="of each process")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--unpaced", action="store_true", help="no pause before the first request, to compare")
    parser.add_argument("--tries", type=int, default=3)
    arguments = parser.parse_args()
    for _ in range(arguments.tries):
        found = rank(arguments) if arguments.what == "rank" else node(arguments)
        print(json.dumps({name: round(value, 2) for name, value in found.items()}), flush=True)


if __name__ == "__main__":
    main()
