"""aiohttp: what its exceptions say, read from the names of their modules, as it need not be installed.

In: an exception. Out: whether aiohttp raised it, met a garbled answer, or was refused by a proxy.
"""

TRIED = ("3.14.5",)
PARSER = "aiohttp.http_exceptions"
"""The module of the errors of its HTTP parser."""
OF_PROXY = "ClientHttpProxyError"
"""What it raises where a proxy answers CONNECT with an error status."""


def is_garbled_answer(error: BaseException) -> bool:
    """Whether an answer was cut or garbled on its way; aiohttp gives it status 400, which no server said."""
    return type(error).__module__ == PARSER


def is_of_proxy(error: BaseException) -> bool:
    """Whether a proxy refused to lead to a host."""
    return is_its_own(error) and type(error).__name__ == OF_PROXY


def is_its_own(error: BaseException) -> bool:
    """Whether aiohttp has raised it."""
    return type(error).__module__.startswith("aiohttp")
