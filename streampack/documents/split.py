"""Which documents a run trains on, and which it holds out to validate on.

In:  where a document comes from: the shard's name, the sample's key, the index of its record.
Out: whether this part of the corpus has it. Which cells of shards are held out, by="block", is in `corpus/spans.py`.
Never: a choice that depends on the seed, the epoch, the order of the shards, or on ranks and workers.
"""

from dataclasses import dataclass
from typing import Literal

from streampack import hashing
from streampack.errors import ConfigError, as_number, check_choice


@dataclass(frozen=True, slots=True)
class HoldOut:
    """Some of the corpus is held out of the training, for ever: a hash of where it stands decides.

    Args:
        part: "train" has what is not held out; "val" has what is, for one epoch in the order of the shards.
        fraction: about this share of the corpus is held out, from 0 to below 1; equal for both parts.
        by: what is held out together. "document": each document by itself; validation then reads the whole corpus and
            leaves out all others. "block": cells of 1 MiB of each shard, a shard that cannot be cut as a whole;
            validation reads those cells and training the rest.

    Raises:
        ConfigError: an argument that cannot work.
    """

    part: Literal["train", "val"]
    fraction: float
    by: Literal["document", "block"] = "document"

    def __post_init__(self) -> None:
        check_choice(self.part, ("train", "val"), "hold_out: part")
        object.__setattr__(self, "fraction", as_number(self.fraction, "hold_out: fraction"))
        if not 0 <= self.fraction < 1:
            raise ConfigError(f"hold_out: fraction={self.fraction!r} must be a number of at least 0 and below 1")
        if self.part == "val" and not self.fraction:
            raise ConfigError(
                "hold_out: part='val' with fraction=0 holds nothing: give the fraction of the training run"
            )
        check_choice(self.by, ("document", "block"), "hold_out: by")

    @property
    def limit(self) -> int:
        """What a hash of 64 bits is below where it holds something out."""
        return int(self.fraction * 2**64)

    def has(self, shard_name: str, key: str, record: int) -> bool:
        """By document: whether one is in this part; folders in the shard's name do not count."""
        name = shard_name.rpartition("/")[2]
        held_out = hashing.is_held_out(name=name, key=key, record=record, fraction=self.fraction)
        return held_out == (self.part == "val")
