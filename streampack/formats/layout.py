"""A batch as a trainer wants it: the last stage, from a block of packs to the keys and shapes of a consumer.

In: a `PackBlock`, which holds B packs of S rows. Out: a dict of tensors (for torchtitan a pair), new and contiguous.
Never: a boundary that is inferred from a token's value; padding that is recognised by its token; labels that are
shifted twice. `labels[i]` is the target of `tokens[i]`, except where the table says that the model shifts.

    format      keys                                                            labels
    streampack  tokens, labels, position_ids, segment_ids: int64 [B, S]         already shifted
    torchtune   tokens, labels, input_pos: int64 [B, S]; seq_lens: B arrays     already shifted
    hf          input_ids, labels, position_ids: int64 [B, S]                   the model shifts: labels[i] is input i
    hf_flash    the same, [1, B*S]; cu_seq_lens_q/k int32, max_length_q/k int   the model shifts
    torchtitan  ({"input", "positions"}, labels): int64 [B*S]                   already shifted
    megatron    tokens, labels, position_ids: int64 [B, S]; loss_mask float32   already shifted, 0 where loss_mask is 0
                [B, S]; cu_seqlens int32 [B, n + 1], max_seqlen int32 [B]
    varlen      tokens, labels, position_ids: int64 [B*S]; cu_seqlens int32     already shifted
                [n + 1], max_seqlen int
    maxtext     inputs, targets, inputs_position, inputs_segmentation,          already shifted; targets 0 and
                targets_position, targets_segmentation: int32 [B, S]            ..._segmentation 0 where there is none

Each dict has "num_targets" too, int64 [B], and "source_ids", int32 [B], the source of each pack (-1: a filler), except
torchtune's with a mask, which goes to the model as it is. A pack's padding is one more sequence in `seq_lens`,
`cu_seqlens` and masks, so that they add up to S and every row sees one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
import torch

from streampack.errors import ConfigError, as_bool, as_choice
from streampack.formats.consumers import FORMAT_SPECS, Batch, Format, FormatSpec, Positions
from streampack.packing.blocks import expand_block, stretches
from streampack.packing.packs import PackBlock
from streampack.packing.policies import Boundary, BoundaryPolicy
from streampack.records import IGNORE_INDEX

MaskMod: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class LossWeights(StrEnum):
    """The weight of a target in the loss."""

    TOKEN = "token"  # noqa: S105  # a word of language models
    """1: each token counts the same."""
    DOCUMENT = "document"
    """1 / the targets of its document in all packs: each document counts the same, wherever it is cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What batches look like; `as_layout` makes one from a user's arguments."""

    format: Format
    positions: Positions
    mask: bool
    loss_weights: LossWeights | None = None

    @property
    def spec(self) -> FormatSpec:
        """What is known of the format."""
        return FORMAT_SPECS[self.format]

    def batch(
        self, block: PackBlock, document_targets: Sequence[int] = (), source_ids: Sequence[int] | None = None
    ) -> Batch:
        """The block's packs in this layout; see the table at the top of the module.

        Args:
            block: B packs.
            document_targets: for weights by document, the targets of each segment's whole document, pack by pack.
            source_ids: [B], the index of each pack's source, -1 for a filler; None: the batch does not tell it.
        """
        rows = {name: torch.from_numpy(array) for name, array in expand_block(block).items()}
        segment_ids = rows["segment_ids"]
        if self.positions is Positions.PACK:
            num_packs, seq_len = segment_ids.shape
            rows["position_ids"] = torch.arange(seq_len).repeat(num_packs, 1)
        weights = None if self.loss_weights is None else self._weights(rows["labels"], block, document_targets)
        spec = self.spec
        if spec.model_shifts:
            rows["labels"] = unshift(rows["labels"])
            num_targets = (rows["labels"] != IGNORE_INDEX).sum(dim=1)
        else:
            num_targets = torch.from_numpy(block.num_targets)
        batch = spec.make(rows, block, self.positions)
        if self.mask:
            batch["mask"] = block_causal_mask(segment_ids)
        if self.mask and self.format is Format.TORCHTUNE:
            del batch["seq_lens"]
        elif not spec.is_pair:
            batch["num_targets"] = num_targets
            if source_ids is not None:
                batch["source_ids"] = torch.from_numpy(np.array(source_ids, dtype=np.int32))
        if weights is not None:
            batch["loss_weights"] = weights.reshape(batch[spec.labels].shape)
        return batch

    def _weights(self, labels: torch.Tensor, block: PackBlock, document_targets: Sequence[int]) -> torch.Tensor:
        """float32 [B, S], beside the labels as the consumer has them; 0 where there is none."""
        weights = (labels != IGNORE_INDEX).float()
        if self.loss_weights is LossWeights.DOCUMENT:
            cut = stretches(block)
            # One share a stretch; padding has no targets, and no document to divide by.
            targets = np.ones(cut.lengths.size, np.float64)
            targets[cut.segment_ids > 0] = np.maximum(np.asarray(document_targets, np.float64), 1)
            weights *= torch.from_numpy(np.repeat(1 / targets, cut.lengths).reshape(labels.shape).astype(np.float32))
        if self.spec.model_shifts:
            weights = torch.nn.functional.pad(weights[:, :-1], (1, 0))
        return weights


def as_layout(
    format: object,  # noqa: A002  # the name of the public contract
    *,
    positions: object,
    mask: bool,
    boundary: Boundary,
    loss_weights: object = None,
) -> Layout:
    """Return the layout that a loader's arguments ask for.

    Raises:
        ConfigError: an argument that is not known, or a combination that cannot be right.
    """
    kind, where = as_choice(Format, format, "format"), as_choice(Positions, positions, "positions")
    spec, mask = FORMAT_SPECS[kind], as_bool(mask, "mask")
    if spec.model_shifts and boundary is BoundaryPolicy.TRIM:
        raise ConfigError(
            f'format="{kind}" with boundary="trim" cannot be right: the model shifts labels itself and would take the '
            'first row of a document for the target of the row before it. Use boundary="mask", which trains the same '
            "targets, or a format whose labels are already shifted."
        )
    if kind is Format.HF_FLASH and where is Positions.PACK:
        raise ConfigError(
            'format="hf_flash" with positions="pack" contradicts itself: cu_seq_lens keep documents apart, positions '
            'of the pack make it one sequence. Use positions="document", or format="hf".'
        )
    if mask and not spec.takes_mask:
        raise ConfigError(
            f'mask=True works with format="streampack" and "torchtune"; "{kind}" tells its consumer in another way '
            "which rows belong together. Leave it False, or call streampack.formats.block_causal_mask(segment_ids)."
        )
    weights = None if loss_weights is None else as_choice(LossWeights, loss_weights, "loss_weights")
    if weights is LossWeights.DOCUMENT and boundary not in (BoundaryPolicy.MASK, BoundaryPolicy.TRIM):
        raise ConfigError(
            f'loss_weights="document" with boundary="{boundary}": there the last row of a document trains a token that '
            'is not one of its own. Use boundary="mask" or "trim".'
        )
    if weights is not None and spec.is_pair:
        raise ConfigError('loss_weights has no place in the pairs of format="torchtitan"; choose another format.')
    return Layout(format=kind, positions=where, mask=mask, loss_weights=weights)


def document_mask(segment_ids: torch.Tensor) -> MaskMod:
    """Return FlexAttention's mask_mod of packs: a row sees the rows before it in its own segment, and itself.

    `create_block_mask(document_mask(batch["segment_ids"]), B, None, S, S)`. The padding of a pack is one more segment.

    Args:
        segment_ids: int64 [B, S], on the device of the attention.
    """

    def mask_mod(
        batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        return (query >= key) & (segment_ids[batch, query] == segment_ids[batch, key])

    return mask_mod


def block_causal_mask(segment_ids: torch.Tensor) -> torch.Tensor:
    """Return the same as a bool tensor [B, S, S], True where row i sees row j: torchtune's block-causal mask.

    For `scaled_dot_product_attention` it needs a dimension for the heads: `mask[:, None]`.
    """
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return same.tril_()


def unshift(labels: torch.Tensor) -> torch.Tensor:
    """Return labels for a model that shifts them itself: [-100] + labels[:-1] in every pack; the last one is lost."""
    result = torch.full_like(labels, IGNORE_INDEX)
    result[..., 1:] = labels[..., :-1]
    return result


_ROW_KEYS = frozenset({"loss_weights", "mask"}.union(*(spec.row_keys for spec in FORMAT_SPECS.values())))


def context_parallel_slice(batch: Mapping[str, Any], *, rank: int, size: int) -> dict[str, Any]:
    """Return the part of a batch that one context-parallel rank has: of each pack a piece of its head and of its tail.

    The S rows are cut into 2 * size pieces; rank r has pieces r and 2 * size - 1 - r, one after the other, so that
    causal attention costs every rank the same. That is the order of Megatron and of torch's own head-tail load
    balancer. What has no rows stays as it is: "num_targets", "seq_lens" and "cu_seqlens" are those of the whole packs,
    and "mask" keeps all S keys of the rank's queries.

    Args:
        batch: of a format with shape [B, S] and labels already shifted.
        rank: index in the context-parallel group.
        size: ranks in it; 2 * size divides S.

    Raises:
        ConfigError: the batch is flat, its labels are shifted by the model, or the rows cannot be divided.
    """
    if not 0 <= rank < size:
        raise ConfigError(f"rank={rank} of size={size}: the rank must be at least 0 and below the size")
    rows = batch.get("tokens", batch.get("inputs")) if isinstance(batch, Mapping) else None
    if rows is None or rows.ndim != 2:
        raise ConfigError(
            'only batches of shape [B, S] with labels already shifted can be sliced (format="streampack", "torchtune", '
            '"megatron" or "maxtext"): a flat batch has no pack to slice, and a model that shifts labels itself would '
            "do so across the ends of the slices."
        )
    seq_len = rows.shape[1]
    if seq_len % (2 * size):
        near = max(1, seq_len // (2 * size)) * 2 * size
        raise ConfigError(f"seq_len={seq_len} cannot be cut into 2 * {size} pieces of one length; {near} can")
    piece = seq_len // (2 * size)
    head, tail = rank * piece, (2 * size - 1 - rank) * piece

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor.narrow(1, head, piece), tensor.narrow(1, tail, piece)], dim=1)

    return {name: cut(value) if name in _ROW_KEYS else value for name, value in batch.items()}


def pinned(batch: Batch) -> Batch:
    """Return the batch with its tensors in pinned memory."""
    if isinstance(batch, torch.Tensor):
        return batch.pin_memory()
    if isinstance(batch, dict):
        return {name: pinned(value) for name, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(pinned(value) for value in batch)
    return batch
