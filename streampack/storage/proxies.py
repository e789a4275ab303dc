"""The web proxy that the environment names for an address: HTTP_PROXY, HTTPS_PROXY and NO_PROXY, in either case.

In: a URL. Out: the proxy's URL. The rules are those of Python's urllib: the URL's protocol decides which variable
counts, and NO_PROXY lists hosts and domains (`*`: all), without ranges of addresses. ALL_PROXY does not count, as
botocore does not follow it either.
"""

import urllib.parse
import urllib.request

from streampack.errors import ConfigError
from streampack.storage.redaction import named


def proxy_of(url: str) -> str | None:
    """The proxy through which a web URL is reached, with its user and password; None: none, or not a web URL.

    Raises:
        ConfigError: the environment names something that is not a web proxy.
    """
    protocol, _, rest = url.partition("://")
    if protocol not in ("http", "https"):
        return None
    proxy = urllib.request.getproxies().get(protocol)
    host = urllib.parse.urlsplit(f"//{rest}").netloc.rpartition("@")[2]
    if not proxy or urllib.request.proxy_bypass(host):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        raise ConfigError(
            f"{protocol.upper()}_PROXY={named(proxy)} is not the URL of a web proxy (http://host:port); name one, or "
            f"list the host in NO_PROXY",
            url=named(url),
        )
    return proxy
