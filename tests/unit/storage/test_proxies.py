"""HTTP_PROXY, HTTPS_PROXY and NO_PROXY: which requests go through a proxy, and what is said where it does not work."""

import base64
import os
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest
from support.forwarding import ForwardProxy
from support.proxy import Proxy

from streampack.errors import ConfigError, StorageError
from streampack.storage.access import StorageReader
from streampack.storage.options import RetryPolicy
from streampack.storage.proxies import proxy_of

DATA = os.urandom(2000)
QUICK = RetryPolicy(first_wait_s=0.01, max_wait_s=0.05, start_s=0.1)


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[Proxy]:
    page = b'<a href="a.tar">a</a>'
    running = Proxy(objects={"/d/a.tar": DATA, "/d/": page})
    yield running
    running.close()


@pytest.fixture
def forward() -> Iterator[ForwardProxy]:
    running = ForwardProxy()
    yield running
    running.close()


def read(storage: StorageReader, url: str) -> bytes:
    return b"".join(storage.chunks(url, size=len(DATA), first_bytes=500))


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy"])
def test_sizes_listings_and_bytes_come_through_the_proxy(
    name: str, server: Proxy, forward: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{server.url}/d/a.tar"
    for given in (forward.url, forward.url.removeprefix("http://")):
        monkeypatch.setenv(name, given)
        for ask in (
            lambda: StorageReader().size(url) == len(DATA),
            lambda: StorageReader().listing(f"{server.url}/d/*.tar") == [(url, None)],
            lambda: read(StorageReader(), url) == DATA,
            lambda: read(StorageReader({"client_kwargs": {}}), url) == DATA,  # by fsspec's own client
        ):
            forward.asked.clear()
            assert ask()
            assert forward.asked
            assert all(server.url in asked for asked in forward.asked)


def test_what_the_proxy_is_not_meant_for_does_not_pass_it(
    server: Proxy, forward: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{server.url}/d/a.tar"
    monkeypatch.setenv("HTTPS_PROXY", forward.url)
    assert read(StorageReader(), url) == DATA
    monkeypatch.setenv("HTTP_PROXY", forward.url)
    for listed in ("127.0.0.1", "*", f"other.org,{server.url.removeprefix('http://')}"):
        monkeypatch.setenv("NO_PROXY", listed)
        assert read(StorageReader(), url) == DATA
        assert StorageReader().size(url) == len(DATA)
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert read(StorageReader(), url) == DATA
    assert forward.asked == []


def test_a_redirect_goes_the_way_of_its_own_host(
    server: Proxy, forward: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Redirects(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", f"{server.url}/d/a.tar")
            self.send_header("Content-Length", "0")
            self.end_headers()

    first = ForwardProxy()  # any server will do
    first.RequestHandlerClass = Redirects
    monkeypatch.setenv("HTTP_PROXY", forward.url)
    monkeypatch.setenv("NO_PROXY", server.url.removeprefix("http://"))
    assert read(StorageReader(), f"{first.url}/a.tar") == DATA
    assert forward.asked
    assert all(asked == f"GET {first.url}/a.tar" for asked in forward.asked)
    assert {get.headers["Host"] for get in server.gets} == {server.url.removeprefix("http://")}
    first.close()


def test_a_tunnel_is_asked_for_https(server: Proxy, forward: ForwardProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", forward.url)
    host = server.url.removeprefix("http://")
    with pytest.raises(StorageError, match="TLS cannot be agreed on with the server"):  # reached, but it speaks none
        read(StorageReader(retry=QUICK), f"https://{host}/d/a.tar")
    assert forward.asked == [f"CONNECT {host}"]


def test_user_and_password_go_to_the_proxy_and_nowhere_else(
    server: Proxy, forward: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", forward.url.replace("://", "://me:p%40ss-word@"))
    assert read(StorageReader(), f"{server.url}/d/a.tar") == DATA
    assert StorageReader().size(f"{server.url}/d/a.tar") == len(DATA)
    assert {login and base64.b64decode(login.split()[1]) for login in forward.logins} == {b"me:p@ss-word"}
    assert not any("Proxy-Authorization" in get.headers for get in server.gets)


@pytest.mark.parametrize(
    ("status", "said"),
    [(407, r"the proxy asks for credentials \(.*407.*HTTP_PROXY or HTTPS_PROXY"), (403, "trying again would not help")],
)
@pytest.mark.parametrize("protocol", ["http", "https"])
def test_a_proxy_that_refuses_is_an_error_at_once(
    status: int, said: str, protocol: str, server: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = ForwardProxy(status)
    monkeypatch.setenv(f"{protocol}_proxy", refusing.url)
    url = f"{server.url}/d/a.tar".replace("http://", f"{protocol}://")
    for ask in (lambda storage: read(storage, url), lambda storage: storage.size(url)):
        storage = StorageReader()
        with pytest.raises(StorageError, match=said):
            ask(storage)
        assert storage.num_retries == 0
    refusing.close()


@pytest.mark.parametrize("status", [404, 501])
def test_a_proxy_that_refuses_to_lead_to_a_host_is_named(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = ForwardProxy(status)
    monkeypatch.setenv("HTTPS_PROXY", refusing.url.replace("://", "://me:pass-word@"))
    for ask in (read, lambda storage, url: storage.size(url)):
        storage = StorageReader()
        with pytest.raises(StorageError, match=r"proxy http://me:\*\*\*@127\.0\.0\.1:\d+ refuses to lead") as raised:
            ask(storage, "https://host.invalid/a.tar")
        assert "pass-word" not in str(raised.value) and "no such file" not in str(raised.value)
        assert storage.num_retries == 0
    refusing.close()


def test_a_proxy_of_an_unknown_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setenv("http_proxy", "http://no-such-proxy.invalid:3128")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for ask in (read, lambda storage, url: storage.size(url)):
        with pytest.raises(StorageError, match=r"in the proxy http://no-such-proxy\.invalid:3128 .*NO_PROXY"):
            ask(StorageReader(), "http://host.invalid/a.tar")


def test_what_a_proxy_answers_for_a_server_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = ForwardProxy(505)
    monkeypatch.setenv("http_proxy", refusing.url)
    storage = StorageReader()
    with pytest.raises(StorageError, match=rf"the server, or a proxy before it.*the proxy {refusing.url} for it"):
        read(storage, "http://host.invalid/a.tar")
    assert storage.num_retries == 0
    refusing.close()


def test_a_proxy_that_is_not_there_is_named_without_its_password(
    server: Proxy, forward: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward.close()
    monkeypatch.setenv("HTTP_PROXY", forward.url.replace("://", "://me:pass-word@"))
    with pytest.raises(StorageError) as raised:
        read(StorageReader(retry=QUICK), f"{server.url}/d/a.tar")
    assert f"the environment names the proxy {forward.url.replace('://', '://me:***@')} for it" in str(raised.value)
    assert "pass-word" not in str(raised.value)


def test_what_is_no_web_proxy_is_an_error_that_names_it(server: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1080")
    for ask in (StorageReader().size, lambda url: read(StorageReader(), url)):
        with pytest.raises(ConfigError, match=r"HTTP_PROXY=socks5://127\.0\.0\.1:1080 is not the URL of a web proxy"):
            ask(f"{server.url}/d/a.tar")
    assert proxy_of("s3://bucket/a.tar") is None  # botocore looks for itself
    assert proxy_of("/a.tar") is None
