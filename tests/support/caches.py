"""What the tests of the cache have in common: an object behind a web server, readings of it, what the disk holds."""

import contextlib
import hashlib
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from streampack import RetryPolicy
from streampack.storage.access import StorageReader
from streampack.storage.cache.blockfile import BLOCK_BYTES
from streampack.storage.cache.folder import CacheFolder
from support.proxy import Proxy

MIB = 2**20
SIZE = 2 * BLOCK_BYTES + 3 * MIB + 12345
DATA = random.Random(1).randbytes(SIZE)
OTHER = random.Random(2).randbytes(SIZE)
ETAG = f'"{hashlib.md5(DATA).hexdigest()}"'
OTHER_ETAG = f'"{hashlib.md5(OTHER).hexdigest()}"'
RETRY = RetryPolicy(first_wait_s=0.001, max_wait_s=0.02, budget_s=20, timeout_s=20)


def storage(cache_dir: Path, *, cache_bytes: int = 2**30, retry: RetryPolicy = RETRY) -> StorageReader:
    return StorageReader(retry=retry, folder=CacheFolder(cache_dir, cache_bytes))


def read(
    reader: StorageReader, proxy: Proxy, start: int = 0, stop: int | None = None, *, etag: str = ETAG, **options: Any
) -> bytes:
    return b"".join(reader.chunks(f"{proxy.url}/a.tar", start, stop, size=SIZE, etag=etag, **options))


def num_bytes(proxy: Proxy) -> int:
    """What was asked for."""
    return sum(get.last + 1 - get.first for get in proxy.gets)


def block_files(cache_dir: Path) -> list[Path]:
    return sorted(path for path in (cache_dir / "streampack-1").glob("*/*") if path.is_file())


def held(cache_dir: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in block_files(cache_dir))


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


READER = """
import sys, hashlib
from streampack import RetryPolicy
from streampack.storage.cache.folder import CacheFolder
from streampack.storage.access import StorageReader
url, etag, size, cache_dir, timeout_s = sys.argv[1:]
retry = RetryPolicy(first_wait_s=0.001, max_wait_s=0.02, timeout_s=float(timeout_s))
digest = hashlib.md5()
for piece in StorageReader(retry=retry, folder=CacheFolder(cache_dir, 2**30)).chunks(url, size=int(size), etag=etag):
    digest.update(piece)
print(f'"{digest.hexdigest()}"')
"""


@contextlib.contextmanager
def other_process(proxy: Proxy, cache_dir: Path, *, timeout_s: float = 20) -> Iterator[subprocess.Popen[str]]:
    """Another process that reads the object through the same cache and prints its ETag."""
    arguments = [f"{proxy.url}/a.tar", ETAG, str(SIZE), str(cache_dir), str(timeout_s)]
    process = subprocess.Popen([sys.executable, "-c", READER, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
