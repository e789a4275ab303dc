"""A web server with faults on order: it serves its own objects, or what a real server behind it answers.

    proxy = Proxy(objects={"/a.tar": data})        or Proxy(upstream="http://127.0.0.1:8333")
    proxy.script([None, Fault("status", status=503), None])     what becomes of the next GETs of objects, in order
    proxy.always = Fault("reset")                               of all others; None: nothing
    proxy.gets                                                  what was asked for: (path, first byte, last byte)

A fault is one of
    reset, close, stall    after `after` bytes of the body; None: before the head
    status                 an answer with `status`, `headers` and `body`
    throttle, delay        pieces of 16 KiB with `seconds` between them; `seconds` before the head
    flip                   the byte at `at` of the object is another one; `last`: after that no fault comes any more
    whole                  Range is ignored: 200 and the whole object (`objects` must have it)
    unsized                no Content-Length, and the body ends after `after` bytes
    length                 Content-Length is off by `by`, and the connection ends with the body
    call                   `action` is called, and then all is as it should be
"""

import contextlib
import functools
import hashlib
import http.client
import socket
import struct
import threading
import time
import urllib.parse
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one answer."""

    kind: str
    after: int | None = 0
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    seconds: float = 0.0
    at: int = 0
    by: int = 0
    last: bool = False
    action: Callable[[], object] | None = None


class Get(NamedTuple):
    """One request for bytes of an object."""

    path: str
    first: int
    last: int
    headers: Mapping[str, str]
    at: float
    """When it came, by the monotonic clock."""


class Proxy(ThreadingHTTPServer):
    """Runs in threads of its own until `close`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        objects: dict[str, bytes] | None = None,
        upstream: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        super().__init__((host, port), _Handler)
        self.objects = objects if objects is not None else {}
        self.upstream = upstream and urllib.parse.urlsplit(upstream).netloc
        self.url = f"http://{host}:{self.server_port}"
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.under_way = self.most_under_way = 0
        self.connections: set[object] = set()
        self.deaf: set[object] = set()
        self.reset()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def reset(self) -> None:
        """Forget faults and requests."""
        self.gets: list[Get] = []
        self.faults: deque[Fault | None] = deque()
        self.always: Fault | None = None
        self.most_under_way = 0

    def script(self, faults: Iterable[Fault | None]) -> None:
        self.faults.extend(faults)

    def silence(self) -> None:
        """Connections that are open now get no more answers, and nobody tells the clients."""
        with self.lock:
            self.deaf |= self.connections

    def close(self) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that hang up are what this is about


@functools.lru_cache(maxsize=8)
def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Proxy

    def log_message(self, *_: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self)

    def do_HEAD(self) -> None:
        status, headers, _ = self._forward() if self.server.upstream else self._own()
        self._head(status, headers)

    def do_GET(self) -> None:
        if self in self.server.deaf:
            return self._break("stall")
        asked = self.headers.get("Range", "")
        fault = None
        with self.server.lock:
            self.server.under_way += 1
            self.server.most_under_way = max(self.server.most_under_way, self.server.under_way)
            if asked.startswith("bytes="):  # only what reads an object, no listing
                first, last = (int(number) for number in asked.removeprefix("bytes=").split("-"))
                path = urllib.parse.unquote(self.path)
                self.server.gets.append(Get(path, first, last, dict(self.headers), time.monotonic()))
                fault = self.server.faults.popleft() if self.server.faults else self.server.always
        try:
            self._answer(fault or Fault("none"))
        finally:
            with self.server.lock:
                self.server.under_way -= 1
        return None

    do_PUT = do_POST = do_GET  # noqa: N815

    def _answer(self, fault: Fault) -> None:
        if fault.after is None and fault.kind in ("reset", "close", "stall"):
            return self._break(fault.kind)
        if fault.kind == "status":
            self._head(fault.status, {**fault.headers, "Content-Length": str(len(fault.body))})
            self.wfile.write(fault.body)
            return None
        if fault.kind == "delay":
            self.server.stopping.wait(fault.seconds)
        if fault.action is not None:
            fault.action()
        status, headers, body = self._forward() if self.server.upstream else self._own()
        if fault.kind == "whole":
            body = next(data for path, data in self.server.objects.items() if path in urllib.parse.unquote(self.path))
            headers = {name: value for name, value in headers.items() if name.lower() != "content-range"}
            status = 200
        if fault.kind == "flip" and status == 206:
            start = int(headers["Content-Range"].split()[1].split("-")[0])
            if start <= fault.at < start + len(body):
                changed = bytearray(body)
                changed[fault.at - start] ^= 0x55
                body = bytes(changed)
                if fault.last:
                    with self.server.lock:
                        self.server.faults.clear()
        headers["Content-Length"] = str(len(body) + fault.by)
        if fault.kind == "unsized":
            del headers["Content-Length"]
        if fault.kind in ("unsized", "length"):
            headers["Connection"] = "close"
        self._head(status, headers)
        if fault.kind in ("reset", "close", "stall", "unsized"):
            self.wfile.write(body[: fault.after])
            return self._break("close" if fault.kind == "unsized" else fault.kind)
        for at in range(0, len(body), 16_384 if fault.kind == "throttle" else 2**30):
            self.wfile.write(body[at : at + 16_384] if fault.kind == "throttle" else body)
            time.sleep(fault.seconds if fault.kind == "throttle" else 0)
        self.close_connection = self.close_connection or fault.kind == "length"
        return None

    def _break(self, kind: str) -> None:
        self.close_connection = True
        if kind == "stall":
            self.server.stopping.wait(30)
        elif kind == "reset":
            time.sleep(0.02)  # what was written before is read before
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.wfile.close()
            self.rfile.close()
            self.connection.close()

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _own(self) -> tuple[int, dict[str, str], bytes]:
        data = self.server.objects.get(urllib.parse.unquote(self.path.partition("?")[0]))
        if data is None:
            return 404, {"Content-Length": "0"}, b""
        headers = {"ETag": _etag(data), "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if not asked:
            return 200, {**headers, "Content-Length": str(len(data))}, data
        first, last = (int(number) for number in asked.removeprefix("bytes=").split("-"))
        body = data[first : last + 1]
        if not body:
            return 416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"}, b""
        headers["Content-Range"] = f"bytes {first}-{first + len(body) - 1}/{len(data)}"
        return 206, {**headers, "Content-Length": str(len(body))}, body

    def _forward(self) -> tuple[int, dict[str, str], bytes]:
        length = int(self.headers.get("Content-Length") or 0)
        sent = self.rfile.read(length) if length else None
        with contextlib.closing(http.client.HTTPConnection(self.server.upstream, timeout=30)) as connection:
            # The Host stays as it came: it is part of what S3 clients sign.
            connection.request(self.command, self.path, body=sent, headers=dict(self.headers))
            answer = connection.getresponse()
            body = answer.read()
            dropped = ("connection", "transfer-encoding") + (("content-length",) if self.command != "HEAD" else ())
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in dropped}
        if self.command != "HEAD":
            headers["Content-Length"] = str(len(body))
        return answer.status, headers, body
