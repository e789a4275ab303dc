"""PackedDataset: shards and a tokenizer in, packs out, as a PyTorch IterableDataset.

Arguments are checked here, once; from then on a `Pipeline` is trusted. The dataset itself can be pickled and forked: it
holds no open file, no client and no handle of a tokenizer that does not survive either.
"""

import dataclasses
import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.data import IterableDataset, get_worker_info

from streampack.chat.encoder import ChatEncoder, make_encoder
from streampack.chat.options import Chat
from streampack.chat.templates import ChatFunction, TrainOn
from streampack.corpus.epochs import Corpus
from streampack.corpus.partition import auto_num_lanes, check_ranks, rank_lanes, worker_lanes
from streampack.corpus.resolve import resolve_shards
from streampack.corpus.table import ShardTable
from streampack.dataset.iteration import PackIterator, Reading, WorkerShare
from streampack.dataset.wrappers import check_not_dealt_again
from streampack.documents.fields import parse_field
from streampack.documents.reader import DocumentReader
from streampack.documents.split import HoldOut
from streampack.documents.transform import Transform
from streampack.errors import ConfigError, LoaderError, TopologyError
from streampack.lanes.pipeline import Pipeline
from streampack.packing.options import Overflow, PackingKind
from streampack.packing.policies import BoundaryPolicy, ReplaceBoundary, as_boundary
from streampack.ranks import topology
from streampack.records import Tokenizer
from streampack.storage.access import StorageReader
from streampack.storage.cache.folder import MIN_CACHE_BYTES, CacheFolder
from streampack.storage.options import RetryPolicy
from streampack.tokenizers.engines import choose_engine
from streampack.tokenizers.loading import check_tokenizer, load_tokenizer, special_ids


class PackedDataset(IterableDataset[dict[str, torch.Tensor]]):
    """Packs of `seq_len` tokens with labels, from tar shards, tokenized and packed on the fly.

    Iterating gives dicts of int64 tensors of shape [seq_len]: "tokens", "labels" (already shifted, -100 where there is
    no target), "position_ids" (restart in every segment) and "segment_ids" (1, 2, ...; 0 on padding). It works as it
    is in `torch.utils.data.DataLoader(dataset, batch_size=8, num_workers=4)`: every pack comes once over all workers
    and ranks. Use `PackedDataLoader` for the global order, exact state, and ranks that end together.

    Args:
        shards: URL, braces (`s3://b/{00000..01023}.tar`), glob, directory, `@manifest.jsonl`, or a list of those.
        tokenizer: path or URL of a SentencePiece model or a tokenizer.json (known by content), or a `Tokenizer`;
            None only for pre-tokenized shards without `add_bos` and `add_eos`.
        seq_len: tokens of a pack, at least 2.
        field: what of a sample is the document: "txt", "json:KEY", "jsonl:KEY" (many documents) or "npy" (token ids).
        boundary: what the row at a document's end has as its label; see `BoundaryPolicy`, or `ReplaceBoundary(id)`.
        packing: "wrap" cuts the stream of rows every `seq_len`; "next_fit" keeps documents whole. None: "wrap", for
            conversations "next_fit".
        overflow: what "next_fit" does with a document above `seq_len`: "split", "truncate", "drop" or "error". None:
            "split", for conversations "error".
        tail: "pad" or "drop" the unfinished pack at the end of each lane of a finite run.
        lookahead: False masks the last label of every full pack, as for a model that shifts labels itself.
        pad_id: the token of padding; None takes the tokenizer's, else 0.
        add_bos: put the tokenizer's BOS before each document, pre-tokenized ones too.
        add_eos: put its EOS behind each document.
        chat_template: for conversations (a field whose key is `messages`): "phi3", "llama2", "llama3", "mistral",
            "chatml"; the path of a tokenizer_config.json, or a Jinja template, in which `{% generation %}` encloses
            the assistant's; or a function that gives (text or token id, trained) pairs of a list of messages. The
            built-in ones put BOS and EOS where the model's format has them, the others say themselves what is there.
        train_on: which messages are targets: "assistant", "last_assistant" or "all".
        transform: `fn(document, rng)` gives a `Document`, a list of them, or None. `rng` depends on the document alone.
        transform_version: a name for what `transform` does; part of the fingerprint.
        split: "train" or "val": without, or only, the documents held out by a hash; "val" is one epoch as listed.
        val_fraction: share of the documents that is held out, 0 to 1.
        seed: decides the order of shards per epoch and the transform's `rng`.
        shuffle: whether shards come in a new order each epoch.
        num_lanes: independent streams that the corpus is divided into, for the life of a run; a multiple of every
            number of ranks that it shall run on. "auto" depends on the bytes of the corpus alone.
        epochs: passes over the corpus that one iteration makes; None: without end.
        epoch_end: a finite run on several ranks ends with its longest lane ("pad") or its shortest ("stop").
        on_error: "raise" at a bad record or a broken shard, or "skip" the record, or what the lane would read of the
            shard from where it breaks on (counted, logged, remembered in the state). A missing shard and failing
            storage always raise.
        max_skipped: what one lane may skip: a number, or a part of its documents as a fraction below 1 (and 10 in any
            case).
        max_document_bytes: a larger document is a bad record.
        max_buffer_bytes: memory for the lanes of a rank, divided over its workers.
        storage_options: for fsspec's filesystem.
        retry: how long and how often to try again when storage fails.
        cache_dir: a folder on a disk of this node, where the bytes of remote shards are kept and shared by all ranks
            and workers; made if it is not there. None: nothing is kept.
        cache_bytes: what the folder may hold; the blocks that were not read for longest are removed first.
        engine: which library tokenizes for a SentencePiece model; the ids are the same. "auto" takes gigatoken where it
            is installed (extra `fast`) and its ids are proved equal, "sentencepiece" and "gigatoken" insist. For BPE
            models SentencePiece gets long texts in parts where that is proved to give the same ids, too.
        dp_rank: data-parallel rank, for use without `PackedDataLoader`; None asks torch.distributed or torchrun.
        dp_size: data-parallel ranks.

    Raises:
        ConfigError: an argument that cannot work.
        ShardNotFoundError: nothing matches, or a listed shard is missing.
        TokenizerError: not a tokenizer, or one without the BOS or EOS asked for.
    """

    def __init__(
        self,
        shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        tokenizer: str | os.PathLike[str] | Tokenizer | None,
        seq_len: int = 4096,
        *,
        field: str = "txt",
        boundary: BoundaryPolicy | ReplaceBoundary | str = "mask",
        packing: PackingKind | str | None = None,
        overflow: Overflow | str | None = None,
        tail: str = "pad",
        lookahead: bool = True,
        pad_id: int | None = None,
        add_bos: bool = True,
        add_eos: bool = True,
        chat_template: str | ChatFunction | None = None,
        train_on: TrainOn | str = "assistant",
        transform: Transform | None = None,
        transform_version: str = "",
        split: Literal["train", "val"] | None = None,
        val_fraction: float = 0.0,
        seed: int = 0,
        shuffle: bool = True,
        num_lanes: int | Literal["auto"] = "auto",
        epochs: int | None = None,
        epoch_end: Literal["pad", "stop"] = "pad",
        on_error: Literal["raise", "skip"] = "raise",
        max_skipped: float = 1000,
        max_document_bytes: int = 64 * 2**20,
        max_buffer_bytes: int = 512 * 2**20,
        storage_options: Mapping[str, Any] | None = None,
        retry: RetryPolicy | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_bytes: int = 64 * 2**30,
        engine: str = "auto",
        dp_rank: int | None = None,
        dp_size: int | None = None,
    ) -> None:
        super().__init__()
        _choose("epoch_end", epoch_end, ("pad", "stop"))
        _choose("on_error", on_error, ("raise", "skip"))
        folder = None
        if cache_dir is not None:
            name = os.fspath(cache_dir)
            if not name or "://" in name:
                raise ConfigError(f"cache_dir={name!r} must be a folder on a disk of this node, or None")
            folder = CacheFolder(cache_dir, cache_bytes)
        for name, value, least in (
            ("epochs", epochs, 1),
            ("max_skipped", None if isinstance(max_skipped, float) else max_skipped, 0),
            ("max_document_bytes", max_document_bytes, 1),
            ("max_buffer_bytes", max_buffer_bytes, 1),
            ("cache_bytes", cache_bytes, MIN_CACHE_BYTES),
            ("num_lanes", None if num_lanes == "auto" else num_lanes, 1),
            ("seed", seed, 0),
        ):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}")
        if isinstance(max_skipped, float) and not 0 < max_skipped < 1:
            raise ConfigError(f"max_skipped={max_skipped!r} must be a whole number, or a fraction above 0 and below 1")
        if split is None and val_fraction:
            warnings.warn(f"val_fraction={val_fraction} has no effect without a split", stacklevel=2)
        if split == "val" and epochs not in (None, 1):
            raise ConfigError(f'split="val" is one epoch, the same at every pass; epochs={epochs} cannot be')
        self.epochs: int | None = 1 if split == "val" else epochs
        self.epoch_end = epoch_end
        self.seq_len = seq_len
        self.max_buffer_bytes = max_buffer_bytes
        self._asked_lanes = num_lanes
        self.auto_lanes = num_lanes == "auto"
        """Whether the number of lanes was left to the data."""
        self._specs = _specs(shards)
        self._storage = StorageReader(storage_options, RetryPolicy() if retry is None else retry, folder)
        self._table: ShardTable | None = None
        self._shards_print: dict[str, Any] | None = None
        self._by_hand = dp_rank is not None
        self._topology = topology.resolve(dp_rank=dp_rank, dp_size=dp_size)
        # In shared memory, so that persistent workers see a later `set_epoch`.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

        if isinstance(tokenizer, (str, os.PathLike)):
            path = os.fspath(tokenizer)
            tokenizer = load_tokenizer(self._storage.read(path), name=path)
        if tokenizer is None and (field != "npy" or add_bos or add_eos):
            raise ConfigError('tokenizer=None works with field="npy", add_bos=False and add_eos=False only')
        if tokenizer is not None:
            tokenizer = choose_engine(check_tokenizer(tokenizer), engine)
        parsed = parse_field(field)
        bos_id, eos_id = None, None
        chat: ChatEncoder | None = None
        if parsed.is_chat:
            chat = make_encoder(
                Chat(chat_template, train_on),
                tokenizer=tokenizer,
                add_bos=add_bos,
                add_eos=add_eos,
                read=self._storage.read,
            )
        elif chat_template is not None or train_on != TrainOn.ASSISTANT:
            raise ConfigError(f"chat_template and train_on are for conversations, and field={field!r} holds none")
        elif tokenizer is not None:
            bos_id, eos_id = special_ids(tokenizer, add_bos=add_bos, add_eos=add_eos)
        if pad_id is None:
            pad_id = None if tokenizer is None else tokenizer.pad_id
        self.pipeline = Pipeline(
            storage=self._storage,
            documents=DocumentReader(
                field=parsed,
                transform=transform,
                transform_version=transform_version,
                hold_out=None if split is None else HoldOut(split, val_fraction),
                seed=seed,
                max_document_bytes=max_document_bytes,
                chat=chat,
            ),
            tokenizer=tokenizer,
            bos_id=bos_id,
            eos_id=eos_id,
            seq_len=seq_len,
            boundary=as_boundary(boundary),
            packing=str(packing or (PackingKind.WRAP if chat is None else PackingKind.NEXT_FIT)),
            overflow=str(
                overflow or (Overflow.SPLIT if chat is None or packing == PackingKind.WRAP else Overflow.ERROR)
            ),
            tail=tail,
            lookahead=lookahead,
            pad_id=0 if pad_id is None else pad_id,
            token_ids=(None, None) if tokenizer is None else (tokenizer.bos_id, tokenizer.eos_id),
            on_error=on_error,
            max_skipped=max_skipped,
        )
        """What is done with a shard's bytes."""
        self.pipeline.packer()  # it checks the arguments of packing
        self._seed = seed
        self._shuffle = shuffle and split != "val"
        self._field = field
        self._chat = None if chat is None else {"chat_template": chat.digest, "train_on": str(chat.train_on)}
        self._adds = {"add_bos": add_bos, "add_eos": add_eos}
        if self._by_hand or not topology.may_be_distributed():
            # On one process, list here, so that workers never do; with peers PackedDataLoader lets rank 0 list for all.
            self.list_shards()

    # -- the shards ------------------------------------------------------------------------------------------------

    def list_shards(self) -> ShardTable:
        """The shard list, expanded and measured on the first call; later calls ask no storage."""
        if self._table is None:
            self._table = resolve_shards(self._specs, self._storage)
            if unchecked := self._table.num_unchecked:
                warnings.warn(
                    f"the digests of {unchecked} of {len(self._table)} shards are of whole shards, and lanes read "
                    "these in parts: they are checked by `streampack verify` only. `streampack manifest --digests` "
                    "writes digests of blocks, which are checked while reading.",
                    UserWarning,
                    stacklevel=2,
                )
        return self._table

    def adopt_shards(self, table: ShardTable) -> None:
        """Take the shard list that another rank has made."""
        self._table = table
        self._shards_print = None

    @property
    def num_lanes(self) -> int:
        """Lanes of the run; "auto" is resolved from the shards' bytes."""
        if self._asked_lanes == "auto":
            self._asked_lanes = auto_num_lanes(self.list_shards().total_bytes)
        return self._asked_lanes

    def without_lookahead(self) -> "PackedDataset":
        """The same packs for a model that shifts labels itself, or this dataset where labels never lie behind a pack.

        Whole-document packings have labels inside their packs only, but where `overflow` cut a document.
        """
        pipeline = self.pipeline
        if not pipeline.lookahead or pipeline.packing != PackingKind.WRAP:
            return self
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, pipeline=dataclasses.replace(pipeline, lookahead=False))
        return other

    def check_same_topology(self, other: topology.Topology) -> None:
        """Refuse a loader's ranks that differ from ranks given to the dataset by hand."""
        if self._by_hand and (other.rank, other.size) != (self._topology.rank, self._topology.size):
            raise TopologyError(
                f"the dataset was given dp_rank={self._topology.rank}, dp_size={self._topology.size}, the loader is "
                f"rank {other.rank} of {other.size}: give them to the loader only"
            )

    @property
    def vocab_size(self) -> int | None:
        """Of the tokenizer; None without one."""
        return None if self.pipeline.tokenizer is None else self.pipeline.tokenizer.vocab_size

    def corpus(self, num_lanes: int | None = None) -> Corpus:
        """Which bytes come when, in `num_lanes` lanes (None: as asked for); lists the shards if that was not done."""
        hold_out = self.pipeline.documents.hold_out
        return Corpus(
            table=self.list_shards(),
            num_lanes=self.num_lanes if num_lanes is None else num_lanes,
            seed=self._seed,
            shuffle=self._shuffle,
            one_epoch=hold_out is not None and hold_out.part == "val",
        )

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for two runs to have the same packs; plain JSON values."""
        pipeline, documents = self.pipeline, self.pipeline.documents
        boundary, hold_out = pipeline.boundary, documents.hold_out
        return {
            "num_lanes": self.num_lanes,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "field": self._field,
            "split": "all" if hold_out is None else hold_out.part,
            "val_fraction": 0.0 if hold_out is None else hold_out.fraction,
            "max_document_bytes": documents.max_document_bytes,
            "transform": "none" if documents.transform is None else f"version {documents.transform_version!r}",
            "tokenizer": "none" if pipeline.tokenizer is None else pipeline.tokenizer.digest,
            **(self._chat or {}),
            **self._adds,
            "seq_len": pipeline.seq_len,
            "boundary": f"replace:{boundary.token_id}" if isinstance(boundary, ReplaceBoundary) else str(boundary),
            "packing": pipeline.packing,
            "overflow": pipeline.overflow,
            "tail": pipeline.tail,
            "lookahead": pipeline.lookahead,
            "pad_id": pipeline.pad_id,
            "shards": self._shards_fingerprint(),
        }

    def _shards_fingerprint(self) -> dict[str, Any]:
        if self._shards_print is None:
            table = self.list_shards()
            self._shards_print = {
                "num_shards": len(table),
                "total_bytes": table.total_bytes,
                "num_estimated_sizes": int((~table.size_known).sum()),
                "digest": table.digest,
                "blocks": table.block_digests(),
            }
        return self._shards_print

    def spec_digest(self) -> str:
        """A digest of the shards as they were asked for, before anything is listed."""
        return hashlib.blake2b("\n".join(self._specs).encode(), digest_size=8).hexdigest()

    # -- iteration without PackedDataLoader ------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration with another epoch than 0; the loader needs no such call."""
        if epoch < 0:
            raise ConfigError(f"epoch={epoch} must be at least 0")
        self._epoch[0] = epoch

    def __iter__(self) -> PackIterator:
        """Packs of this rank and worker, from the epoch that was set; see `PackIterator` for its state."""
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        return PackIterator(partial(self._reading, worker, num_workers))

    def _reading(self, worker: int, num_workers: int) -> Reading:
        """What an iterator of this process reads, once it begins."""
        if get_worker_info() is not None and self._table is None:
            raise LoaderError(
                "the shards were not listed before the workers were forked: give dp_rank and dp_size to PackedDataset, "
                "call dataset.list_shards() in the main process, or use PackedDataLoader"
            )
        self._check_topology()
        rank, size = self._topology.rank, self._topology.size
        check_not_dealt_again(rank=rank, size=size)
        corpus = self.corpus()
        check_ranks(num_lanes=corpus.num_lanes, num_ranks=size)
        return Reading(
            pipeline=self.pipeline,
            corpus=corpus,
            lanes=worker_lanes(rank_lanes(rank, size, corpus.num_lanes), worker, num_workers),
            share=WorkerShare(rank, size, worker, num_workers),
            epoch=int(self._epoch.item()),
            epochs=self.epochs,
            budget_bytes=self.max_buffer_bytes // num_workers,
            fingerprint=self.fingerprint,
        )

    def _check_topology(self) -> None:
        """Refuse ranks that were resolved before torch.distributed knew them."""
        if self._by_hand or not topology.has_process_group():
            return
        now = topology.resolve()
        if (now.rank, now.size) != (self._topology.rank, self._topology.size):
            raise TopologyError(
                f"the dataset was made as rank {self._topology.rank} of {self._topology.size}, and torch.distributed "
                f"now says rank {now.rank} of {now.size}: make the dataset after init_process_group, or give dp_rank "
                "and dp_size"
            )

    def __getstate__(self) -> dict[str, Any]:
        # Called in the parent when workers are spawned: the last chance to list once for all of them.
        self._check_topology()
        check_not_dealt_again(rank=self._topology.rank, size=self._topology.size)
        self.list_shards()
        return self.__dict__.copy()


def _specs(shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    if isinstance(shards, (str, os.PathLike)):
        return (os.fspath(shards),)
    return tuple(os.fspath(shard) for shard in shards)


def _choose(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}")
