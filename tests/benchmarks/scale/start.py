"""What the shard list of a start costs: by a manifest, and by braces on an S3 that answers after a latency.

    python tests/benchmarks/scale/start.py [SHARDS LATENCY_MS ONE_BY_ONE]    100000 50 2000 unless given

Out: a line of JSON for each step: its seconds, and what else there is to know of it. Braces are looked up in pages of a
     listing, and, for ONE_BY_ONE of the shards, as where folders may not be listed: one request each. The server is
     another process of this machine.
"""

import importlib
import json
import multiprocessing
import resource
import sys
import tempfile
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from streampack import PackedDataLoader, PackedDataset, Storage
from streampack.corpus.resolve import resolve_shards
from streampack.corpus.table import ShardTable
from streampack.storage.access import StorageReader
from streampack.testing import ByteTokenizer

LANES, RANKS = 61_440, 4096
FOLDER = "corpus/v3/web/"


def name(number: int) -> str:
    return f"{number:06d}.tar"


class Bucket(BaseHTTPRequestHandler):
    """A bucket of shards of a GB each, as `serve` sets it up."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    num_shards = 0
    latency_s = 0.0

    def do_HEAD(self) -> None:
        time.sleep(self.latency_s)
        self.send_response(200)
        for header in (("Content-Length", "1000000000"), ("ETag", f'"{hash(self.path) % 2**64:016x}"')):
            self.send_header(*header)
        self.end_headers()

    def do_GET(self) -> None:
        time.sleep(self.latency_s)
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        begin = query.get("start-after", "").removeprefix(FOLDER)
        first = int(begin.partition(".")[0] or 0)
        numbers = range(first, min(first + 1000, self.num_shards))
        objects = "".join(
            f"<Contents><Key>{FOLDER}{name(number)}</Key><Size>1000000000</Size>"
            f"<ETag>&quot;{number:032x}&quot;</ETag><LastModified>2026-11-28T00:00:00.000Z</LastModified></Contents>"
            for number in numbers
        )
        body = f"<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated>{objects}</ListBucketResult>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


def serve(port: Any, num_shards: int, latency_s: float) -> None:
    Bucket.num_shards, Bucket.latency_s = num_shards, latency_s
    with Server(("127.0.0.1", 0), Bucket) as server:
        port.value = server.server_port
        server.serve_forever()


class Unlisted(StorageReader):
    """A storage whose folders may not be listed."""

    def page_from(self, url: str) -> None:
        return None


def tell(step: str, began: tuple[float, float], **more: object) -> None:
    seconds = time.perf_counter() - began[0], time.process_time() - began[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"step": step, "s": round(seconds[0], 2), "cpu_s": round(seconds[1], 2), "peak_MB": peak, **more}))


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def main() -> None:
    num_shards, latency_ms, one_by_one = (int(each) for each in sys.argv[1:] or ("100000", "50", "2000"))
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder, "manifest.jsonl")
        with manifest.open("w") as file:
            for number in range(num_shards):
                url = f"s3://bucket/{FOLDER}{name(number)}"
                file.write(json.dumps({"url": url, "size": 10**9 + number, "etag": f'"{number:032x}"'}) + "\n")
        tell("before anything", now(), shards=num_shards)
        began = now()
        table = resolve_shards(f"@{manifest}", StorageReader())
        tell("manifest", began, file_MB=manifest.stat().st_size // 10**6)
        began = now()
        data = table.to_bytes()
        tell("table to bytes, on rank 0", began, MB=round(len(data) / 1e6, 1))
        began = now()
        table = ShardTable.from_bytes(data)
        tell("table from bytes, on every rank", began)
        importlib.import_module("torch.distributed.checkpoint")  # seconds of torch's own
        began = now()
        dataset = PackedDataset(f"@{manifest}", ByteTokenizer(), 8192, num_lanes=LANES)
        dataset.adopt_tables([table])
        loader = PackedDataLoader(dataset, 1, num_workers=0, dp_rank=7, dp_size=RANKS)
        state = loader.state_dict()
        tell(f"loader of a rank of {RANKS} with {LANES} lanes, and its state", began, rows=len(state["rows"]))
    port = multiprocessing.Value("i", 0)
    server = multiprocessing.Process(target=serve, args=(port, num_shards, latency_ms / 1000), daemon=True)
    server.start()
    while not port.value:
        time.sleep(0.01)
    options = {"endpoint_url": f"http://127.0.0.1:{port.value}", "key": "k", "secret": "s"}
    options |= {"client_kwargs": {"region_name": "us-east-1"}}
    storage = StorageReader.of(Storage(options=options))
    began = now()
    table = resolve_shards(f"s3://bucket/{FOLDER}{{000000..{num_shards - 1:06d}}}.tar", storage)
    assert len(table) == num_shards
    assert table.size_known.all()
    tell("braces, in pages", began, requests=storage.num_requests)
    unlisted = Unlisted(options)
    began = now()
    resolve_shards(f"s3://bucket/{FOLDER}{{000000..{one_by_one - 1:06d}}}.tar", unlisted)
    tell("braces, one by one", began, shards=one_by_one, requests=unlisted.num_requests)
    server.kill()


if __name__ == "__main__":
    main()
