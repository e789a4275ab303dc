"""Braces in a URL, as shells have them: one pattern in, the strings that it stands for out, in the order of shells."""

import itertools
import math
import re
import string

from streampack.errors import ConfigError

LARGEST_RANGE = 10_000_000
"""A pattern that stands for more strings is refused as a mistake: it would fill the memory."""
_LETTERS = string.ascii_uppercase + string.ascii_lowercase
_MARKS = re.compile(r"\\.|[{},]", re.DOTALL)
_RANGE = re.compile(r"(?:(-?[0-9]+)\.\.(-?[0-9]+)|([A-Za-z])\.\.([A-Za-z]))(?:\.\.-?([0-9]+))?")


def expand_braces(pattern: str) -> list[str]:
    r"""The strings that a pattern with braces stands for, in the order of shells.

    `{a,b}` alternatives, `{08..11}` a range padded with zeros, `{1..9..2}` with a step, `{a..e}` letters; braces
    may be nested and repeated, and the last ones vary fastest. A backslash takes a brace or comma literally; a pair of
    braces without comma or range stands for itself.

    >>> expand_braces("en-{08..10}.{tar,tgz}")
    ['en-08.tar', 'en-08.tgz', 'en-09.tar', 'en-09.tgz', 'en-10.tar', 'en-10.tgz']

    Raises:
        ConfigError: if the braces are not balanced.
    """
    if "{" not in pattern:
        return [pattern]
    try:
        return [re.sub(r"\\(.)", r"\1", text) for text in _expand(pattern, pattern)]
    except RecursionError:
        raise ConfigError(f"the braces in {pattern[:60]!r}... are nested too deep") from None


def _expand(text: str, pattern: str) -> list[str]:
    parts: list[list[str]] = []
    depth = start = 0
    for mark in _MARKS.finditer(text):
        if mark[0] == "{":
            if depth == 0:
                parts.append([text[start : mark.start()]])
                start = mark.end()
            depth += 1
        elif mark[0] == "}":
            depth -= 1
            if depth < 0:
                break
            if depth == 0:
                parts.append(_expand_group(text[start : mark.start()], pattern))
                start = mark.end()
    if depth:
        shown = f"{pattern!r:.200}"
        raise ConfigError(f"the braces in {shown} are not balanced; a literal brace is written with a backslash")
    if math.prod(map(len, parts)) > LARGEST_RANGE:
        raise ConfigError(f"{pattern[:200]!r} stands for more than {LARGEST_RANGE} shards; check the braces")
    return ["".join(choice) for choice in itertools.product(*parts, [text[start:]])]


def _expand_group(inside: str, pattern: str) -> list[str]:
    if found := _RANGE.fullmatch(inside):
        return _expand_range(found, pattern)
    alternatives, depth, start = [], 0, 0
    for mark in _MARKS.finditer(inside):
        depth += (mark[0] == "{") - (mark[0] == "}")
        if mark[0] == "," and depth == 0:
            alternatives.append(inside[start : mark.start()])
            start = mark.end()
    if not alternatives:
        return ["{" + text + "}" for text in _expand(inside, pattern)]
    return [text for alternative in [*alternatives, inside[start:]] for text in _expand(alternative, pattern)]


def _expand_range(found: re.Match[str], pattern: str) -> list[str]:
    first, last, step = found[1] or found[3], found[2] or found[4], max(int(found[5] or 1), 1)
    low, high = (int(end) if found[1] else _LETTERS.index(end) for end in (first, last))
    if abs(high - low) // step > LARGEST_RANGE:
        raise ConfigError(f"{{{found[0]}}} in {pattern!r:.200} is more than {LARGEST_RANGE} shards; check the range")
    values = range(low, high + 1, step) if low <= high else range(low, high - 1, -step)
    if not found[1]:
        return [_LETTERS[value] for value in values]
    padded = any(re.match("-?0.", end) for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return [f"{value:0{width}d}" for value in values]
