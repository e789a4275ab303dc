"""aiohttp: what its exceptions say, read from the names of their modules, as it need not be installed.

In: an exception. Out: whether aiohttp raised it, or met a garbled answer.
"""

TRIED = ("3.14.5",)
PARSER = "aiohttp.http_exceptions"
"""The module of the errors of its HTTP parser."""


def is_garbled_answer(error: BaseException) -> bool:
    """Whether an answer was cut or garbled on its way; aiohttp gives it status 400, which no server said."""
    return type(error).__module__ == PARSER


def is_its_own(error: BaseException) -> bool:
    """Whether aiohttp has raised it."""
    return type(error).__module__.startswith("aiohttp")
