"""Small corpora, and what a loader must hand out of them, worked out from single lanes by the rules of the order.

No code of the loader is used: a lane's packs come from `PackedDataset` as one of as many ranks as there are lanes,
which reads that lane alone; who gets which of them, and how many batches there are, is counted out here.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streampack.testing import ByteTokenizer
from support.arguments import packed_dataset

Pack = dict[str, NDArray[np.int64]]
KEYS = ("tokens", "labels", "position_ids", "segment_ids", "num_targets")
_WORDS = ["pack", "lane", "a", "stream", "Ärger", "tokens", "of", "and", "boundary", "漢字", "\n"]


def prose(seed: int, count: int, *, most_words: int = 60) -> list[str]:
    """Documents of random words, of very different lengths, the first one empty."""
    choice = random.Random(seed)
    return ["", *(" ".join(choice.choices(_WORDS, k=choice.randint(1, most_words))) for _ in range(count - 1))]


def lane_packs(dataset: dict[str, Any], *, epoch: int = 0, limit: int | None = None) -> list[list[Pack]]:
    """The packs of every lane: all of a finite pass that begins with `epoch`, or the first `limit`."""
    lanes = []
    for lane in range(dataset["num_lanes"]):
        stream = packed_dataset(**dataset, rank=lane, size=dataset["num_lanes"])
        stream.set_epoch(epoch)
        packs = [{key: tensor.numpy() for key, tensor in item.items()} for item in itertools.islice(stream, limit)]
        lanes.append([{**pack, "num_targets": (pack["labels"] != -100).sum()} for pack in packs])
    return lanes


def filler(seq_len: int) -> Pack:
    """A pack that is all padding."""
    return {
        "tokens": np.full(seq_len, ByteTokenizer.pad_id),
        "labels": np.full(seq_len, -100),
        "position_ids": np.arange(seq_len),
        "segment_ids": np.zeros(seq_len, dtype=np.int64),
        "num_targets": np.int64(0),
    }


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A finite pass: packs of its lanes, from the global pack `start` on."""

    lanes: list[list[Pack]]
    seq_len: int
    start: int = 0
    pad: bool = True

    def before(self, lane: int, number: int) -> int:
        """How many of the lane's packs have global numbers in [start, number)."""
        return len(range(self._first(lane), number, len(self.lanes)))

    def _first(self, lane: int) -> int:
        return next(number for number in itertools.count(self.start) if number % len(self.lanes) == lane)

    @property
    def end(self) -> int:
        """The global number behind the last one: that of a whole round."""
        num_lanes = len(self.lanes)
        rounds = [self._first(lane) // num_lanes + len(packs) for lane, packs in enumerate(self.lanes)]
        return num_lanes * max(max(rounds) if self.pad else min(rounds), -(-self.start // num_lanes))

    def pack(self, number: int) -> Pack:
        """The pack with a global number; a filler where its lane has ended."""
        lane = number % len(self.lanes)
        packs, index = self.lanes[lane], self.before(lane, number)
        return packs[index] if index < len(packs) else filler(self.seq_len)

    def num_batches(self, begin: int, *, num_ranks: int, batch_size: int, drop_last: bool = False) -> int:
        """Batches of every rank for what is left from `begin` on."""
        left = self.end - begin
        if drop_last:
            return left // num_ranks // batch_size
        longest = -(-left // num_ranks)
        return -(-longest // batch_size)

    def batches(
        self, begin: int, *, rank: int, num_ranks: int, batch_size: int, drop_last: bool = False
    ) -> list[list[Pack]]:
        """What one rank hands out from the global pack `begin` on."""
        count = self.num_batches(begin, num_ranks=num_ranks, batch_size=batch_size, drop_last=drop_last)
        mine = [number for number in range(begin, self.end) if number % num_ranks == rank]
        packs = [self.pack(number) for number in mine][: count * batch_size]
        packs += [filler(self.seq_len)] * (count * batch_size - len(packs))
        return [packs[index : index + batch_size] for index in range(0, len(packs), batch_size)]


def endless_batches(
    lanes: list[list[Pack]], begin: int, *, rank: int, num_ranks: int, batch_size: int, count: int
) -> list[list[Pack]]:
    """The `count` batches of a rank in an endless run, from the global pack `begin` on."""
    numbers = (number for number in itertools.count(begin) if number % num_ranks == rank)
    return [
        [lanes[number % len(lanes)][number // len(lanes)] for number in itertools.islice(numbers, batch_size)]
        for _ in range(count)
    ]


def assert_batches(got: dict[str, NDArray[np.int64]], expected: Sequence[Sequence[Pack]], what: str) -> None:
    """Fail with the first pack that differs; `got` holds arrays [batches, batch_size, ...]."""
    count = len(got["tokens"]) if got else 0
    for index, batch in enumerate(expected[:count]):
        for row, pack in enumerate(batch):
            for key in KEYS:
                assert np.array_equal(got[key][index, row], pack[key]), (
                    f"{what}: {key} of pack {row} in batch {index}: {got[key][index, row]}, expected {pack[key]}"
                )
    assert count == len(expected), f"{what}: {count} batches, expected {len(expected)}"
