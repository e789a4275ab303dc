"""Where commands print, and how they show sizes, texts of documents, warnings and errors.

Invariants: results go to stdout, everything else to stderr. No text that comes from data controls the terminal: control
characters are written as escapes (`printable`), and no text is read as markup. No character stops a command: names that
are not UTF-8 (lone surrogates, as `os.fsdecode` gives them), and what the terminal's encoding lacks, are escapes too.
"""

import io
import json
import re
import sys
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_BLOCKS = " ▏▎▍▌▋▊▉"
_PICTURES = {"\n": "↵", "\t": "⇥"}


def escape_unencodable() -> None:
    """Have stdout and stderr write an escape for each character that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def output() -> Console:
    """A console on stdout as it is now (tests replace it); colour only where the terminal has it."""
    return Console(highlight=False, emoji=False, markup=False)


def messages() -> Console:
    """A console on stderr."""
    return Console(stderr=True, highlight=False, emoji=False, markup=False)


def print_json(value: object) -> None:
    """One JSON value on stdout, never wrapped or coloured; a list of plain values takes one line."""
    is_utf8 = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    text = to_json(value, indent=2) if is_utf8 else json.dumps(value, indent=2)
    # A line feed is never inside a JSON string, so only the layout can match.
    text = re.sub(r"\[\n\s*([^][{}]*)\n\s*\]", _one_line, text)
    sys.stdout.write(text + "\n")


def to_json(value: object, *, indent: int | None = None) -> str:
    r"""The value as JSON that can be written as UTF-8: a byte of a name that is not UTF-8 is an escape.

    >>> to_json(["ä", "caf\udce9.tar"])
    '["ä", "caf\\udce9.tar"]'
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return text.encode("utf-8", "backslashreplace").decode()


def _one_line(found: re.Match[str]) -> str:
    return "[" + re.sub(r"\n\s*", " ", found[1]) + "]"


def print_error(message: str) -> None:
    """The message in red on stderr; unwrapped where stderr is not a terminal, so that logs can be searched."""
    _print_message(Text.assemble(("error: ", "bold red"), (_lines(message), "red")))


def print_warning(message: str) -> None:
    """The message in yellow on stderr."""
    _print_message(Text.assemble(("warning: ", "bold yellow"), (_lines(message), "yellow")))


def _lines(message: str) -> str:
    return "\n".join(printable(line) for line in message.split("\n"))


def _print_message(text: Text) -> None:
    console = messages()
    console.print(text, soft_wrap=not console.is_terminal)


def format_bytes(size: float) -> str:
    """A size with three digits or so: `1.1 MiB`.

    >>> [format_bytes(size) for size in (0, 1023, 1536, 200 * 2**20)]
    ['0 B', '1,023 B', '1.5 KiB', '200 MiB']
    """
    power = 0
    while size >= 1024 and power < len(_UNITS) - 1:
        size, power = size / 1024, power + 1
    return f"{size:,.0f} {_UNITS[power]}" if power == 0 or size >= 100 else f"{size:.1f} {_UNITS[power]}"


def plural(number: int, noun: str) -> str:
    """The number with its noun in the singular or plural: `1 shard`, `2,000 shards`."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def printable(text: str) -> str:
    r"""The text with escapes for what is not printable, so that no document controls the terminal.

    >>> printable("a\n\x1b[2J")
    'a↵\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _PICTURES.get(c) or ascii(c)[1:-1] for c in text)


def bar(share: float, width: int) -> str:
    """A bar of `share` (0 to 1) of `width` columns, to an eighth of a column; anything above 0 is visible."""
    eighths = max(round(share * width * 8), 1) if share > 0 else 0
    return "█" * (eighths // 8) + _BLOCKS[eighths % 8].strip()


def common_folder(urls: Iterable[str]) -> str:
    """The part up to the last `/` that all the URLs begin with; the rest names a shard well enough."""
    distinct = sorted(set(urls))
    if not distinct:
        return ""
    first, last = distinct[0], distinct[-1]
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[: first.rfind("/", 0, same) + 1]


def shorten(text: str, width: int) -> str:
    """The text in at most `width` columns, with an ellipsis where its middle is cut out."""
    if len(text) <= width:
        return text
    back = (width - 1) // 2
    return f"{text[: width - 1 - back]}…{text[len(text) - back :]}"
