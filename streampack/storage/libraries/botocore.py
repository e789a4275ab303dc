"""botocore: the response below the body of an object.

In: what `get_object` gives as "Body". Out: the response of urllib3 in it.
"""

from typing import Any

TRIED = ("1.43.117",)


def raw_response(body: Any) -> Any:
    """The response of urllib3, whose `read1` gives what has come; the body's own `read` waits for all of it."""
    return body._raw_stream  # noqa: SLF001 - there is no public way to it
