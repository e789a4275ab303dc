"""A forward proxy as HTTP_PROXY and HTTPS_PROXY name one: requests with a whole URL, and CONNECT.

Its `asked` are what it was asked for: "GET http://host/path", "CONNECT host:port"; its `logins` the
`Proxy-Authorization` of each of these requests, None where there was none.
"""

import contextlib
import http.client
import select
import socket
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ForwardProxy(ThreadingHTTPServer):
    """Runs in threads of its own until `close`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, status: int | None = None) -> None:
        """`status`: what it answers instead of forwarding."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = status
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []
        self.logins: list[str | None] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients may hang up


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ForwardProxy

    def log_message(self, *_: object) -> None:
        pass

    def _note(self) -> bool:
        """Whether the request is to be forwarded."""
        self.server.asked.append(f"{self.command} {self.path}")
        self.server.logins.append(self.headers.get("Proxy-Authorization"))
        if self.server.status is not None:
            self.send_error(self.server.status)
        return self.server.status is None

    def do_GET(self) -> None:
        if not self._note():
            return
        target = urllib.parse.urlsplit(self.path)
        asked = target._replace(scheme="", netloc="").geturl()
        length = int(self.headers.get("Content-Length") or 0)
        sent = self.rfile.read(length) if length else None
        headers = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy-")}
        with contextlib.closing(http.client.HTTPConnection(target.netloc, timeout=30)) as connection:
            connection.request(self.command, asked, body=sent, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815

    def do_CONNECT(self) -> None:
        if not self._note():
            return
        host, _, port = self.path.rpartition(":")
        with contextlib.closing(socket.create_connection((host, int(port)), timeout=30)) as there:
            self.send_response_only(200)
            self.end_headers()
            ends = {self.connection: there, there: self.connection}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    data = end.recv(65536)
                    if not data:
                        self.close_connection = True
                        return
                    ends[end].sendall(data)
