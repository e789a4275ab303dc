"""Which documents a run trains on, and which it holds out to validate on.

In:  where a document comes from: the shard's name, the sample's key, the index of its record.
Out: whether this part of the corpus has it.
Never: a choice that depends on the seed, the epoch, the order of the shards, or on ranks and workers.
"""

from dataclasses import dataclass
from typing import Literal

from streampack import hashing
from streampack.errors import ConfigError, NotBuiltError, as_number, check_choice


@dataclass(frozen=True, slots=True)
class HoldOut:
    """Some documents are held out of the training, chosen by a hash of where each comes from.

    Args:
        part: "train" has the documents that are not held out; "val" has those that are, for one epoch in the order
            of the shards.
        fraction: about this share of the documents is held out, from 0 to below 1; equal for both parts.
        by: what is held out together: each document by itself ("document").

    Raises:
        ConfigError: an argument that cannot work.
        NotBuiltError: `by="block"`.
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
        if self.by == "block":
            raise NotBuiltError("hold_out: by='block' is not built yet; by='document' is")
        check_choice(self.by, ("document",), "hold_out: by")

    def has(self, shard_name: str, key: str, record: int) -> bool:
        """Whether a document is in this part; folders in the shard's name do not count."""
        name = shard_name.rpartition("/")[2]
        held_out = hashing.is_held_out(name=name, key=key, record=record, fraction=self.fraction)
        return held_out == (self.part == "val")
