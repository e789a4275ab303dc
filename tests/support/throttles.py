"""A loader of which any stage can be made slow, by a sleep or by a clock that the test sets."""

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import streampack
from streampack.loader import messages, parcels
from streampack.loader.formatting import BatchFormatter
from streampack.storage.backends.local import LocalFile
from streampack.tar import reader
from streampack.testing import ByteTokenizer
from support.jobs import uneven, write_tar

Slow = Callable[[str], None]
"""Called in a stage, with its name, each time that the stage does something."""


def sleeping(slow_stage: str, seconds: float) -> Slow:
    """One stage takes so much longer each time."""

    def slow(stage: str) -> None:
        if stage == slow_stage:
            time.sleep(seconds)

    return slow


class Tokenizer(ByteTokenizer):
    """One that calls `slow`."""

    def __init__(self, slow: Slow) -> None:
        self._slow = slow

    def encode(self, text: str) -> NDArray[np.integer]:
        self._slow("tokenize")
        return super().encode(text)


class Throttled:
    """A loader of compressed shards, and its trainer."""

    def __init__(self, folder: Path, slow: Slow, monkeypatch: pytest.MonkeyPatch, *, num_workers: int) -> None:
        """Every stage calls `slow`, in workers too: these are forked."""
        self._slow = slow

        def before(owner: object, name: str, stage: str) -> None:
            plain = getattr(owner, name)

            @functools.wraps(plain)
            def slowed(*args: Any, **kwargs: Any) -> Any:
                slow(stage)
                return plain(*args, **kwargs)

            monkeypatch.setattr(owner, name, slowed)

        def for_each(owner: object, name: str, stage: str) -> None:
            plain = getattr(owner, name)

            def slowed(*args: Any, **kwargs: Any) -> Iterator[Any]:
                for item in plain(*args, **kwargs):
                    slow(stage)
                    yield item

            monkeypatch.setattr(owner, name, slowed)

        before(LocalFile, "fetch", "storage")
        before(LocalFile, "read", "storage")
        for_each(reader, "decompress", "decompress")
        for_each(reader, "samples_of", "tar")
        before(messages, "message_of", "pack")
        before(parcels, "wrap", "send")
        before(BatchFormatter, "format", "main")

        def transform(document: streampack.Document, rng: np.random.Generator) -> streampack.Document:
            slow("transform")
            return document

        for number, documents in enumerate(uneven(folder).documents):
            members = [(f"{index}.txt", "".join(texts).encode()) for index, texts in enumerate(documents)]
            write_tar(folder / f"zipped-{number}.tar.gz", members)
        dataset = streampack.PackedDataset(
            f"{folder}/zipped-*.tar.gz",
            Tokenizer(slow),
            32,
            num_lanes=4,
            shuffle="shards",
            transform=transform,
            transform_version="1",
        )
        self.loader = streampack.PackedDataLoader(
            dataset,
            2,
            num_workers=num_workers,
            multiprocessing_context="fork" if num_workers else None,
            prefetch_bytes=2**12,
        )

    def batches(self) -> Iterator[int]:
        """Numbers of batches that the trainer has used."""
        with self.loader:
            for number, _ in enumerate(self.loader):
                self._slow("trainer")
                yield number

    @property
    def limited_by(self) -> str | None:
        return self.loader.stats()["limited_by"]
