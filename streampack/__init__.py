"""A streaming packer for pretraining: tar shards in, packed and labelled batches out, with exact state.

The pipeline, in the order in which bytes become batches:

    shards -> lanes -> storage -> reader -> documents -> chat -> tokenizer -> boundary         what is in a lane
           -> packer -> stream -> pool -> messages -> rounds -> loader -> formats            from lanes to batches

Global batches are the same, bit for bit, on every number of ranks and workers, and through every resume.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streampack.dataset.dataset import PackedDataset
    from streampack.errors import StreampackError
    from streampack.loader.loader import PackedDataLoader
    from streampack.packing.packer import pack
    from streampack.packing.policies import BoundaryPolicy, ReplaceBoundary
    from streampack.records import Document, Pack, Span, TokenizedDocument, Tokenizer
    from streampack.state.checkpoint import merge_state_dicts
    from streampack.storage.access import RetryPolicy
    from streampack.tokenizers.loading import SentencePieceTokenizer

__all__ = [
    "BoundaryPolicy",
    "Document",
    "Pack",
    "PackedDataLoader",
    "PackedDataset",
    "ReplaceBoundary",
    "RetryPolicy",
    "SentencePieceTokenizer",
    "Span",
    "StreampackError",
    "TokenizedDocument",
    "Tokenizer",
    "merge_state_dicts",
    "pack",
]

# Imported on first use: the packing core needs no torch, and `streampack --help` must not wait for it.
_HOMES = {
    "BoundaryPolicy": "packing.policies",
    "Document": "records",
    "Pack": "records",
    "PackedDataLoader": "loader.loader",
    "PackedDataset": "dataset.dataset",
    "ReplaceBoundary": "packing.policies",
    "RetryPolicy": "storage.access",
    "SentencePieceTokenizer": "tokenizers.loading",
    "Span": "records",
    "StreampackError": "errors",
    "TokenizedDocument": "records",
    "Tokenizer": "records",
    "merge_state_dicts": "state.checkpoint",
    "pack": "packing.packer",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"streampack.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
