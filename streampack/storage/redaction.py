"""Texts that may be shown: without secrets, in one line, and never longer than a reader can take.

In: URLs, storage options and exceptions as they are. Out: what may stand in an error, a log or a repr.
Never: a password, a signature or a token, also where a server repeats one in its answer; a whole document that was
given where a URL belongs.
"""

import re
from collections.abc import Iterable, Mapping

from streampack.storage.faults import causes

_URL_PASSWORD = re.compile(r"(://[^/:@\s]*:)([^/@\s]*)@")
_URL_SECRET = re.compile(r"(?i)([?&][^=&\s]*(?:sig|token|key|secret|passw|credential)[^=&\s]*=)([^&#\s'\")]*)")
_SECRET_OPTION = re.compile(
    r"(?i)key|secret|token|passw|credential|auth|cookie|sas|signature|connection_string|headers"
)

_MOST_SHOWN = 500
"""Characters of a URL that is shown whole."""
_MOST_CAUSE = 4000
"""Characters of a library's own text that is shown whole below our error."""


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


def named(url: str) -> str:
    """The URL as errors and logs name it: without secrets, printable, and cut where it is a text rather than a URL."""
    text = redacted(url)
    if len(text) > _MOST_SHOWN:
        text = f"{text[:150]}...{text[-50:]} ({len(text):,} characters)"
    return _printable(text)


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def summary(error: BaseException, secrets: Iterable[str]) -> str:
    """The error and its first cause, in one line."""
    chain = list(causes(error))
    ends = chain if len(chain) == 1 else (chain[0], chain[-1])
    said = ", from ".join(f"{type(link).__name__}: {str(link)[:300]}" for link in ends)
    return _printable(redacted(" ".join(said.split()), secrets))


def shown(error: BaseException, secrets: Iterable[str]) -> BaseException | None:
    """The error, to be shown as the cause of ours; None where its traceback would show a secret or a whole document."""
    texts = [str(link) for link in causes(error)]
    return error if all(redacted(text, secrets) == text and len(text) <= _MOST_CAUSE for text in texts) else None
