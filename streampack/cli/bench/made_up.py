"""Text for a benchmark without shards: words of the demo data, as they follow each other there, always the same."""

import math
import random
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

from streampack.cli.bench.slices import Slice
from streampack.examples.make_data import DATA, read_shards
from streampack.testing.shards import write_shards

DEMO_MODEL = DATA / "devil.model"


def made_up_slices(folder: Path, *, num_slices: int, slice_bytes: int) -> list[Slice]:
    """Slices of made-up text, two shards each."""
    documents = made_up_documents(num_slices * slice_bytes)
    slices = []
    for number in range(num_slices):
        part = documents[number::num_slices]
        paths = write_shards(folder / f"{number:03d}", part, documents_per_shard=-(-len(part) // 2))
        slices.append(Slice(tuple(paths), sum(Path(path).stat().st_size for path in paths)))
    return slices


def made_up_documents(num_bytes: int) -> list[str]:
    """Text of the words of the demo data, as they follow each other there, always the same."""
    writer, documents, size = _Writer(), [], 0
    while size < num_bytes:
        documents.append(writer.document())
        size += len(documents[-1].encode())
    return documents


class _Writer:
    """Documents of made-up text, as long and as skewed as those of real corpora."""

    def __init__(self) -> None:
        self._random = random.Random(0)  # noqa: S311 (text, not secrets)
        following: dict[str, list[str]] = defaultdict(list)
        for entry in read_shards(DATA):
            words = entry.text.split(" ")
            for word, successor in pairwise(words):
                following[word].append(successor)
        self._following = dict(following)
        self._words = sorted(self._following)

    def document(self) -> str:
        """One document; every 20th word or so is new, as it is in real text."""
        choose = self._random.choice
        words = []
        word = choose(self._words)
        for _ in range(max(int(self._random.lognormvariate(math.log(400), 1.0)), 1)):
            fresh = self._random.random() < 0.05
            words.append(word[: len(word) // 2 + 1] + choose(self._words)[-4:] if fresh else word)
            word = choose(self._following.get(word) or self._words)
        return " ".join(words)
