"""A block of packs with the keys and shapes of each format; `formats/layout.py` has the table.

In:  the rows of B packs, each name's int64 [B, S], and the block that they come from.
Out: the batch that a consumer takes, without masks, weights and counts, which `layout` adds. Pure functions; no two of
     the tensors share memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from streampack.packing.blocks import stretches
from streampack.packing.packs import PackBlock
from streampack.records import IGNORE_INDEX

Batch: TypeAlias = Any  # a dict of tensors and other values; for torchtitan a pair of a dict and the labels
Arrays: TypeAlias = dict[str, torch.Tensor]


class Format(StrEnum):
    """Whose keys and shapes a batch has; the table in `formats/layout.py` says which."""

    STREAMPACK = "streampack"
    """The default. FlexAttention takes its segment_ids through `document_mask`."""
    TORCHTUNE = "torchtune"
    """What torchtune's `padded_collate_packed` takes; with `mask=True`, what it gives to torchtune's recipes."""
    HF = "hf"
    """Transformers' causal models, which shift labels themselves: a pack's last row has no label."""
    HF_FLASH = "hf_flash"
    """As `DataCollatorWithFlattening(return_flash_attn_kwargs=True)` gives."""
    TORCHTITAN = "torchtitan"
    """A flat pair; a document begins where the position is 0, so each pack begins one."""
    MEGATRON = "megatron"
    """Megatron-LM's fields; with positions="pack" those of its plain causal GPT, without cu_seqlens."""
    VARLEN = "varlen"
    """For flash-attn's and torch.nn.attention.varlen's functions."""
    MAXTEXT = "maxtext"
    """The family of seqio, also T5X and NeMo on JAX."""


class Positions(StrEnum):
    """Where position ids begin at 0."""

    DOCUMENT = "document"
    """At the beginning of every segment, also where a pack begins inside a document. The default."""
    PACK = "pack"
    """At the beginning of every pack only, for plain causal attention over the pack."""


def _cumulated(lengths: NDArray[np.int32]) -> torch.Tensor:
    """The sums of the first 0 .. n lengths, int32 [n + 1]."""
    ends = np.zeros(lengths.size + 1, np.int32)
    np.cumsum(lengths, out=ends[1:])
    return torch.from_numpy(ends)


def _streampack(rows: Arrays, block: PackBlock, positions: Positions) -> Batch:
    return rows


def _torchtune(rows: Arrays, block: PackBlock, positions: Positions) -> Batch:
    cut = stretches(block)
    lengths = cut.lengths.astype(np.int64)
    return {
        "tokens": rows["tokens"],
        "labels": rows["labels"],
        "input_pos": rows["position_ids"],
        "seq_lens": [torch.from_numpy(of_pack) for of_pack in np.split(lengths, np.cumsum(cut.counts)[:-1])],
    }


def _hf(rows: Arrays, block: PackBlock, positions: Positions) -> Batch:
    return {"input_ids": rows["tokens"], "labels": rows["labels"], "position_ids": rows["position_ids"]}


def _hf_flash(rows: Arrays, block: PackBlock, positions: Positions) -> Batch:
    lengths = stretches(block).lengths
    ends, longest = _cumulated(lengths), int(lengths.max())
    flat = {name: tensor.reshape(1, -1) for name, tensor in _hf(rows, block, positions).items()}
    return flat | {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends.clone(),
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _torchtitan(rows: Arrays, block: PackBlock, positions: Positions) -> Batch:
    inputs = {"input": rows["tokens"].reshape(-1), "positions": rows["position_ids"].reshape(-1)}
    return inputs, rows["labels"].reshape(-1)


def _megatron(rows: Arrays, block: PackBlock, positions: Positions) -> Batch:
    trained = rows["labels"] != IGNORE_INDEX
    batch = {
        "tokens": rows["tokens"],
        "labels": rows["labels"].where(trained, 0),
        "loss_mask": trained.float(),
        "position_ids": rows["position_ids"],
    }
    if positions is Positions.PACK:
        return batch
    num_packs, seq_len = block.tokens.shape
    cut = stretches(block)
    cu_seqlens = torch.full((num_packs, max(cut.counts) + 1), seq_len, dtype=torch.int32)
    max_seqlen = torch.empty(num_packs, dtype=torch.int32)
    for pack, of_pack in enumerate(np.split(cut.lengths, np.cumsum(cut.counts)[:-1])):
        cu_seqlens[pack, : of_pack.size + 1] = _cumulated(of_pack)
        max_seqlen[pack] = int(of_pack.max())
    return batch | {"cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}


def _varlen(rows: Arrays, block: PackBlock, positions: Positions) -> Batch:
    lengths = stretches(block).lengths
    flat = {name: rows[name].reshape(-1) for name in ("tokens", "labels", "position_ids")}
    return flat | {"cu_seqlens": _cumulated(lengths), "max_seqlen": int(lengths.max())}


def _maxtext(rows: Arrays, block: PackBlock, positions: Positions) -> Batch:
    trained = rows["labels"] != IGNORE_INDEX
    batch = {
        "inputs": rows["tokens"],
        "targets": rows["labels"].where(trained, 0),
        "inputs_position": rows["position_ids"],
        "inputs_segmentation": rows["segment_ids"],
        "targets_position": rows["position_ids"],
        "targets_segmentation": rows["segment_ids"].where(trained, 0),
    }
    return {name: tensor.to(torch.int32) for name, tensor in batch.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatSpec:
    """What a batch of a format is; options that a format refuses are in `as_layout` (`formats/layout.py`)."""

    make: Callable[[Arrays, PackBlock, Positions], Batch]
    """Makes a batch from rows, each int64 [B, S], and their block."""
    labels: str = "labels"
    """The key of the labels."""
    row_keys: tuple[str, ...] = ()
    """Keys of tensors [B, S], of which a context-parallel rank has a part; none: the batch cannot be sliced."""
    model_shifts: bool = False
    """The model shifts labels itself, so a dataset for it does not look for the label of a pack's last row."""
    takes_mask: bool = False
    """The loader may add "mask"."""
    is_pair: bool = False
    """A batch is a pair of a dict and the labels, and nothing can be added to it."""


FORMAT_SPECS: Mapping[Format, FormatSpec] = {
    Format.STREAMPACK: FormatSpec(
        make=_streampack, row_keys=("tokens", "labels", "position_ids", "segment_ids"), takes_mask=True
    ),
    Format.TORCHTUNE: FormatSpec(make=_torchtune, row_keys=("tokens", "labels", "input_pos"), takes_mask=True),
    Format.HF: FormatSpec(make=_hf, model_shifts=True),
    Format.HF_FLASH: FormatSpec(make=_hf_flash, model_shifts=True),
    Format.TORCHTITAN: FormatSpec(make=_torchtitan, is_pair=True),
    Format.MEGATRON: FormatSpec(make=_megatron, row_keys=("tokens", "labels", "position_ids", "loss_mask")),
    Format.VARLEN: FormatSpec(make=_varlen),
    Format.MAXTEXT: FormatSpec(
        make=_maxtext,
        labels="targets",
        row_keys=(
            *("inputs", "targets", "inputs_position", "targets_position"),
            *("inputs_segmentation", "targets_segmentation"),
        ),
    ),
}
