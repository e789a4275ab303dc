"""A streaming packer for pretraining: tar shards in, packed and labelled batches out, with exact state.

The pipeline, in the order in which bytes become batches:

    shards -> lanes -> storage -> reader -> documents -> tokenizer -> boundary -> packer     what is in a lane
           -> stream -> pool -> messages -> rounds -> loader                                 from lanes to batches

Global batches are the same, bit for bit, on every number of ranks and workers, and through every resume.
"""

from streampack.boundary import BoundaryPolicy, ReplaceBoundary
from streampack.dataset import PackedDataset
from streampack.errors import StreampackError
from streampack.loader import PackedDataLoader
from streampack.packer import pack
from streampack.records import Document, Pack, Span, TokenizedDocument, Tokenizer
from streampack.state import merge_state_dicts
from streampack.storage import RetryPolicy
from streampack.tokenizer import SentencePieceTokenizer

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
