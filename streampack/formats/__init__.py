"""A batch as a trainer takes it: the keys and shapes of each format, masks, and slices for context-parallel ranks."""

from streampack.formats.consumers import Format, Positions
from streampack.formats.layout import (
    LossWeights,
    block_causal_mask,
    context_parallel_slice,
    document_mask,
    unshift,
)

__all__ = [
    "Format",
    "LossWeights",
    "Positions",
    "block_causal_mask",
    "context_parallel_slice",
    "document_mask",
    "unshift",
]
