"""A streaming packer for pretraining: tar shards in, packed and labelled batches out, with exact state.

The packages, in the order in which bytes become batches:

    corpus              which bytes of which shards a lane reads
    storage             a URL -> its bytes
    tar                 bytes -> samples
    documents           samples -> documents
    chat, tokenizers    documents -> token ids
    packing             token ids -> packs
    lanes               all of the above, as one stream that can restart anywhere
    state               where lanes continue <-> a checkpoint
    dataset             the arguments, checked once
    loader, ranks       lanes -> batches of one rank
    formats             a batch as a trainer takes it

Global batches are the same, bit for bit, on every number of ranks and workers, and after every resume.
"""

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streampack.chat.options import Chat
    from streampack.corpus.options import Shuffle
    from streampack.corpus.writing.public import write_shards
    from streampack.dataset.dataset import PackedDataset
    from streampack.dataset.sources import Source
    from streampack.dataset.stages import Stage
    from streampack.documents.split import HoldOut
    from streampack.errors import (
        ConfigError,
        CorruptShardError,
        DocumentTooLongError,
        LoaderError,
        MissingFieldError,
        RecordError,
        ShardError,
        ShardNotFoundError,
        StateError,
        StorageError,
        StreampackError,
        TokenizerError,
        TopologyError,
        TruncatedShardError,
        WrongCutError,
    )
    from streampack.loader.formatting import PackedBatch
    from streampack.loader.loader import PackedDataLoader
    from streampack.loader.relaning import relane
    from streampack.packing.options import Packing
    from streampack.packing.packs import Pack, Span
    from streampack.packing.policies import BoundaryPolicy, ReplaceBoundary
    from streampack.packing.public import pack
    from streampack.records import Document, Limits, TokenizedDocument, Tokenizer
    from streampack.state.joining import merge_state_dicts
    from streampack.storage.options import RetryPolicy, Storage
    from streampack.tokenizers.sentencepiece import SentencePieceTokenizer

    __version__: str

__all__ = [
    "BoundaryPolicy",
    "Chat",
    "ConfigError",
    "CorruptShardError",
    "Document",
    "DocumentTooLongError",
    "HoldOut",
    "Limits",
    "LoaderError",
    "MissingFieldError",
    "Pack",
    "PackedBatch",
    "PackedDataLoader",
    "PackedDataset",
    "Packing",
    "RecordError",
    "ReplaceBoundary",
    "RetryPolicy",
    "SentencePieceTokenizer",
    "ShardError",
    "ShardNotFoundError",
    "Shuffle",
    "Source",
    "Span",
    "Stage",
    "StateError",
    "Storage",
    "StorageError",
    "StreampackError",
    "TokenizedDocument",
    "Tokenizer",
    "TokenizerError",
    "TopologyError",
    "TruncatedShardError",
    "WrongCutError",
    "__version__",
    "merge_state_dicts",
    "pack",
    "relane",
    "write_shards",
]

# Imported on first use: the packing core needs no torch, and `streampack --help` must not wait for it.
_HOMES = {
    "BoundaryPolicy": "packing.policies",
    "Chat": "chat.options",
    "ConfigError": "errors",
    "CorruptShardError": "errors",
    "Document": "records",
    "DocumentTooLongError": "errors",
    "HoldOut": "documents.split",
    "Limits": "records",
    "LoaderError": "errors",
    "MissingFieldError": "errors",
    "Pack": "packing.packs",
    "PackedBatch": "loader.formatting",
    "PackedDataLoader": "loader.loader",
    "PackedDataset": "dataset.dataset",
    "Packing": "packing.options",
    "RecordError": "errors",
    "ReplaceBoundary": "packing.policies",
    "RetryPolicy": "storage.options",
    "SentencePieceTokenizer": "tokenizers.sentencepiece",
    "ShardError": "errors",
    "ShardNotFoundError": "errors",
    "Shuffle": "corpus.options",
    "Source": "dataset.sources",
    "Span": "packing.packs",
    "Stage": "dataset.stages",
    "StateError": "errors",
    "Storage": "storage.options",
    "StorageError": "errors",
    "StreampackError": "errors",
    "TokenizedDocument": "records",
    "Tokenizer": "records",
    "TokenizerError": "errors",
    "TopologyError": "errors",
    "TruncatedShardError": "errors",
    "WrongCutError": "errors",
    "merge_state_dicts": "state.joining",
    "pack": "packing.public",
    "relane": "loader.relaning",
    "write_shards": "corpus.writing.public",
}


try:
    _folder: str | None = os.getcwd()  # noqa: PTH109 (pathlib takes a while to import)
except OSError:  # it was removed
    _folder = None
"""The working directory at the import: '' in `sys.path` has stood for it."""


def __getattr__(name: str) -> object:
    if name == "__version__":
        value: object = importlib.import_module("importlib.metadata").version("streampack")
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"streampack.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
