"""What an error of a storage means: whether another try may help, how long to wait, which text may be shown.

In: an exception of any library, with its chain of causes. Out: yes or no, seconds, a text without secrets.
Never: a decision by one library's types alone: the backends' exceptions share no base class and hide each other, so the
whole chain is looked through, and an HTTP status counts before everything else.

    passing   reset, stall, cut or garbled answer, 408, 409, 425, 429, 5xx, unknown errors         asked for again
    renewed   401, what says "expired", 403 after a success                         once, with new clients
    missing   no credentials found before the first success                 passing for 60 s, as sidecars come up
    final     403, 404 and other 4xx, wrong arguments                                                an error at once
"""

import email.utils
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping

from streampack.storage.libraries import aiohttp

_PASSING_STATUS = frozenset({408, 409, 416, 421, 423, 425, 429})
_MISSING_CREDENTIALS = frozenset({"NoCredentialsError", "DefaultCredentialsError"})
"""Exceptions of botocore and google-auth, by name, as these libraries may not be installed."""
FINAL_NAMES = _MISSING_CREDENTIALS | {
    "ParamValidationError",  # botocore
    "PartialCredentialsError",
    "ProfileNotFound",
}
_URL_PASSWORD = re.compile(r"(://[^/:@\s]*:)([^/@\s]*)@")
_URL_SECRET = re.compile(r"(?i)([?&][^=&\s]*(?:sig|token|key|secret|passw|credential)[^=&\s]*=)([^&#\s'\")]*)")
_SECRET_OPTION = re.compile(
    r"(?i)key|secret|token|passw|credential|auth|cookie|sas|signature|connection_string|headers"
)


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
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


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
        found += [int(str(value)) for value in values if str(value).isdigit() and 300 <= int(str(value)) < 600]
    return found


def is_final(error: BaseException) -> bool:
    """Whether trying again is pointless."""
    chain = list(causes(error))
    if any(aiohttp.is_garbled_answer(link) for link in chain):
        return False
    found = statuses(error)
    if found:
        if any("RequestTimeout" in str(link) for link in chain):  # S3 says so with 400
            return False
        return 400 <= found[0] < 500 and found[0] not in _PASSING_STATUS
    if any(type(link).__name__ in FINAL_NAMES for link in chain):
        return True
    # fsspec's http turns refused connections into FileNotFoundError: the network's error counts, not its translation.
    for link in chain:
        network = isinstance(link, ConnectionError | TimeoutError) or aiohttp.is_its_own(link)
        if (network and not isinstance(link, ValueError)) or isinstance(link, json.JSONDecodeError):
            return False
    final = FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError
    mistakes = ImportError, TypeError, ValueError, NotImplementedError
    return any(isinstance(link, final + mistakes) for link in chain)


def is_missing(error: BaseException) -> bool:
    """Whether a final error says that there is no such object."""
    found = statuses(error)
    return found[0] in (404, 410) if found else any(isinstance(link, FileNotFoundError) for link in causes(error))


def is_refused(error: BaseException) -> bool:
    """Whether a final error says that these credentials do not open it."""
    found = statuses(error)
    return found[0] in (401, 403) if found else any(isinstance(link, PermissionError) for link in causes(error))


def is_expired(error: BaseException) -> bool:
    """Whether the credentials have expired, so that fresh ones may work."""
    return statuses(error)[:1] == [401] or any("expired" in str(link).lower() for link in causes(error))


def lacks_credentials(error: BaseException) -> bool:
    """Whether no credentials were found at all."""
    return any(type(link).__name__ in _MISSING_CREDENTIALS for link in causes(error))


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


def secrets_in(options: Mapping[str, object]) -> tuple[str, ...]:
    """The texts among storage options that must be shown nowhere, longest first."""
    found: set[str] = set()

    def collect(value: object, *, secret: bool) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                collect(inner, secret=secret or _SECRET_OPTION.search(str(name)) is not None)
        elif secret and isinstance(value, str) and len(value) >= 6:  # "anon" and the like are not secret
            found.add(value)

    collect(options, secret=False)
    return tuple(sorted(found, key=len, reverse=True))


def secrets_of(url: str) -> tuple[str, ...]:
    """Secrets in a URL, which must be shown nowhere: a server may repeat them in its error."""
    found = [*_URL_PASSWORD.findall(url), *_URL_SECRET.findall(url)]
    return tuple(value for _, value in found if len(value) >= 6)


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without secrets: those given, and passwords, signatures and tokens in URLs."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return _URL_SECRET.sub(r"\1***", _URL_PASSWORD.sub(r"\1***@", text))


def summary(error: BaseException, secrets: Iterable[str]) -> str:
    """The error and its first cause, in one line."""
    chain = list(causes(error))
    ends = chain if len(chain) == 1 else (chain[0], chain[-1])
    said = ", from ".join(f"{type(link).__name__}: {str(link)[:300]}" for link in ends)
    return redacted(" ".join(said.split()), secrets)


def shown(error: BaseException, secrets: Iterable[str]) -> BaseException | None:
    """The error, to be shown as the cause of ours; None where its traceback would show a secret."""
    texts = [str(link) for link in causes(error)]
    return error if all(redacted(text, secrets) == text for text in texts) else None
