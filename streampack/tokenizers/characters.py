"""Whether two libraries see the same in a text: the classes of its characters, and what the normalization NFC makes.

In:  the library `tokenizers`, Python's tables of Unicode, and texts.
Out: the texts that need no normalization and have the same words for every library (`SettledTexts`); texts to compare
     the classes of characters on (`class_texts`).

The classes (letter, digit, space) and the tables of NFC are Unicode's, and each library has them from another version
of it. A later version has more characters; what is said of the others stays (Unicode's stability policies).
"""

import functools
import itertools
import unicodedata

import numpy as np
from numpy.typing import NDArray

_INERT, _STABLE, _ASKED, _UNSETTLED = range(4)
"""The kinds of characters. That of a text is the highest among its characters.

    _INERT      NFC leaves it as it is
    _STABLE     all versions of Unicode agree on what NFC does: Python's own NFC tells
    _ASKED      they may not: the NFC of `tokenizers` tells
    _UNSETTLED  a library may not know the class of the character
"""
_END = 0x323B0
"""From here on all characters are unsettled: tags, private ones, and what is not assigned yet."""
_JAMO = tuple(map(chr, (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))))
"""The vowels and last consonants that Hangul syllables are composed of, by rule and not by a table."""


class SettledTexts:
    """The texts that are the same for every library, so far as Unicode is concerned: `text in SettledTexts(nfc=True)`.

    Args:
        nfc: whether `tokenizers` normalizes the texts to NFC, and the other library does not.
    """

    def __init__(self, *, nfc: bool) -> None:
        self._kinds = _normalized_kinds() if nfc else _kinds()

    def __contains__(self, text: str) -> bool:
        points = np.frombuffer(text.encode("utf-32-le"), np.int32)
        kind = self._kinds.take(points, mode="clip").max(initial=_INERT)
        if kind == _STABLE:
            return unicodedata.is_normalized("NFC", text)
        return kind == _INERT or (kind == _ASKED and _normalized(text) == text)


def _normalized(text: str) -> str:
    """The NFC of a text by the tables of `tokenizers`, which takes 50 times as long as Python's."""
    from tokenizers import normalizers

    normalized: str = normalizers.NFC().normalize_str(text)
    return normalized


@functools.cache
def _kinds() -> NDArray[np.uint8]:
    """The kinds without normalization, uint8 [n] by code point. The last one is that of all code points from there on.

    Unsettled is what `tokenizers` does not know. What it knows and the other library does not would show in
    `class_texts`. What Unicode 3.2 has, every library knows.
    """
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    found = np.full(_END + 1, _INERT, np.uint8)
    found[_END] = _UNSETTLED
    unknown = Split(Regex(r"\p{Cn}+"), "removed", invert=True)
    for unsettled, _ in unknown.pre_tokenize_str("".join(_new())):
        found[[*map(ord, unsettled)]] = _UNSETTLED
    return found


@functools.cache
def _normalized_kinds() -> NDArray[np.uint8]:
    """The kinds in texts that are normalized to NFC, as `_kinds`."""
    new, characters = set(_new()), _characters()
    touched = {*_JAMO, *itertools.compress(characters, map(unicodedata.combining, characters))}
    for character, parts in zip(characters, map(unicodedata.decomposition, characters)):
        if parts and not parts.startswith("<"):
            first, *second = (chr(int(part, 16)) for part in parts.split())
            touched.update(second)
            if first in new:  # an old one composes with the same second ones in all versions
                touched.add(first)
            if not unicodedata.is_normalized("NFC", character):
                touched.add(character)
    touched.update(character for character in new if unicodedata.category(character) == "Cn")
    found = _kinds().copy()
    for character in touched:
        point = ord(character)
        found[point] = max(found[point], _ASKED if character in new else _STABLE)
    return found


@functools.cache
def class_texts() -> tuple[str, ...]:
    """Texts with the first and the last character of each run of characters of one category, between others."""
    characters = _characters()
    kinds = [
        f"{category}{combining > 0}"
        for category, combining in zip(map(unicodedata.category, characters), map(unicodedata.combining, characters))
    ]
    ends = [
        character
        for index, character in enumerate(characters)
        if not kinds[index].startswith("Cn")
        and (kinds[index] != kinds[index - 1] or kinds[index] != kinds[(index + 1) % len(kinds)])
    ]
    return tuple(
        "".join(f"a{character}D {character}{character}1{character}!{character}&s\n" for character in ends[at : at + 64])
        for at in range(0, len(ends), 64)
    )


def _characters() -> str:
    """Those that may be settled."""
    return "".join(chr(point) for point in range(_END) if not 0xD800 <= point < 0xE000)


@functools.cache
def _new() -> tuple[str, ...]:
    """Those of them that came after Unicode 3.2."""
    characters = _characters()
    categories = map(unicodedata.ucd_3_2_0.category, characters)
    return tuple(character for character, category in zip(characters, categories) if category == "Cn")
