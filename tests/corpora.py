"""Texts for small corpora of tests."""

import random

_WORDS = ["pack", "lane", "a", "stream", "Ärger", "tokens", "of", "and", "boundary", "漢字", "\n"]


def prose(seed: int, count: int, *, most_words: int = 60) -> list[str]:
    """Documents of random words, of very different lengths, the first one empty."""
    choice = random.Random(seed)
    return ["", *(" ".join(choice.choices(_WORDS, k=choice.randint(1, most_words))) for _ in range(count - 1))]
