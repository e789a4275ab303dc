"""The connections of urllib3 that a process keeps to web servers, directly or through the proxies of the environment.

In: a URL and headers. Out: a response of urllib3 whose body was not read yet.
Never: a retry or a total time limit of urllib3's own; a redirect that goes through the proxy of the host before it.

As many connections are open at once as threads ask: the consumer's and those that read ahead (`readahead`), never one
for each lane. The idle ones are kept for the next request: at most `_PER_HOST` for each of `_HOSTS` servers.
"""

import urllib.parse
from typing import Any

import urllib3

from streampack.storage.proxies import proxy_of
from streampack.storage.readahead import MOST_THREADS

_HOSTS = 16
_PER_HOST = MOST_THREADS + 8
"""One more than read at once, and some for threads of the user."""


class _Routed:
    """A manager that looks for each address, also for that of a redirect, which manager leads there."""

    connections: "Connections"

    def urlopen(self, method: str, url: str, redirect: bool = True, **more: Any) -> Any:  # noqa: FBT002 - urllib3's own
        manager = self.connections.manager(url)
        return super(_Routed, manager).urlopen(method, url, redirect=redirect, **more)  # type: ignore[misc]  # a pool's


class _Direct(_Routed, urllib3.PoolManager):  # type: ignore[misc]  # a narrower urlopen, as urllib3's own managers have
    """Connections to servers."""


class _Proxied(_Routed, urllib3.ProxyManager):  # type: ignore[misc]  # the same
    """Connections through one proxy."""


class Connections:
    """Requests over connections that are kept."""

    def __init__(self, timeout_s: float) -> None:
        self._managers: dict[str | None, Any] = {}
        self._options: dict[str, Any] = {
            "num_pools": _HOSTS,
            "maxsize": _PER_HOST,
            "retries": urllib3.Retry(
                None,
                connect=0,
                read=0,
                status=0,
                other=0,
                redirect=10,
                respect_retry_after_header=False,
                # The Host is that of the first address where a proxy was asked for it.
                remove_headers_on_redirect=[*urllib3.Retry.DEFAULT_REMOVE_HEADERS_ON_REDIRECT, "Host"],
            ),
            "timeout": urllib3.Timeout(connect=min(timeout_s, 10.0), read=timeout_s),  # read: without a byte
        }

    def get(self, url: str, headers: dict[str, str]) -> Any:
        """The response to a GET; redirects are followed."""
        return self.manager(url).request("GET", url, headers=headers, preload_content=False)

    def manager(self, url: str) -> Any:
        """What leads to the URL: one for each proxy, and one for direct connections."""
        proxy = proxy_of(url)
        found = self._managers.get(proxy)
        if found is None:
            found = self._managers.setdefault(proxy, self._make(proxy))
        return found

    def _make(self, proxy: str | None) -> Any:
        if proxy is None:
            made: Any = _Direct(**self._options)
        else:
            parts = urllib.parse.urlsplit(proxy)
            user, at, host = parts.netloc.rpartition("@")
            login = urllib3.make_headers(proxy_basic_auth=urllib.parse.unquote(user)) if at else None
            made = _Proxied(parts._replace(netloc=host).geturl(), proxy_headers=login, **self._options)
        made.connections = self
        return made
