"""A settled text is one that `tokenizers` leaves as it is, and whose characters every library knows."""

import functools
import unicodedata

import pytest
from support.sentencepieces import PROSE
from tokenizers.normalizers import NFC

from streampack.tokenizers.characters import SettledTexts

POINTS = (*range(0x80, 0x3400), *range(0xA000, 0xB000), *range(0xF900, 0x17000), *range(0x1A000, 0x20000))
CHARACTERS = [*map(chr, (*POINTS, *range(0x2F800, 0x2FC00)))]
"""All but most of the ideographs and of the Hangul syllables."""
MARKS = [character for character in CHARACTERS if unicodedata.combining(character)]


@functools.cache
def settled() -> SettledTexts:
    """Half a second's work, so not where tests are only collected."""
    return SettledTexts(nfc=True)


def assert_unchanged_if_settled(texts: list[str]) -> None:
    changed = [text for text in texts if text in settled() and NFC().normalize_str(text) != text]
    assert [ascii(text) for text in changed] == []


@pytest.mark.parametrize("other", "\u0301\u0323\u064e\u0345\u3099")
def test_no_mark_before_or_after_another_is_moved_in_a_settled_text(other: str) -> None:
    for text in ("e{}{}", "\u0628{}{}", "\u304b{}{}"):
        assert_unchanged_if_settled([text.format(*pair) for mark in MARKS for pair in ((mark, other), (other, mark))])


def test_nothing_is_composed_in_a_settled_text() -> None:
    apart = [unicodedata.normalize("NFD", character) for character in CHARACTERS]
    assert_unchanged_if_settled([text for text, character in zip(apart, CHARACTERS) if text != character])
    assert_unchanged_if_settled(["\U00011935\U00011930", "\U000105d2\u0307", "\U00016d67\U00016d67"])


def test_no_character_by_itself_is_changed_in_a_settled_text() -> None:
    assert_unchanged_if_settled(["x".join(character for character in CHARACTERS if character in settled())])


@pytest.mark.parametrize(
    "text",
    [
        PROSE,
        "Où est l'été ? Über Straße, Ελλάδα, Việt Nam, 日本語の文章が、한국어, ﬁ, ①",
        "हिन्दी में यह एक वाक्य है",
        "وَالْأَمْرُ شָלוֹם ภาษาไทยที่นี่",
        "မြန်မာစာ N'Ko \u07d2\u07eb",  # with marks that came after Unicode 3.2
    ],
)
def test_text_in_the_form_nfc_is_settled(text: str) -> None:
    assert text in settled()


@pytest.mark.parametrize("text", ["e\u0301", "\u0958", "\u1100\u1161", "\uac00\u11a8"])
def test_text_in_another_form_is_settled_where_it_is_not_normalized(text: str) -> None:
    assert text not in settled()
    assert text in SettledTexts(nfc=False)


@pytest.mark.parametrize("text", ["\u0378", "a \U0001e6d2", "\U0003292f", "\U000e0041", "\uffff"])
def test_a_text_with_an_unassigned_character_is_never_settled(text: str) -> None:
    assert text not in settled()
    assert text not in SettledTexts(nfc=False)
