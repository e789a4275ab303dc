"""How the documents of an epoch are shuffled: the public record `Shuffle`, and what stands for it.

In:  what a user writes: True, "shards", False or a record, `Shuffle(window=16)`.
Out: an `Order`; or a ConfigError that says what may be given.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral
from typing import Literal, TypeAlias

import numpy as np

from streampack.errors import ConfigError, as_integer, record_hint

MIN_BLOCK_BYTES = 4 * 2**10
_MAX_BLOCK_BYTES = 2**30
_MAX_WINDOW = 4096
_WRITTEN = {"shards": '"shards"', "true": "True, without quotes", "false": "False, without quotes"}
BLOCKS_PER_LANE = 32
"""The least number of blocks of a lane: where the corpus is small, its blocks are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shuffle:
    """Blocks of the shards in a new order each epoch, and the documents of some blocks mixed; True is `Shuffle()`.

    Every shard is cut into blocks of bytes. Each epoch has all blocks in an order of its own; a lane reads `window`
    blocks at a time and permutes their records.

    Args:
        block_bytes: bytes of a block, at least 4 KiB. In a small corpus blocks are smaller, so that each lane has
            32 of them. Smaller blocks mix better, larger ones make fewer requests.
        window: blocks whose records are permuted together. A lane holds their text in memory.

    Raises:
        ConfigError: a number that cannot work.
    """

    block_bytes: int = 256 * 2**10
    window: int = 8

    def __post_init__(self) -> None:
        size = as_integer(self.block_bytes, "shuffle.block_bytes", low=MIN_BLOCK_BYTES, high=_MAX_BLOCK_BYTES)
        object.__setattr__(self, "block_bytes", size)
        object.__setattr__(self, "window", as_integer(self.window, "shuffle.window", low=1, high=_MAX_WINDOW))

    def block_bytes_of(self, total_bytes: int, num_lanes: int) -> int:
        """Bytes of a block of a corpus of `total_bytes` in `num_lanes` lanes."""
        return max(min(self.block_bytes, total_bytes // (BLOCKS_PER_LANE * num_lanes)), MIN_BLOCK_BYTES)


Order: TypeAlias = Shuffle | Literal["shards", False]
"""Blocks and windows; whole shards in a new order each epoch; or shards as listed."""


def as_order(value: object) -> Order:
    """The order that `value` is or stands for.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(value, Shuffle):
        return value
    if isinstance(value, bool | np.bool_):
        return Shuffle() if value else False
    if isinstance(value, str) and value == "shards":
        return "shards"
    hint = record_hint(Shuffle, value)
    if isinstance(value, Integral) and value in (0, 1):
        hint = f"; write {bool(value)}"
    elif isinstance(value, Integral) or str(value) in ("documents", "samples", "records"):
        hint = "; documents are mixed by blocks and windows: Shuffle(window=16) mixes more of them than True"
    elif isinstance(value, str) and (near := get_close_matches(value.lower(), ("shards", "true", "false"), n=1)):
        hint = f"; did you mean {_WRITTEN[near[0]]}?"
    raise ConfigError(f'shuffle={value!r} must be True, "shards", False or a streampack.Shuffle{hint}')
