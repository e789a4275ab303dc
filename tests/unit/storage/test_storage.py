"""One URL as bytes: exact ranges on every backend, faults that pass and faults that do not, processes, secrets.

Real parts: files, fsspec's memory filesystem, an HTTP server on the loopback with faults by script, and a filesystem
registered with fsspec that fails on demand.
"""

import logging
import multiprocessing
import os
import pickle
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from streampack.errors import ConfigError, ShardError, ShardNotFoundError, StorageError, TruncatedShardError
from streampack.storage import objects
from streampack.storage.access import StorageReader
from streampack.storage.options import RetryPolicy
from streampack.storage.ranges import LOCAL_RANGE_BYTES
from streampack.storage.redaction import redacted, secrets_in

DATA = os.urandom(10_000)
IMMEDIATE = RetryPolicy.immediate()


class Server(ThreadingHTTPServer):
    """Serves `objects`; each GET takes the next of `faults`: a status, "reset", "stall", ("cut", n) or None."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects = {"/a.tar": DATA}
        self.faults: deque[Any] = deque()
        self.heads: deque[int] = deque()
        self.always: Any = None
        self.knows_ranges = True
        self.tells_length = True
        self.gets: list[tuple[int, int] | None] = []
        self.headers: list[dict[str, str]] = []
        self.stopping = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """One connection; a fault ends it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        if self.server.heads:
            self.send_error(self.server.heads.popleft())
        else:
            self.answer(body=False)

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        start, stop = map(int, asked.removeprefix("bytes=").split("-")) if asked else (0, -1)
        self.server.gets.append((start, stop + 1) if asked else None)
        self.server.headers.append(dict(self.headers))
        fault = self.server.faults.popleft() if self.server.faults else self.server.always
        if isinstance(fault, int):
            self.send_error(fault)
        elif fault == "reset":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault == "stall":
            self.server.stopping.wait(30)
        else:
            self.answer(body=True, cut=fault[1] if fault else None)

    def answer(self, *, body: bool, cut: int | None = None) -> None:
        data = self.server.objects.get(self.path.partition("?")[0])
        if data is None:
            return self.send_error(404)
        if self.server.always == 403:
            return self.send_error(403)
        asked = self.headers.get("Range") if self.server.knows_ranges else None
        if asked:
            start, stop = map(int, asked.removeprefix("bytes=").split("-"))
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            total, data = len(data), data[start : stop + 1]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{total}")
        if self.server.tells_length:
            self.send_header("Content-Length", str(len(data)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        if body:
            self.wfile.write(data[:cut])
        if not self.server.tells_length or cut is not None:
            self.close_connection = True
        return None


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield running
    running.stopping.set()
    running.shutdown()
    running.server_close()
    thread.join(5)


class FlakyFileSystem(MemoryFileSystem):
    """fsspec's memory filesystem; each call takes the next of `script` and raises it, or returns it if it is bytes."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    script: ClassVar[deque[Any]] = deque()
    asked: ClassVar[list[tuple[int, int]]] = []
    made: ClassVar[int] = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        type(self).made += 1

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("flaky://").strip("/")

    def _next(self) -> Any:
        act = self.script.popleft() if self.script else None
        if isinstance(act, BaseException):
            raise act
        return act

    def cat_file(self, path: str, start: int = 0, end: int = 0, **_: Any) -> bytes:
        self.asked.append((start, end))
        act = self._next()
        data: bytes = super().cat_file(path, start=start, end=end)
        return data if act is None else data[: act % (len(data) + 1)]

    def ls(self, path: str, *, detail: bool = True, **_: Any) -> Any:
        self._next()
        return super().ls(path, detail=detail)


@pytest.fixture
def flaky() -> Iterator[type[FlakyFileSystem]]:
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    FlakyFileSystem.store.clear()
    FlakyFileSystem.script.clear()
    FlakyFileSystem.asked.clear()
    FlakyFileSystem.made = 0
    FlakyFileSystem().pipe_file("/d/a.tar", DATA)
    FlakyFileSystem.made = 0
    yield FlakyFileSystem
    FlakyFileSystem.store.clear()


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    filesystem = fsspec.filesystem("memory", skip_instance_cache=True)
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


@pytest.fixture(params=["path", "relative", "file", "memory", "http", "http without ranges", "http without length"])
def url(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryFileSystem
) -> str:
    """DATA on each backend."""
    (tmp_path / "a.tar").write_bytes(DATA)
    monkeypatch.chdir(tmp_path)
    memory.pipe_file("/d/a.tar", DATA)
    if not request.param.startswith("http"):
        here = {"path": f"{tmp_path}/a.tar", "relative": "a.tar", "file": f"file://{tmp_path}/a.tar"}
        return here.get(request.param, "memory://d/a.tar")
    running: Server = request.getfixturevalue("server")
    running.knows_ranges = request.param != "http without ranges"
    running.tells_length = request.param != "http without length"
    return f"{running.url}/a.tar"


def read(storage: StorageReader, url: str, start: int = 0, stop: int | None = None, **more: Any) -> bytes:
    return b"".join(storage.chunks(url, start, stop, **more))


class TestEveryBackend:
    """The same promises wherever the bytes are."""

    @pytest.mark.parametrize("size", [len(DATA), None], ids=["size known", "size unknown"])
    @pytest.mark.parametrize("first_bytes", [997, 5_000, 10_000])  # the latter two end with the object
    def test_a_range_is_exactly_the_bytes_asked_for(self, url: str, size: int | None, first_bytes: int) -> None:
        storage = StorageReader(retry=IMMEDIATE)
        for start, stop in [(0, None), (0, 0), (1, 2), (4_321, 9_000), (9_999, 10_000), (10_000, 10_000), (77, None)]:
            got = read(storage, url, start, stop, size=size, first_bytes=first_bytes, max_bytes=20_000)
            assert got == DATA[start:stop], (start, stop)
        assert storage.num_retries == 0

    def test_the_size_is_told_or_unknown(self, url: str, request: pytest.FixtureRequest) -> None:
        known = None if "without length" in request.node.callspec.id else len(DATA)
        assert StorageReader().size(url) == known

    def test_a_small_object_is_read_whole(self, url: str) -> None:
        assert StorageReader().read(url) == DATA

    def test_an_object_that_is_not_there_is_named(self, url: str) -> None:
        missing = url.replace("a.tar", "b.tar")
        storage = StorageReader(retry=IMMEDIATE)
        for ask in (storage.size, storage.read, lambda url: read(storage, url, size=10)):
            with pytest.raises(ShardNotFoundError, match=r"b\.tar.*no such file or object.*check the URL"):
                ask(missing)
        assert storage.num_retries == 0

    def test_a_shorter_object_is_an_error_at_the_byte_where_it_ends(self, url: str) -> None:
        with pytest.raises(
            TruncatedShardError, match=r"a\.tar, byte 10000: the object ends here, 12345 bytes were expected"
        ) as raised:
            read(StorageReader(retry=IMMEDIATE), url, 4_000, size=12_345, first_bytes=1_000)
        assert raised.value.offset == len(DATA)
        with pytest.raises(TruncatedShardError, match="byte 10000: the object ends here"):
            read(StorageReader(retry=IMMEDIATE), url, 11_000, size=12_345)


@given(
    start=st.integers(0, 10_000),
    length=st.integers(0, 10_000),
    first_bytes=st.integers(1, 12_000),
    max_bytes=st.integers(100, 12_000),
    known=st.booleans(),
)
def test_pieces_join_to_the_range_and_none_is_above_the_bound(
    start: int, length: int, first_bytes: int, max_bytes: int, known: bool
) -> None:
    fsspec.filesystem("memory").pipe_file("/property/a.tar", DATA)
    stop = min(start + length, len(DATA))
    chunks = list(
        StorageReader().chunks(
            "memory://property/a.tar",
            start,
            stop,
            size=len(DATA) if known else None,
            first_bytes=first_bytes,
            max_bytes=max_bytes,
        )
    )
    assert b"".join(chunks) == DATA[start:stop]
    assert all(0 < len(chunk) <= max_bytes for chunk in chunks)


def test_ranges_double_up_to_the_largest(server: Server) -> None:
    list(StorageReader().chunks(f"{server.url}/a.tar", 100, 9_000, size=10_000, first_bytes=500, max_bytes=3_000))
    assert server.gets == [(100, 600), (600, 1_600), (1_600, 3_600), (3_600, 6_600), (6_600, 9_000)]


def test_nothing_is_asked_for_before_the_first_piece_is_wanted(server: Server) -> None:
    chunks = StorageReader().chunks(f"{server.url}/a.tar", size=10_000, first_bytes=500)
    assert server.gets == []
    next(chunks)
    assert server.gets == [(0, 500)]


def test_a_local_file_is_opened_once_and_closed_when_the_reading_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(DATA)

    def descriptors() -> int:
        return sum(n.resolve() == path for n in Path("/proc/self/fd").iterdir())

    chunks = StorageReader().chunks(str(path), size=10_000, first_bytes=100, max_bytes=100)
    next(chunks), next(chunks), next(chunks)
    assert descriptors() == 1
    chunks.close()  # type: ignore[attr-defined]  # a generator
    assert descriptors() == 0


def test_ranges_of_a_local_file_stay_as_small_as_the_caches_want_them(tmp_path: Path) -> None:
    path, size = tmp_path / "a.tar", 3 * LOCAL_RANGE_BYTES
    path.write_bytes(DATA.ljust(size, b"x"))
    chunks = StorageReader().chunks(str(path), size=size, first_bytes=LOCAL_RANGE_BYTES // 2)
    halves = [len(chunk) * 2 // LOCAL_RANGE_BYTES for chunk in chunks]
    assert halves == [1, 2, 2, 1]


class TestFaultsThatPass:
    """They cost time and nothing else."""

    @pytest.mark.parametrize("fault", [500, 502, 503, 429, 408, "reset", ("cut", 300)], ids=str)
    def test_the_range_is_asked_for_again_from_the_byte_reached(self, server: Server, fault: Any) -> None:
        server.faults.extend([None, fault])
        storage = StorageReader(retry=IMMEDIATE)
        assert read(storage, f"{server.url}/a.tar", size=10_000, first_bytes=1_000, max_bytes=5_000) == DATA
        assert storage.num_retries == 1
        reached = 1_300 if fault == ("cut", 300) else 1_000
        assert [range_[0] for range_ in server.gets if range_][:3] == [0, 1_000, reached]

    def test_a_stall_ends_after_the_timeout(self, server: Server) -> None:
        server.faults.append("stall")
        storage = StorageReader(retry=RetryPolicy(timeout_s=0.5, first_wait_s=0.01))
        began = time.monotonic()
        assert read(storage, f"{server.url}/a.tar", size=10_000) == DATA
        assert storage.num_retries >= 1
        assert 0.5 <= time.monotonic() - began < 20  # the server would stall for 30 s

    def test_a_body_that_is_cut_without_a_length_is_read_on(self, server: Server) -> None:
        server.tells_length = False
        server.faults.extend([("cut", 300), ("cut", 40)])
        storage = StorageReader(retry=IMMEDIATE)
        assert read(storage, f"{server.url}/a.tar", size=10_000, first_bytes=1_000) == DATA
        assert [range_[0] for range_ in server.gets if range_][:3] == [0, 300, 340]
        assert storage.num_retries == 2

    def test_ranges_shrink_under_faults_until_one_gets_through(self, flaky: type[FlakyFileSystem]) -> None:
        FlakyFileSystem().pipe_file("/d/large", bytes(2**20))
        flaky.script.extend([OSError("reset")] * 3)
        read(StorageReader(retry=IMMEDIATE), "flaky://d/large", size=2**20, first_bytes=2**20)
        assert [stop - start for start, stop in flaky.asked][:5] == [2**20, 2**18, 2**16, 2**16, 2**17]

    def test_an_empty_answer_inside_the_object_is_a_fault_and_not_its_end(self, flaky: type[FlakyFileSystem]) -> None:
        flaky.script.extend([0, 0])
        storage = StorageReader(retry=IMMEDIATE)
        assert read(storage, "flaky://d/a.tar", size=10_000) == DATA
        assert storage.num_retries == 2

    @given(script=st.lists(st.one_of(st.none(), st.integers(0, 3_000), st.just(-1)), max_size=30))
    def test_no_sequence_of_faults_changes_a_byte(self, script: list[int | None]) -> None:
        fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
        FlakyFileSystem().pipe_file("/d/a.tar", DATA)
        FlakyFileSystem.script.clear()
        FlakyFileSystem.script.extend(ConnectionResetError("fault") if act == -1 else act for act in script)
        retry = RetryPolicy.immediate(max_tries=40)
        assert read(StorageReader(retry=retry), "flaky://d/a.tar", 10, size=10_000, first_bytes=700) == DATA[10:]

    def test_progress_renews_the_budget(self, flaky: type[FlakyFileSystem]) -> None:
        flaky.script.extend([OSError("reset"), None] * 10)
        storage = StorageReader(retry=RetryPolicy.immediate(max_tries=2))
        assert read(storage, "flaky://d/a.tar", size=10_000, first_bytes=700, max_bytes=700) == DATA
        assert storage.num_retries == 10

    def test_a_pause_of_the_consumer_does_not_count(self, flaky: type[FlakyFileSystem]) -> None:
        retry = RetryPolicy(budget_s=0.2, first_wait_s=0.0, max_wait_s=0.0)
        chunks = StorageReader(retry=retry).chunks("flaky://d/a.tar", size=10_000, first_bytes=5_000)
        first = next(chunks)
        time.sleep(0.3)
        flaky.script.append(OSError("reset"))
        assert first + b"".join(chunks) == DATA

    def test_expired_credentials_are_renewed_once(self, flaky: type[FlakyFileSystem]) -> None:
        flaky.script.append(PermissionError("The provided token has expired."))
        assert StorageReader(retry=IMMEDIATE).read("flaky://d/a.tar") == DATA
        assert flaky.made == 2
        flaky.script.extend([PermissionError("The provided token has expired.")] * 2)
        with pytest.raises(StorageError, match="trying again would not help"):
            read(StorageReader(retry=IMMEDIATE), "flaky://d/a.tar", size=10_000)

    def test_no_folder_is_missing_in_a_listing_after_faults(self, flaky: type[FlakyFileSystem]) -> None:
        FlakyFileSystem().pipe_file("/d/sub/b.tar", b"1")
        flaky.script.extend([OSError("reset"), None, OSError("reset")])  # the second one in a folder below
        storage = StorageReader(retry=IMMEDIATE)
        assert storage.listing("flaky://d/") == [("flaky://d/a.tar", 10_000), ("flaky://d/sub/b.tar", 1)]
        assert storage.num_retries == 2

    def test_a_size_is_asked_for_again(self, server: Server) -> None:
        server.heads.extend([503, 500])
        server.faults.extend([503, 500])  # fsspec asks with HEAD, then with GET, and says FileNotFoundError
        storage = StorageReader(retry=IMMEDIATE)
        assert storage.size(f"{server.url}/a.tar") == 10_000
        assert storage.num_retries == 2


class TestFaultsThatStay:
    """They end with an error that names the place and the remedy."""

    @pytest.mark.parametrize("status", [400, 401, 403])
    def test_a_refusal_is_final_at_once(self, server: Server, status: int) -> None:
        server.always = status
        with pytest.raises(
            StorageError, match=rf"a\.tar, byte 0: .*would not help: .*{status}.* tr.* in 0\.\d s\); .*Storage\(op"
        ):
            read(StorageReader(), f"{server.url}/a.tar", size=10_000)
        assert len(server.gets) == (2 if status == 401 else 1)  # 401: credentials may have expired

    def test_a_refusal_is_not_taken_for_a_missing_object_where_the_size_is_asked_for(self, server: Server) -> None:
        server.always = 403
        with pytest.raises(StorageError, match="403"):
            StorageReader().size(f"{server.url}/a.tar")

    def test_a_server_that_is_down_is_not_taken_for_a_missing_object(self, server: Server) -> None:
        address = server.url
        server.shutdown()
        server.server_close()
        with pytest.raises(StorageError, match=r"nothing accepts connections there; not an answer in 0 s and 3 tries"):
            StorageReader(retry=RetryPolicy.immediate(3)).size(f"{address}/a.tar")

    def test_the_budget_ends_in_an_error_with_url_byte_and_last_cause(self, server: Server) -> None:
        server.faults.append(None)
        server.always = 503
        began = time.monotonic()
        with pytest.raises(
            StorageError, match=r"a\.tar, byte 1000: not a byte in \d+ s and \d+ tries, last .*503.*budget_s"
        ) as raised:
            read(
                StorageReader(retry=RetryPolicy(budget_s=0.4, first_wait_s=0.02, max_wait_s=0.1)),
                f"{server.url}/a.tar",
                size=10_000,
                first_bytes=1_000,
            )
        assert 0.2 < time.monotonic() - began < 5
        assert raised.value.offset == 1_000
        assert len(server.gets) > 3

    def test_a_server_that_ignores_ranges_is_refused_for_large_objects(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(objects, "LARGEST_BODY", 9_999)
        server.knows_ranges = False
        with pytest.raises(StorageError, match=r"byte 50: 10000 bytes came .* the server ignores ranges.*copy the sh"):
            read(StorageReader(), f"{server.url}/a.tar", 50, size=10_000, first_bytes=100)

    @pytest.mark.parametrize("knows_ranges", [True, False], ids=["ranges", "no ranges"])
    def test_a_longer_object_is_refused(self, server: Server, knows_ranges: bool) -> None:
        server.knows_ranges = knows_ranges
        with pytest.raises(ShardError, match=r"the object has 10000 bytes, 9000 were expected: .*begin a new run"):
            read(StorageReader(), f"{server.url}/a.tar", 50, size=9_000, first_bytes=100)

    def test_a_folder_that_cannot_be_listed_is_not_passed_over(self, flaky: type[FlakyFileSystem]) -> None:
        flaky.script.extend([OSError("down")] * 3)
        with pytest.raises(StorageError, match=r"flaky://d/: not an answer .* OSError: down"):
            StorageReader(retry=RetryPolicy.immediate(3)).listing("flaky://d/")

    def test_a_directory_has_no_size(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="it is a directory .*; a directory of shards is given with a '/'"):
            StorageReader().size(str(tmp_path))

    @pytest.mark.parametrize("url", ["pipe:cat a.tar", "simplecache::pipe:cat a.tar"])
    def test_what_runs_a_shell_is_refused(self, url: str) -> None:
        for ask in (StorageReader().size, StorageReader().read, StorageReader().listing):
            with pytest.raises(ConfigError, match="pipe: is not read, as it would run a shell"):
                ask(url)

    def test_a_protocol_that_is_unknown_or_not_installed_says_what_to_do(self) -> None:
        with pytest.raises(ConfigError, match=r"nosuch://a: no storage is known as nosuch://"):
            StorageReader().size("nosuch://a")
        with pytest.raises(ConfigError, match=r"needs `pip install 'fsspec\[dropbox\]'`"):
            StorageReader().size("dropbox://a")

    def test_options_that_the_backend_does_not_take_are_an_error(self, server: Server) -> None:
        with pytest.raises(StorageError, match=r"not what the storage's client takes \(TypeError.*nonsense.*Storage"):
            read(StorageReader({"nonsense": 1}), f"{server.url}/a.tar", size=10_000)

    def test_the_immediate_policy_does_not_wait(self, flaky: type[FlakyFileSystem]) -> None:
        flaky.script.extend([OSError("x")] * 100)
        began = time.monotonic()
        with pytest.raises(StorageError, match="50 tries"):
            read(StorageReader(retry=RetryPolicy.immediate(50)), "flaky://d/a.tar", size=10_000)
        assert time.monotonic() - began < 2


class TestSecrets:
    """What is in options and URLs stays there."""

    OPTIONS: ClassVar[dict[str, object]] = {"key": "AKIAEXAMPLE", "secret": "s3cr3t"}

    def test_the_repr_shows_keys_only(self) -> None:
        shown = repr(StorageReader(self.OPTIONS))
        assert "'secret': ***" in shown
        assert "s3cr3t" not in shown
        assert "AKIA" not in shown

    def test_signatures_and_passwords_are_taken_out_of_urls(self) -> None:
        assert redacted("https://h/a.tar?X-Amz-Signature=ab12&part=3 failed") == (
            "https://h/a.tar?X-Amz-Signature=***&part=3 failed"
        )
        assert redacted("sftp://me:pw@host/a.tar and abfs://box@account/a.tar") == (
            "sftp://me:***@host/a.tar and abfs://box@account/a.tar"
        )

    def test_secrets_are_found_in_options_however_deep(self) -> None:
        options = {
            "key": "AKIAEXAMPLE",
            "anon": "nothing secret",
            "s3": {"client_kwargs": {"aws_secret_access_key": "deep-secret", "region_name": "us-east-1"}},
            "headers": {"X-Any": "header-value"},
            "token": "anon",
        }
        assert set(secrets_in(options)) == {"header-value", "AKIAEXAMPLE", "deep-secret"}

    def test_errors_and_logs_hold_no_signature(self, server: Server, caplog: pytest.LogCaptureFixture) -> None:
        server.always = 503
        with caplog.at_level(logging.DEBUG, logger="streampack"), pytest.raises(StorageError) as raised:
            read(StorageReader(retry=IMMEDIATE), f"{server.url}/a.tar?sig=s3cr3t", size=10_000)
        assert len(caplog.records) == 4
        assert "a.tar?sig=***" in str(raised.value)
        assert "s3cr3t" not in str(raised.value) + caplog.text

    def test_headers_of_the_user_go_with_every_request(self, server: Server) -> None:
        StorageReader({"headers": {"X-Token": "t"}}).read(f"{server.url}/a.tar")
        assert [headers["X-Token"] for headers in server.headers] == ["t"]
        assert server.headers[0]["Accept-Encoding"] == "identity"  # a compressed answer has other lengths


def _read_in_child(storage: StorageReader, url: str, answers: Any) -> None:
    answers.put((read(storage, url, size=10_000, first_bytes=3_000), storage.size(url)))


class TestProcesses:
    """Clients belong to the process that made them."""

    def test_a_pickle_holds_options_and_policy_and_no_client(self, server: Server) -> None:
        storage = StorageReader({"headers": {"X-Token": "t"}}, RetryPolicy(budget_s=7))
        assert storage.read(f"{server.url}/a.tar") == DATA
        data = pickle.dumps(storage)
        assert len(data) < 600
        copy = pickle.loads(data)
        assert copy.retry == RetryPolicy(budget_s=7)
        assert copy.num_retries == 0
        assert copy.read(f"{server.url}/a.tar") == DATA
        assert server.headers[-1]["X-Token"] == "t"

    @pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
    def test_a_forked_child_reads_what_its_parent_has_read_before_and_the_parent_goes_on(self, server: Server) -> None:
        url, storage = f"{server.url}/a.tar", StorageReader(retry=RetryPolicy(budget_s=40, timeout_s=20))
        chunks = storage.chunks(url, size=10_000, first_bytes=1_000, max_bytes=1_000)
        begun = next(chunks)
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()
        children = [context.Process(target=_read_in_child, args=(storage, url, answers)) for _ in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join(60)
            assert child.exitcode == 0
            assert answers.get() == (DATA, 10_000)
        assert begun + b"".join(chunks) == DATA
        assert storage.num_retries == 0

    def test_threads_share_one_client(self, flaky: type[FlakyFileSystem]) -> None:
        storage = StorageReader()
        results: list[bytes] = []
        threads = [threading.Thread(target=lambda: results.append(storage.read("flaky://d/a.tar"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert results == [DATA] * 8
        assert flaky.made == 1

    def test_clients_are_neither_shared_nor_cached_by_fsspec(self, flaky: type[FlakyFileSystem]) -> None:
        first, second = StorageReader(), StorageReader()
        ours = [storage._clients.filesystem("flaky://d/a.tar")[0] for storage in (first, second, first)]
        assert ours[0] is ours[2] is not ours[1]
        assert not ours[0].dircache.use_listings_cache


class TestListing:
    """Files of a directory or a glob, in the manner in which it was given."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryFileSystem) -> None:
        monkeypatch.chdir(tmp_path)
        for name, size in (("d/b.tar", 2), ("d/a.tar", 1), ("d/sub/c.tar", 3), ("d/note.txt", 4), ("e/a.tar", 5)):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(bytes(size))
            memory.pipe_file(f"/{name}", bytes(size))

    @pytest.mark.parametrize("root", ["", "{here}/", "file://{here}/", "memory://", "../{name}/"])
    def test_a_glob_and_a_directory_list_urls_that_can_be_read(self, root: str, tmp_path: Path) -> None:
        root = root.format(here=tmp_path, name=tmp_path.name)
        storage = StorageReader()
        globbed = storage.listing(f"{root}d/*.tar")
        tree = storage.listing(f"{root}d/")
        if not root.startswith(".."):  # that one becomes an absolute path
            assert globbed == [(f"{root}d/a.tar", 1), (f"{root}d/b.tar", 2)]
            assert [name for name, _ in tree] == [
                f"{root}d/{name}" for name in ("a.tar", "b.tar", "note.txt", "sub/c.tar")
            ]
        assert [size for _, size in globbed] == [1, 2]
        assert [size for _, size in tree] == [1, 2, 4, 3]
        for name, size in tree:
            assert storage.size(name) == size

    def test_patterns_match_as_in_a_shell(self) -> None:
        storage = StorageReader()
        assert storage.listing("[de]/a.tar") == [("d/a.tar", 1), ("e/a.tar", 5)]
        assert storage.listing("d/?.tar") == [("d/a.tar", 1), ("d/b.tar", 2)]
        assert storage.listing("d/**/*.tar") == [("d/a.tar", 1), ("d/b.tar", 2), ("d/sub/c.tar", 3)]

    def test_links_are_followed_and_a_circle_of_them_ends(self) -> None:
        Path("d/link.tar").symlink_to("b.tar")
        Path("d/sub/up").symlink_to("..")
        Path("d/dangling.tar").symlink_to("nowhere")
        assert StorageReader().listing("d/") == [
            ("d/a.tar", 1),
            ("d/b.tar", 2),
            ("d/dangling.tar", None),
            ("d/link.tar", 2),
            ("d/note.txt", 4),
            ("d/sub/c.tar", 3),
        ]
        assert StorageReader().listing("d/li*.tar") == [("d/link.tar", 2)]

    @pytest.mark.parametrize("url", ["d/*.nothing", "nowhere/", "nowhere/*.tar", "memory://nowhere/"])
    def test_what_is_not_there_lists_as_empty(self, url: str) -> None:
        assert StorageReader().listing(url) == []

    def test_a_web_server_is_listed_by_the_links_of_its_pages(self, server: Server) -> None:
        server.objects["/d/"] = (
            b'<a href="b.tar">b</a> <a href="a.tar">a</a> <a href="?C=N">sort</a> <a href="/e/">e</a>'
        )
        storage = StorageReader()
        root = f"{server.url}/d/"
        assert storage.listing(f"{root}*.tar") == [(f"{root}a.tar", None), (f"{root}b.tar", None)]
        assert {(f"{root}a.tar", None), (f"{root}b.tar", None)} <= set(storage.listing(root))

    def test_directories_are_told_from_files(self, server: Server) -> None:
        storage = StorageReader()
        found = {url: storage.is_directory(url) for url in ("d", "d/a.tar", "memory://d", "memory://d/a.tar", "x")}
        assert [url for url, is_directory in found.items() if is_directory] == ["d", "memory://d"]
        assert storage.is_directory(f"{server.url}/d/")
        assert not storage.is_directory(f"{server.url}/d")
