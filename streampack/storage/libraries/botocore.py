"""botocore: the response below the body of an object; errors of its own, read from their names, as it may be missing.

In: what `get_object` gives as "Body"; an exception. Out: the response of urllib3 in it; whether a client cannot work.
"""

from typing import Any

TRIED = ("1.43.117",)


def raw_response(body: Any) -> Any:
    """The response of urllib3, whose `read1` gives what has come; the body's own `read` waits for all of it."""
    return body._raw_stream  # noqa: SLF001 - there is no public way to it


_OF_THE_NETWORK = {
    *("HTTPClientError", "ConnectionError", "IncompleteReadError", "ChecksumError", "FlexibleChecksumError"),
}


def is_unusable(error: BaseException) -> bool:
    """Whether it says that options, profile, region or credentials do not make a client; no answer is behind it."""
    names = {each.__name__ for each in type(error).__mro__ if each.__module__ == "botocore.exceptions"}
    return "BotoCoreError" in names and not names & _OF_THE_NETWORK
