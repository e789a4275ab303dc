"""Open files: few whatever the number of lanes, none that was replaced meanwhile; what happens when none is left."""

import gc
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.proxy import Proxy

from streampack.errors import ShardError, StorageError, TruncatedShardError
from streampack.storage import descriptors, faults
from streampack.storage.access import StorageReader
from streampack.storage.backends import local
from streampack.storage.options import RetryPolicy
from streampack.storage.readahead import MOST_THREADS

DATA = os.urandom(2000)
POLICY = RetryPolicy(first_wait_s=0.001, max_wait_s=0.05)


def num_open(path: str = "") -> int:
    """Descriptors of this process: of a file, or all."""
    found = [str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    return len(found) if not path else found.count(path)


@contextmanager
def limited(number: int) -> Iterator[None]:
    """This process may open so many descriptors more, as under `ulimit -n`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.open(os.devnull, os.O_RDONLY) for _ in range(number + 1)]  # the lowest numbers that are free
    for descriptor in free:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def chunks(path: str, size: int = len(DATA), policy: RetryPolicy = POLICY) -> Iterator[bytes]:
    return StorageReader(retry=policy).chunks(path, size=size, first_bytes=500, max_bytes=500)


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "a.tar").write_bytes(DATA)
    return f"{tmp_path}/a.tar"


class TestMany:
    """Thousands of lanes."""

    def test_thousands_of_lanes_of_a_rank_keep_few_files_open(self, path: str) -> None:
        storage = StorageReader()
        lanes = [storage.chunks(path, size=len(DATA), first_bytes=500, max_bytes=500) for _ in range(7680)]
        with limited(descriptors.MOST_KEPT + 10):
            assert all(next(lane) == DATA[:500] for lane in lanes)
            assert all(next(lane) == DATA[500:1000] for lane in lanes[:200])
        assert num_open(path) == descriptors.MOST_KEPT
        for lane in lanes:
            lane.close()  # type: ignore[attr-defined]  # a generator
        assert num_open(path) == 0

    def test_lanes_that_are_few_open_their_file_once(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        opened: list[str] = []
        real = os.open
        monkeypatch.setattr(local.os, "open", lambda name, flags: opened.append(name) or real(name, flags))
        lanes = [chunks(path) for _ in range(descriptors.MOST_KEPT)]
        for _ in range(4):
            for lane in lanes:
                next(lane)
        assert opened == [path] * len(lanes)

    def test_lanes_of_a_web_server_share_few_connections(self) -> None:
        proxy = Proxy(objects={"/a.tar": DATA})
        storage = StorageReader(retry=POLICY)
        gc.collect()
        before = num_open()
        lanes = [storage.chunks(f"{proxy.url}/a.tar", size=len(DATA), first_bytes=500) for _ in range(100)]
        for lane in lanes:
            next(lane)
        # Each connection has an end at the server, which is in this process too.
        assert num_open() - before <= 2 * (MOST_THREADS + 1)
        proxy.close()


class TestVersions:
    """A file that is closed and opened again must be the same one."""

    @pytest.fixture(params=["kept open", "opened again"])
    def lane(self, request: pytest.FixtureRequest, path: str) -> Iterator[bytes]:
        reading = chunks(path)
        assert next(reading) == DATA[:500]
        if request.param == "opened again":
            descriptors.let_all_go()
        return reading

    def test_a_file_written_in_place_is_an_error(self, lane: Iterator[bytes], path: str) -> None:
        Path(path).write_bytes(bytes(len(DATA)))
        with pytest.raises(ShardError, match=r"a\.tar, byte 500: the object was replaced while it was read \(changed "):
            next(lane)

    def test_a_file_that_was_shortened_is_an_error(self, lane: Iterator[bytes], path: str) -> None:
        os.truncate(path, 700)
        with pytest.raises(TruncatedShardError, match=r"a\.tar, byte 700: the object ends here, 2000 bytes were exp"):
            list(lane)

    def test_another_file_in_its_place_is_never_mixed_with_it(self, lane: Iterator[bytes], path: str) -> None:
        was = Path(path).stat()
        other = Path(path).with_suffix(".new")
        other.write_bytes(bytes(len(DATA)))
        os.utime(other, ns=(was.st_atime_ns, was.st_mtime_ns))  # only its inode tells
        other.replace(path)
        try:
            assert b"".join(lane) == DATA[500:]  # it was open all the time
        except ShardError as error:
            assert "the object was replaced while it was read" in str(error)  # noqa: PT017 - either is right
            assert "inode" in str(error)  # noqa: PT017

    def test_inodes_of_fuse_do_not_count(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        device = Path(path).stat().st_dev
        line = f"36 35 {os.major(device)}:{os.minor(device)} / /data rw - {{}} none rw\n"
        for system, lasting in (("fuse.gcsfuse", False), ("ext4", True)):
            monkeypatch.setattr(local.Path, "read_text", lambda *_, system=system: line.format(system))
            local._has_lasting_inodes.cache_clear()
            assert local._has_lasting_inodes(device) is lasting
        local._has_lasting_inodes.cache_clear()

    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(StorageError, match="pipe, byte 0: cannot be read"):
            next(chunks(f"{tmp_path}/pipe", size=10))


class TestNoneLeft:
    """`ulimit -n` is reached, by whoever."""

    def test_what_is_idle_is_closed_and_the_reading_goes_on(self, path: str) -> None:
        lanes = [chunks(path) for _ in range(10)]
        for lane in lanes[:9]:
            next(lane)
        kept = len(descriptors._kept)
        with limited(0):
            assert next(lanes[9]) == DATA[:500]
        assert len(descriptors._kept) < kept

    def test_it_is_waited_for_as_others_may_give_some_back(self, path: str) -> None:
        storage = StorageReader(retry=POLICY)
        descriptors.let_all_go()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        timer = threading.Timer(0.2, resource.setrlimit, (resource.RLIMIT_NOFILE, (soft, hard)))
        with limited(0):
            timer.start()
            assert storage.read(path) == DATA
        assert storage.num_retries >= 1
        timer.join()

    @pytest.mark.parametrize("kind", ["file", "http", "unknown host"])
    def test_when_none_comes_back_the_error_names_the_limit_and_not_the_network(
        self, kind: str, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("streampack.storage.retry.SHORTAGE_S", 0.3)
        proxy = Proxy(objects={"/a.tar": DATA})
        url = {"file": path, "http": f"{proxy.url}/a.tar"}.get(kind, "http://host.invalid/a.tar")
        storage = StorageReader(retry=POLICY)
        storage._clients.free_descriptors()
        began = time.monotonic()
        with limited(0):
            with pytest.raises(StorageError) as raised:
                list(storage.chunks(url, size=len(DATA)))
            seconds = time.monotonic() - began
        assert seconds < 60, "not the network's budget of tries"
        assert "file descriptors that `ulimit -n` allows this process are open; not a byte in" in str(raised.value)
        assert "raise the limit (`ulimit -n 65536`" in str(raised.value)
        assert "check the network" not in str(raised.value)
        proxy.close()

    def test_a_cache_does_not_blame_its_disk(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        from streampack.storage.cache.folder import CacheFolder

        folder = CacheFolder(tmp_path, 2**30)
        for number in sorted(faults._SHORT_OF - {105}):
            assert not folder.failed(OSError(number, os.strerror(number)))
        assert not folder.is_off
        assert caplog.text == ""
