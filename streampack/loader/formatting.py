"""The packs of one batch as what the trainer gets: one block, in the keys and shapes of a format.

In:    a rank's batch, and which lanes its items come from.
Out:   a dict of tensors, or what the format says; with `provenance` also where each segment comes from.
"""

from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch

from streampack.errors import ConfigError, as_bool
from streampack.formats.consumers import Batch
from streampack.formats.layout import Layout, pinned
from streampack.lanes.provenance import Provenance
from streampack.loader.rounds import PackBatch
from streampack.packing.blocks import gather


class PackedBatch(TypedDict):
    """What a `PackedDataLoader` gives with `format="streampack"`: B packs of S rows.

    `for batch in loader:` gives it without a type, as other formats have other keys; write `batch: PackedBatch` first.
    """

    tokens: torch.Tensor
    """int64 [B, S]: the inputs."""
    labels: torch.Tensor
    """int64 [B, S]: the target of each row, already shifted; -100 where there is none."""
    position_ids: torch.Tensor
    """int64 [B, S]."""
    segment_ids: torch.Tensor
    """int64 [B, S]: 1, 2, ... for the segments of a pack; 0 in padding."""
    num_targets: torch.Tensor
    """int64 [B]: rows with a target."""
    source_ids: torch.Tensor
    """int32 [B]: the index of each pack's source in `dataset.sources`; -1 for a filler."""
    mask: NotRequired[torch.Tensor]
    """bool [B, S, S], with `mask=True`: which rows a row may attend to."""
    loss_weights: NotRequired[torch.Tensor]
    """float32 [B, S], with `loss_weights`."""
    provenance: NotRequired[list[tuple[Provenance, ...]]]
    """With `provenance=True`: where each segment of each pack comes from."""
    pack_numbers: NotRequired[torch.Tensor]
    """int64 [B], with `provenance=True`: the global number of each pack; -1 for a filler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFormatter:
    """How a loader makes a batch of packs."""

    layout: Layout
    pad_id: int
    pin_memory: bool | str
    """"auto": where there is a GPU."""
    provenance: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "provenance", as_bool(self.provenance, "provenance"))
        pin_memory = torch.cuda.is_available() if self.pin_memory == "auto" else self.pin_memory
        object.__setattr__(self, "pin_memory", as_bool(pin_memory, "pin_memory", other='"auto"'))
        if self.provenance and self.layout.spec.is_pair:
            kind = self.layout.format
            raise ConfigError(f'provenance=True has no place in the pairs of format="{kind}"; choose another format')

    def format(self, batch: PackBatch, lanes: range, num_lanes: int) -> Batch:
        """The batch for the trainer; `lanes`: those of this rank, of so many."""
        packs = [None if item is None else item.pack for item in batch.items]
        in_blocks = [None if pack is None else pack.in_block for pack in packs]
        block = gather(in_blocks, seq_len=batch.seq_len, pad_id=self.pad_id)
        provenance = [() if pack is None else pack.provenance for pack in packs]
        result = self.layout.batch(
            block,
            [segment.targets for of_pack in provenance for segment in of_pack],
            [-1 if pack is None else pack.source for pack in packs],
        )
        if self.pin_memory:
            result = pinned(result)
        if self.provenance:
            result["provenance"] = provenance
            result["pack_numbers"] = torch.tensor(
                [
                    -1 if item is None else item.round * num_lanes + lanes[item.lane_index]
                    for item in batch.items
                ]
            )
        return result
