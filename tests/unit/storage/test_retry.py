"""The rule of retries: what an error means, how long it is tried again before and after a first success, what is said.

Real parts: files, sockets that refuse or speak no TLS, file systems that fail on schedule, S3's client.
"""

import email.utils
import errno
import json
import os
import pickle
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.proxy import Fault as HttpFault
from support.proxy import Proxy

from streampack.errors import ConfigError, ShardNotFoundError, StorageError
from streampack.storage import faults
from streampack.storage.access import StorageReader
from streampack.storage.faults import Kind, kind_of, retry_after_s
from streampack.storage.options import RetryPolicy
from streampack.testing import Fault

QUICK = RetryPolicy(first_wait_s=0.01, max_wait_s=0.05, budget_s=1.0, start_s=0.2)


class StatusError(Exception):
    """Carries a status as aiohttp's errors do."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class BotoError(Exception):
    """Carries a status as botocore's errors do."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text)
        self.response: dict[str, Any] = {"ResponseMetadata": {"HTTPStatusCode": status}}


class UrllibError(Exception):
    """Has its cause as an argument only, as urllib3's SSLError."""


class NoCredentialsError(Exception):
    """Botocore's, by its name."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def met(error: Exception, context: Exception) -> Exception:
    error.__context__ = context
    return error


FINAL, PASSING, MISSING, AWAY = Kind.FINAL, Kind.PASSING, Kind.MISSING, Kind.AWAY
KINDS = [
    (caused(faults.UnmadeError("x"), OSError("Unable to load libjvm")), Kind.UNPROVEN),
    (caused(faults.UnmadeError("x"), ConnectionResetError("x")), PASSING),
    (caused(FileNotFoundError("x"), TypeError("unexpected keyword argument")), FINAL),  # fsspec's http, of an option
    (caused(FileNotFoundError("x"), ValueError("Port out of range")), FINAL),  # fsspec's http, of a malformed URL
    (caused(OSError("x"), UrllibError(ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER]"))), Kind.UNPROVEN),
    (FileNotFoundError("x"), MISSING),
    (PermissionError("x"), Kind.REFUSED),
    (met(FileNotFoundError("x"), KeyError("x")), MISSING),  # fsspec's memory filesystem
    (caused(FileNotFoundError("x"), StatusError(404)), MISSING),
    (caused(FileNotFoundError("x"), StatusError(503)), PASSING),  # fsspec's http says so of every failure
    (caused(FileNotFoundError("x"), ConnectionRefusedError(errno.ECONNREFUSED, "x")), AWAY),
    (met(FileNotFoundError("x"), TimeoutError("x")), PASSING),
    (caused(PermissionError("x"), BotoError(403)), Kind.REFUSED),
    (caused(OSError(22, "x"), BotoError(400)), FINAL),
    (caused(OSError("x"), BotoError(400, "(RequestTimeout)")), PASSING),
    (BotoError(400, "(RequestTimeout) when calling GetObject"), PASSING),
    (BotoError(400, "(ExpiredToken)"), Kind.EXPIRED),
    (BotoError(401), Kind.EXPIRED),
    (BotoError(301, "(PermanentRedirect)"), FINAL),  # another region
    (BotoError(307, "(TemporaryRedirect)"), PASSING),  # a bucket that is new
    (BotoError(429), PASSING),
    (caused(OSError("SlowDown"), BotoError(503)), PASSING),
    (StatusError(500), PASSING),
    (StatusError(407), FINAL),
    (StatusError(412), FINAL),
    (StatusError(416), PASSING),
    (caused(OSError("x"), OSError("Tunnel connection failed: 407 Proxy Authentication Required")), FINAL),
    (OSError("Tunnel connection failed: 503 Service Unavailable"), PASSING),
    (OSError("Tunnel connection failed: 501 Not Implemented"), Kind.UNPROVEN),
    (OSError("Tunnel connection failed: 404 Not Found"), FINAL),
    (OSError("Tunnel connection failed: 401 Unauthorized"), FINAL),
    (StatusError(501), Kind.UNPROVEN),
    (BotoError(505), Kind.UNPROVEN),
    (OSError("x"), PASSING),
    (ConnectionResetError("x"), PASSING),
    (TimeoutError("x"), PASSING),
    (EOFError("x"), PASSING),
    (IndexError("x"), PASSING),  # s3fs on a permanent stall
    (json.JSONDecodeError("x", "", 0), PASSING),  # an error page where JSON was expected
    (NoCredentialsError("x"), Kind.UNPROVEN),
    (caused(OSError("x"), NoCredentialsError("x")), Kind.UNPROVEN),
    (caused(OSError("x"), socket.gaierror(socket.EAI_NONAME, "Name or service not known")), Kind.UNPROVEN),
    (caused(OSError("x"), socket.gaierror(socket.EAI_AGAIN, "Temporary failure")), AWAY),
    (caused(OSError("x"), ssl.SSLCertVerificationError("certificate has expired")), Kind.UNPROVEN),
    (caused(OSError("x"), ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER]")), Kind.UNPROVEN),
    (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), PASSING),
    (OSError(errno.EHOSTUNREACH, "x"), AWAY),
    (OSError(errno.ENAMETOOLONG, "x"), FINAL),
    (OSError(errno.ELOOP, "x"), FINAL),
    (OSError(errno.EIO, "x"), PASSING),
    (OSError(errno.ESTALE, "x"), PASSING),
    (IsADirectoryError("x"), FINAL),
    (NotADirectoryError("x"), FINAL),
    (caused(OSError("x"), OSError(errno.EMFILE, "x")), Kind.SHORTAGE),
    (OSError(errno.ENFILE, "x"), Kind.SHORTAGE),
    (MemoryError(), Kind.SHORTAGE),
    (RuntimeError("can't start new thread"), Kind.SHORTAGE),
    (ImportError("x"), FINAL),
    (TypeError("x"), FINAL),
]


@pytest.mark.parametrize(("error", "kind"), KINDS, ids=repr)
def test_the_chain_of_causes_decides_the_kind(error: Exception, kind: Kind) -> None:
    assert kind_of(error) is kind


def test_a_circle_of_causes_ends() -> None:
    first, second = OSError("a"), OSError("b")
    first.__cause__, second.__cause__ = second, first
    assert kind_of(first) is Kind.PASSING


class TestPolicy:
    """How long is waited."""

    def test_waits_double_up_to_the_largest(self) -> None:
        policy = RetryPolicy(jitter=False)
        assert [policy.wait_s(tries) for tries in (1, 2, 3, 8, 9, 500)] == [0.1, 0.2, 0.4, 12.8, 20.0, 20.0]

    def test_what_a_server_asks_for_is_waited_at_least_and_not_by_all_alike(self) -> None:
        waits = [RetryPolicy().wait_s(1, 7.0) for _ in range(50)]
        assert all(7 <= wait <= 7.1 for wait in waits)
        assert len(set(waits)) > 25
        assert RetryPolicy.immediate().wait_s(1, 7.0) == 0

    @pytest.mark.parametrize(
        ("value", "seconds"), [("7", 7), ("0", 0), ("soon", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("-3", 0)]
    )
    def test_a_retry_after_is_read_wherever_the_library_has_it(self, value: str, seconds: float) -> None:
        ours, boto, aiohttp = faults.StatusError(503, "", {"Retry-After": value}), BotoError(503), OSError("x")
        boto.response["ResponseMetadata"]["HTTPHeaders"] = {"retry-after": value}
        aiohttp.headers = {"RETRY-AFTER": value}  # type: ignore[attr-defined]
        for error in (ours, boto, aiohttp, caused(OSError("y"), ours)):
            assert retry_after_s(error) == seconds
        in_an_hour = email.utils.formatdate(time.time() + 3600, usegmt=True)
        assert 3590 < retry_after_s(faults.StatusError(503, "", {"Retry-After": in_an_hour})) <= 3600

    def test_jitter_takes_a_random_part_of_the_wait(self) -> None:
        waits = [RetryPolicy().wait_s(5) for _ in range(200)]
        assert all(0 <= wait < 1.6 for wait in waits)
        assert len(set(waits)) > 100
        assert min(waits) < 0.4
        assert max(waits) > 1.2

    @pytest.mark.parametrize(
        "wrong", [{"budget_s": -1.0}, {"timeout_s": 0.0}, {"first_wait_s": 30.0}, {"budget_s": float("nan")}], ids=str
    )
    def test_a_policy_that_cannot_work_is_refused(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ConfigError, match="cannot work: it needs budget_s >= 0"):
            RetryPolicy(**wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="max_tries=0 must be a whole number of at least 1"):
            RetryPolicy(max_tries=0)


DATA = os.urandom(1000)


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "a.tar").write_bytes(DATA)
    return f"{tmp_path}/a.tar"


def reader(then: Exception | None, *faults: Fault | None, retry: RetryPolicy = QUICK) -> StorageReader:
    """One whose reads meet these faults, and then always fail with an error."""
    options = {"target_protocol": "file", "faults": faults, "then": None if then is None else Fault.failing(then)}
    return StorageReader(options, retry)


def read(storage: StorageReader, url: str, first_bytes: int = 100) -> bytes:
    return b"".join(storage.chunks(url, size=len(DATA), first_bytes=first_bytes, max_bytes=200))


def refused() -> ConnectionRefusedError:
    return ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


class TestBeforeAndAfterTheFirstSuccess:
    """Seconds and tries by the rule of `faults`."""

    @pytest.mark.parametrize("first", [None, Fault.failing(ConnectionResetError("x"))], ids=["", "after a reset"])
    @pytest.mark.parametrize("error", [NoCredentialsError("x"), ssl.SSLCertVerificationError("x")], ids=repr)
    def test_what_no_success_has_proven_is_an_error_at_once_and_passes_after_one(
        self, path: str, error: Exception, first: Fault | None
    ) -> None:
        storage = reader(error, *([first] if first else []))
        with pytest.raises(StorageError, match=r"a\.tar, byte 0: cannot be read, and trying again would not help"):
            read(storage, f"faulty://{path}")
        assert storage.num_retries == (first is not None)
        storage = reader(None, None, Fault.failing(error), Fault.failing(error))
        assert read(storage, f"faulty://{path}") == DATA
        assert storage.num_retries >= 2  # new clients begin the schedule again

    def test_a_refused_connection_is_tried_again_for_some_seconds_at_the_start_and_for_the_budget_later(
        self, path: str
    ) -> None:
        began = time.monotonic()
        with pytest.raises(StorageError, match=r"byte 0: nothing accepts connections .*start_s=\.\.\.\), now 0\.2 s"):
            read(reader(refused()), f"faulty://{path}")
        assert time.monotonic() - began < 0.9
        began = time.monotonic()
        with pytest.raises(StorageError, match=r"byte 100: nothing accepts .*budget_s=\.\.\.\), now 1 s"):
            read(reader(refused(), None), f"faulty://{path}")
        assert time.monotonic() - began > 0.9

    def test_a_success_goes_with_the_reader_to_other_processes(self, path: str) -> None:
        url, policy = f"faulty://{path}", RetryPolicy.immediate(7)
        fresh, used = reader(refused(), None, retry=QUICK), reader(refused(), None, retry=QUICK)
        next(iter(used.chunks(url, size=len(DATA), first_bytes=100)))
        for storage, budget in ((fresh, "start_s"), (pickle.loads(pickle.dumps(used)), "budget_s")):
            storage._clients.options["faults"] = ()
            with pytest.raises(StorageError, match=budget):
                read(storage, url)
        restarted = reader(refused(), retry=policy)
        restarted.expect_answers()
        with pytest.raises(StorageError, match="7 tries.*budget_s"):
            read(restarted, url)

    def test_each_web_server_is_a_place_of_its_own(self, proxy: Proxy) -> None:
        storage = StorageReader(retry=QUICK)
        assert storage.size(f"{proxy.url}/a.tar") is not None
        with pytest.raises(StorageError, match="start_s"):
            storage.size(f"http://127.0.0.1:{closed_port()}/a.tar")

    def test_what_may_pass_is_tried_again_at_the_start_too(self, proxy: Proxy) -> None:
        proxy.script([HttpFault("status", status=503), HttpFault("reset", None), HttpFault("status", status=429)])
        storage = StorageReader(retry=QUICK)
        assert len(b"".join(storage.chunks(f"{proxy.url}/a.tar", 0, 1000, size=None))) == 1000
        assert storage.num_retries == 3

    def test_a_wait_that_is_longer_than_what_is_left_of_the_budget_ends_with_it_and_one_last_try(
        self, path: str
    ) -> None:
        policy, reset = RetryPolicy(budget_s=0.3, first_wait_s=20, jitter=False), ConnectionResetError("x")
        storage = reader(None, Fault.failing(reset), retry=policy)
        assert read(storage, f"faulty://{path}") == DATA
        assert storage.num_retries == 1
        with pytest.raises(StorageError, match=r"not a byte in 0 s and 2 tries"):
            read(reader(reset, retry=policy), f"faulty://{path}")
        storage = reader(faults.StatusError(503, "", {"Retry-After": "20"}), retry=policy)
        with pytest.raises(StorageError, match=r"1 try.*server sent Retry-After: 20 s"):  # not before that time
            read(storage, f"faulty://{path}")

    def test_a_server_that_comes_up_within_the_first_seconds_is_waited_for(self) -> None:
        port = closed_port()
        started: list[Proxy] = []

        def start() -> None:
            started.append(Proxy(objects={"/a.tar": DATA}, port=port))

        timer = threading.Timer(0.3, start)
        timer.start()
        storage = StorageReader(retry=RetryPolicy(first_wait_s=0.01, max_wait_s=0.05, start_s=20))
        assert b"".join(storage.chunks(f"http://127.0.0.1:{port}/a.tar", size=len(DATA))) == DATA
        assert storage.num_retries >= 1
        timer.join()
        started[0].close()


def closed_port() -> int:
    """One that nothing listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture
def no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials are found for S3."""
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)


HELD = "http://127.0.0.1:1"
S3 = {"key": "k", "secret": "s", "endpoint_url": HELD, "client_kwargs": {"region_name": "us-east-1"}}
WRONG = [  # URL, options, what is said
    ("x" * 300 + ".tar", {}, "the name is longer than a path can be (OSError: [Errno 36] File name too long"),
    ("{here}", {}, "it is a directory ("),
    ("{here}/a.tar/b.tar", {}, "a part of the path is a file, not a directory"),
    ("{here}/circle", {}, "its symbolic links lead in a circle"),
    ("s3:/bucket/a.tar", {}, "there is no such file or object (FileNotFoundError"),
    ("s3:/bucket/a.tar", {}, "named with two slashes: s3://)"),
    ("a::b", {}, "no storage is known as a://; a URL with :: in it is a chain, as simplecache::s3://bucket/a.tar; a"),
    ("simplecache::nosuch://a", {}, "no storage is known as nosuch://"),
    ("http://", {}, "the URL or a storage option is not what the storage's client takes"),
    ("http://127.0.0.1:99999/a.tar", {}, "the URL or a storage option is not what"),
    ("https://{server}/a.tar", {}, "TLS cannot be agreed on with the server"),
    ("s3://bucket/a.tar", {"endpoint_url": HELD}, "no credentials were found (NoCredentialsError"),
    ("s3://UPPER_bucket!/a.tar", S3, "the URL or a storage option is not what the storage's client takes (ParamValid"),
    ("s3://bucket/a.tar", {**S3, "endpoint_url": "localhost"}, "the URL or a storage option is not what"),
    ("s3://bucket/a.tar", {**S3, "profile": "nobody"}, "the URL or a storage option is not what"),
]


@pytest.mark.usefixtures("no_keys")
@pytest.mark.parametrize("ask", ["size", "chunks"])
@pytest.mark.parametrize(("url", "options", "said"), WRONG, ids=lambda value: str(value)[:40])
def test_what_cannot_pass_is_one_error_at_once_in_our_own_words(
    url: str, options: dict[str, Any], said: str, ask: str, path: str, proxy: Proxy
) -> None:
    here = Path(path).parent
    (here / "circle").symlink_to("circle")
    storage = StorageReader(options)
    url = url.format(here=here, server=proxy.url.removeprefix("http://"))
    with pytest.raises((StorageError, ShardNotFoundError, ConfigError)) as raised:
        storage.size(url) if ask == "size" else list(storage.chunks(url, size=10))
    assert said in str(raised.value)
    assert str(raised.value).startswith(url)
    assert "None" not in str(raised.value).partition(" (")[0]
    assert storage.num_retries == 0


def test_a_document_given_as_a_shard_is_not_printed_whole(caplog: pytest.LogCaptureFixture) -> None:
    document = "It was a dark and stormy night;\nthe rain fell in torrents. " * 200
    for text in (document, f"memory://{document}", f"It says https://{document}"):
        with pytest.raises((StorageError, ConfigError, ShardNotFoundError)) as raised:
            StorageReader().read(text)
        assert "\n" not in str(raised.value)
        assert "It was a dark" in str(raised.value) or "It says" in str(raised.value)
        assert len(str(raised.value)) < 1500
    assert caplog.text == ""


def test_no_log_or_error_speaks_of_byte_none(path: str, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object, **__: object) -> None:
        raise EOFError("down")

    storage = reader(None, retry=RetryPolicy.immediate(3))
    storage._clients.filesystem(f"faulty://{path}")[0].info = fail
    with pytest.raises(StorageError, match=r"a\.tar: not an answer in 0 s and 3 tries, last EOFError: down"):
        storage.size(f"faulty://{path}")
    assert "a.tar: try 2 failed" in caplog.text
    assert "None" not in caplog.text


def test_a_name_that_is_not_utf_8_can_be_printed() -> None:
    with pytest.raises(ShardNotFoundError) as raised:
        StorageReader().size("/nowhere/\udcff.tar")
    assert "/nowhere/\\udcff.tar" in str(raised.value)
    str(raised.value).encode()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    running = Proxy(objects={"/a.tar": os.urandom(1000)})
    yield running
    running.close()

