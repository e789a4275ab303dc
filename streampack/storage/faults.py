"""What an error of a storage means: whether another try may help, for how long, and what a server asks for.

In: an exception of any library, with its chain of causes. Out: its kind, seconds.
Never: a decision by one library's types alone: the backends' exceptions share no base class and hide each other, so the
whole chain is looked through, and an HTTP status counts before everything else.

The rule of retries. A **success** is an answer from the same place (a web server, or all that one other protocol
reaches) in this process, or in one that has started it: workers know that the run has reached its storage.

    kind       what                                                before the first success    after it
    passing    reset, stall, cut or garbled answer, 408, 409,      tried again for `budget_s`  the same
               425, 429, other 5xx, unknown errors
    away       connections refused, no route, no name server       for `start_s`               for `budget_s`
    unproven   no credentials, unknown host, TLS refused,          an error at once            for `budget_s`,
               options that make no client; 501, 505, 510, 511                                 with new clients
    refused    403                                                 an error at once            once, with new clients
    expired    401, what says "expired"                            once, with new clients      the same
    shortage   no descriptor, thread or memory left in this        for `SHORTAGE_S`; what is   the same
               process or on this machine                          idle is closed
    missing    404, no such file                                   an error at once            the same
    final      other 3xx, 4xx; names, options that cannot work     an error at once            the same
"""

import email.utils
import errno
import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from enum import Enum, auto

from streampack.storage import descriptors
from streampack.storage.libraries import aiohttp, botocore

SHORTAGE_S = 10.0
"""Seconds in which other parts of the program may give back what there is none of."""

_PASSING_STATUS = frozenset({307, 408, 409, 416, 421, 423, 425, 429})
_UNPROVEN_STATUS = frozenset({501, 505, 510, 511})
"""The server, or a proxy before it, does not do such things, or first wants a person to log in."""
_MISSING_CREDENTIALS = frozenset({"NoCredentialsError", "DefaultCredentialsError"})
"""Exceptions of botocore and google-auth, by name, as these libraries may not be installed."""
_FINAL_NAMES = frozenset({"ParamValidationError", "PartialCredentialsError", "ProfileNotFound"})
"""Of botocore."""
KNOWN_BY_NAME = _MISSING_CREDENTIALS | _FINAL_NAMES | {"RefreshError"}

_SHORT_OF = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_AWAY = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL})
_NO_SUCH_HOST = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})
_WRONG_NAME = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.ENODEV, errno.ENOTSUP})
_WRONG = (
    *(IsADirectoryError, NotADirectoryError, ImportError, TypeError, ValueError, NotImplementedError),
    http.client.InvalidURL,
)
_LOST_TLS = ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError, ssl.SSLWantReadError, ssl.SSLWantWriteError
"""Connections that ended, not answers that were refused."""


class Kind(Enum):
    """The rows of the table above."""

    PASSING = auto()
    AWAY = auto()
    UNPROVEN = auto()
    REFUSED = auto()
    EXPIRED = auto()
    SHORTAGE = auto()
    MISSING = auto()
    FINAL = auto()


class UnmadeError(Exception):
    """A client could not be made; its cause says why."""


class StatusError(OSError):
    """An answer that is a refusal: its HTTP status, its headers and the beginning of its body."""

    def __init__(self, status: int, said: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"HTTP status {status}" + (f": {said}" if said else ""))
        self.status = status
        self.headers = dict(headers or {})


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        within = next((value for value in error.args if isinstance(value, BaseException)), None)  # urllib3's SSLError
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__) or within


def statuses(error: BaseException) -> list[int]:
    """HTTP statuses that the error and its causes carry, each library in its own way, outermost first."""
    found = []
    for link in causes(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict):  # botocore
            values = [response.get("ResponseMetadata", {}).get("HTTPStatusCode")]
        else:
            values = [getattr(link, "status", None), getattr(link, "status_code", None)]
            values.append(getattr(response, "status_code", None))
            if not any(values):  # aiohttp warns at the mere sight of `code`
                values.append(getattr(link, "code", None))
        values.append(tunnel_status(link))
        found += [int(str(value)) for value in values if str(value).isdigit() and 300 <= int(str(value)) < 600]
    return found


def kind_of(error: BaseException) -> Kind:
    """What the error means for another try."""
    chain = list(causes(error))
    if any(aiohttp.is_garbled_answer(link) for link in chain):
        return Kind.PASSING
    if found := statuses(error):
        kind = _kind_of_status(found[0], chain)
        # What a proxy answers to CONNECT says nothing of the object or of the storage's credentials.
        may_pass = kind in (Kind.PASSING, Kind.UNPROVEN)
        return kind if may_pass or all(tunnel_status(link) is None for link in chain) else Kind.FINAL
    if is_shortage(error):
        return Kind.SHORTAGE
    if any(type(link).__name__ in _FINAL_NAMES or "too many redirects" in str(link) for link in chain):
        return Kind.FINAL
    if lacks_credentials(error) or fails_tls(error) or has_unknown_host(error) or is_unusable(error):
        return Kind.UNPROVEN
    if any(isinstance(link, socket.gaierror) or _number(link) in _AWAY for link in chain):
        return Kind.AWAY
    # fsspec's http turns refused connections into FileNotFoundError: the network's error counts, not its translation.
    for link in chain:
        network = isinstance(link, ConnectionError | TimeoutError) or aiohttp.is_its_own(link)
        if (network and not isinstance(link, ValueError)) or isinstance(link, json.JSONDecodeError):
            return Kind.PASSING
    return _kind_of_local(chain)


def _kind_of_status(status: int, chain: list[BaseException]) -> Kind:
    if status in _UNPROVEN_STATUS:
        return Kind.UNPROVEN
    if not 300 <= status < 500 or status in _PASSING_STATUS:
        return Kind.PASSING
    if any("RequestTimeout" in str(link) for link in chain):  # S3 says so with 400
        return Kind.PASSING
    if status == 401 or any("expired" in str(link).lower() for link in chain):
        return Kind.EXPIRED
    return {403: Kind.REFUSED, 404: Kind.MISSING, 410: Kind.MISSING}.get(status, Kind.FINAL)


def _kind_of_local(chain: list[BaseException]) -> Kind:
    """Of what no server and no network has said."""
    if isinstance(chain[0], FileNotFoundError) and isinstance(chain[0].__cause__, TypeError | ValueError):
        return Kind.FINAL  # fsspec's http says so of a malformed URL, and of an option that it does not know
    if any(isinstance(link, FileNotFoundError) for link in chain):
        return Kind.MISSING
    if any(isinstance(link, PermissionError) for link in chain):
        has_expired = any("expired" in str(link).lower() for link in chain)
        return Kind.EXPIRED if has_expired else Kind.REFUSED
    is_wrong = any(isinstance(link, _WRONG) or _number(link) in _WRONG_NAME for link in chain)
    if is_wrong:
        return Kind.FINAL
    return Kind.UNPROVEN if any(isinstance(link, UnmadeError) for link in chain) else Kind.PASSING


def tunnel_status(error: BaseException) -> int | None:
    """The status with which a proxy refused to lead to a host (CONNECT); None: the error does not say so."""
    if aiohttp.is_of_proxy(error):
        return getattr(error, "status", None)
    said = str(error).partition("Tunnel connection failed: ")[2][:3] if type(error) is OSError else ""
    return int(said) if said.isdigit() else None  # http.client's words


def lacks_credentials(error: BaseException) -> bool:
    """Whether no credentials were found at all."""
    return any(type(link).__name__ in _MISSING_CREDENTIALS for link in causes(error))


def is_unusable(error: BaseException) -> bool:
    """Whether the library cannot make a client, or a token, of the options and of what it finds on this machine."""
    chain = list(causes(error))
    refused = any(type(link).__name__ == "RefreshError" and not getattr(link, "retryable", False) for link in chain)
    return refused or any(botocore.is_unusable(link) for link in chain)


def has_unknown_host(error: BaseException) -> bool:
    """Whether the name server knows no such host; one that does not answer does not say so."""
    return any(isinstance(link, socket.gaierror) and link.errno in _NO_SUCH_HOST for link in causes(error))


def fails_tls(error: BaseException) -> bool:
    """Whether the two sides cannot agree on TLS: a certificate that is not trusted, another protocol or version."""
    return any(isinstance(link, ssl.SSLError) and not isinstance(link, _LOST_TLS) for link in causes(error))


def is_shortage(error: BaseException) -> bool:
    """Whether this process or machine has no descriptor, thread or memory left."""
    chain = list(causes(error))
    if any(isinstance(link, MemoryError) or _number(link) in _SHORT_OF for link in chain):
        return True
    if any(isinstance(link, RuntimeError) and "start new thread" in str(link) for link in chain):
        return True
    return descriptors.are_used_up()


def _number(error: BaseException) -> int | None:
    return error.errno if isinstance(error, OSError) and not isinstance(error, socket.gaierror | ssl.SSLError) else None


def is_throttled(error: BaseException) -> bool:
    """Whether the server says that it is asked more often than it likes."""
    return bool({429, 503} & set(statuses(error)[:1]))


def is_past_end(error: BaseException) -> bool:
    """Whether the range begins after the object's end."""
    return 416 in statuses(error) or "InvalidRange" in str(error)


def retry_after_s(error: BaseException) -> float:
    """Seconds of the server's `Retry-After`, 0 where it sent none."""
    for link in causes(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            headers = response.get("ResponseMetadata", {}).get("HTTPHeaders")
        else:
            headers = getattr(link, "headers", None)
        if isinstance(headers, Mapping):
            for name, value in headers.items():
                if str(name).lower() == "retry-after":
                    return _seconds(str(value))
    return 0.0


def _seconds(value: str) -> float:
    """`Retry-After` is a number of seconds or a date."""
    if value.strip().isdigit():
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0
