"""PackedDataset: shards and a tokenizer in, packs out, as a PyTorch IterableDataset.

In:    the arguments of a run, checked once.
Out:   packs of one rank and worker; to the loader the shards, the run that they make, and a fingerprint of it all.
Never: an open file, a client, or a tokenizer's handle that does not survive a pickle or a fork.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, Self

import torch
from torch.utils.data import IterableDataset, get_worker_info

from streampack.chat.options import Chat
from streampack.chat.templates import ChatFunction
from streampack.corpus.epochs import Corpus
from streampack.corpus.options import Shuffle
from streampack.corpus.partition import check_ranks, rank_lanes, worker_lanes
from streampack.corpus.schedule import Schedule
from streampack.corpus.table import ShardTable
from streampack.dataset.arguments import DatasetArguments
from streampack.dataset.fixed import FixedArguments
from streampack.dataset.iteration import PackIterator, Reading, WorkerShare
from streampack.dataset.rank import check_same, check_unchanged
from streampack.dataset.runplan import RunPlan
from streampack.dataset.sources import Data, Source
from streampack.dataset.stages import Stage
from streampack.dataset.wrappers import check_not_dealt_again
from streampack.documents.split import HoldOut
from streampack.documents.transform import Transform
from streampack.errors import LoaderError, TopologyError, as_integer
from streampack.lanes.budget import worker_bytes
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.run import FRESH, Continued, Run
from streampack.packing.options import Packing, PackingKind
from streampack.packing.policies import BoundaryPolicy, ReplaceBoundary
from streampack.ranks import topology
from streampack.records import Limits, Tokenizer
from streampack.storage.options import Storage, as_storage


class PackedDataset(FixedArguments, IterableDataset[dict[str, torch.Tensor]], instead="dataset and loader"):
    """Packs of `seq_len` tokens with labels, from tar shards, tokenized and packed on the fly.

    Iterating gives dicts of int64 tensors of shape [seq_len]: "tokens", "labels" (already shifted, -100 where there is
    no target), "position_ids" (restart in every segment) and "segment_ids" (1, 2, ...; 0 on padding). Use
    `PackedDataLoader` for the global order, exact state, and ranks that end together. In torch's own DataLoader every
    pack comes once over all workers; there each of several ranks takes `dataset.for_rank(rank, size)`.

    Args:
        data: which shards: a URL, braces (`s3://b/{00000..01023}.tar`), a glob, a directory, `@manifest.jsonl`, or a
            list of those; or several sources with their shares: a mapping of names to these or to a `Source`.
        tokenizer: path or URL of a SentencePiece model, tokenizer.json or tekken.json (known by content), or of a
            folder with one; or a `Tokenizer`; None only for pre-tokenized shards without `add_bos` and `add_eos`.
        seq_len: tokens of a pack, at least 2.
        field: which part of a sample is a document: "txt", "json:KEY", "jsonl:KEY" (many documents) or "npy" (token
            ids); ".meta.json:KEY" names one extension as a whole. The value of a key `messages` is a conversation.
        chat: for conversations: how they become tokens, and which messages are targets; a `Chat`, or its template
            alone, such as "phi3", or "tokenizer": that of its folder. The built-in templates put BOS and EOS where the
            model's format has them (where `add_bos`, `add_eos` ask for them); others write them themselves.
        transform: `fn(document, rng)` gives a `Document`, a list of them, or None. `rng` depends on the document alone.
        transform_version: a name for what `transform` does; part of the fingerprint.
        add_bos: put the tokenizer's BOS before each document, pre-tokenized ones too.
        add_eos: put its EOS after each document.
        pad_id: the token of padding; None takes the tokenizer's, else 0.
        bos_token, eos_token, pad_token: the text of the token that is it, of a tokenizer given by its path; None: as
            its files say.
        boundary: the label of the row at a document's end: a `BoundaryPolicy` or its name, or `ReplaceBoundary(id)`.
        packing: how rows become packs: "wrap" cuts them every `seq_len`, "next_fit" keeps documents whole, "best_fit"
            too and fills packs best; or a `Packing`, with more options. None: "wrap", for conversations "next_fit".
        shuffle: True, or a `Shuffle` with sizes of its own: blocks of the shards come in a new order each epoch, and
            the documents of some blocks are mixed. "shards": whole shards come in a new order each epoch, their
            documents as they stand. False: all as listed.
        seed: decides the order of every epoch and the transform's `rng`.
        num_lanes: independent streams that the corpus is divided into, a multiple of every number of ranks that the
            run is to use; `relane` gives a state another number. "auto" depends on the bytes of the corpus alone.
        epochs: passes over the corpus that one iteration makes; None: without end. The loader counts them from the
            epoch in which the pass began, also after a resume: docs/operations.md.
        stages: what changes in mid-run: weights, sources, `seq_len`, ...; a list of `Stage`, the first of which begins
            with the run.
        num_tokens: the length of the run: it ends with the first pack at or after so many tokens (packs times
            `seq_len`), on all ranks after the same step. A whole number; 2e12 is one. It may be raised at any resume.
        num_packs: the same in packs.
        exhausted: what becomes of a lane's packs of a source that has had its `max_epochs` there: "skip" gives them to
            the other sources in proportion (a lane without any waits for a stage that has one), "error" ends the run.
        epoch_end: a finite run on several ranks ends with its longest lane ("pad") or its shortest ("stop").
        hold_out: documents, or blocks of the shards, held out of training by a hash: `HoldOut("train", 0.001)` for all
            others, `HoldOut("val", 0.001)` for those, in one epoch as listed. None: all documents.
        on_error: "raise" at a bad record or a broken shard, or "skip" the record, or what the lane would read of the
            shard from where it is broken (counted, logged, remembered in the state). A missing shard and failing
            storage always raise.
        max_bad: how many bad records and broken shards the whole run may skip, and so each lane: a number, or a
            fraction below 1 of its documents so far (and 10 in any case). In torch's DataLoader it bounds each lane.
        limits: the memory of a document and of all lanes of a rank.
        storage: how the shards are reached: options of fsspec's filesystem, when to try again, a cache on the node's
            disk. A plain mapping stands for `Storage(options=mapping)`.
        engine: which library tokenizes; the ids are the same. "auto" takes gigatoken where it is installed (extra
            `fast`) and its ids for the tokenizer's file are equal on texts made to break it, "gigatoken" demands that;
            "sentencepiece" (a SentencePiece model) and "tokenizers" (a tokenizer.json) leave a file to its own library.

    Raises:
        ConfigError: an argument that cannot work.
        ShardNotFoundError: nothing matches, or a listed shard is missing.
        TokenizerError: not a tokenizer, or one without the BOS or EOS asked for.
    """

    def __init__(
        self,
        data: Data | Source | Mapping[str, Data | Source],
        tokenizer: str | os.PathLike[str] | Tokenizer | None,
        seq_len: int = 4096,
        *,
        field: str = "txt",
        chat: Chat | str | ChatFunction | None = None,
        transform: Transform | None = None,
        transform_version: str = "",
        add_bos: bool = True,
        add_eos: bool = True,
        pad_id: int | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
        boundary: BoundaryPolicy | ReplaceBoundary | str = "mask",
        packing: Packing | PackingKind | str | None = None,
        shuffle: Shuffle | bool | Literal["shards"] = True,
        seed: int = 0,
        num_lanes: int | Literal["auto"] = "auto",
        epochs: int | None = None,
        stages: Sequence[Stage] = (),
        num_tokens: float | None = None,
        num_packs: float | None = None,
        exhausted: Literal["skip", "error"] = "skip",
        epoch_end: Literal["pad", "stop"] = "pad",
        hold_out: HoldOut | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        max_bad: float = 1000,
        limits: Limits = Limits(),  # noqa: B008  # frozen
        storage: Storage | Mapping[str, object] = Storage(),  # noqa: B008  # frozen
        engine: str = "auto",
    ) -> None:
        super().__init__()
        self._arguments = DatasetArguments(
            data=data,
            tokenizer=tokenizer,
            seq_len=seq_len,
            field=field,
            chat=chat,
            transform=transform,
            transform_version=transform_version,
            add_bos=add_bos,
            add_eos=add_eos,
            pad_id=pad_id,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            boundary=boundary,
            packing=packing,
            shuffle=shuffle,
            seed=seed,
            num_lanes=num_lanes,
            epochs=epochs,
            stages=stages,
            num_tokens=num_tokens,
            num_packs=num_packs,
            exhausted=exhausted,
            epoch_end=epoch_end,
            hold_out=hold_out,
            on_error=on_error,
            max_bad=max_bad,
            limits=limits,
            storage=as_storage(storage),
            engine=engine,
        )
        self._plan = RunPlan(self._arguments)
        self._topology, self.is_validation = topology.resolve(), self._arguments.is_validation
        # In shared memory, so that persistent workers see a later `set_epoch`.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]  # torch's
        if not topology.may_be_distributed():
            # On one process, list here, so that workers never do; with peers PackedDataLoader lets rank 0 list for all.
            self.list_shards()

    @property
    def pipeline(self) -> Pipeline:
        """What is done with the bytes of a shard of the first source, in the first stage."""
        return next(iter(self._plan.pipelines.values()))[0]

    @property
    def sources(self) -> Mapping[str, Source]:
        """The sources by name, in the order of "source_ids": those of `data`, then those that stages add."""
        return MappingProxyType(self._arguments.sources)

    @property
    def seq_len(self) -> int:
        """Tokens of a pack, in the first stage."""
        return self.pipeline.seq_len

    @property
    def vocab_size(self) -> int | None:
        """Of the tokenizer; None without one."""
        return None if self.pipeline.tokenizer is None else self.pipeline.tokenizer.vocab_size

    @property
    def epochs(self) -> int | None:
        return 1 if self._arguments.is_validation else self._arguments.epochs

    @property
    def epoch_end(self) -> Literal["pad", "stop"]:
        return self._arguments.epoch_end

    @property
    def limits(self) -> Limits:
        return self._arguments.limits

    @property
    def auto_lanes(self) -> bool:
        """Whether the number of lanes was left to the data."""
        return self._arguments.num_lanes == "auto"

    @property
    def num_lanes(self) -> int:
        """Lanes of the run; "auto" is resolved from the bytes of the sources that it begins with."""
        return self._plan.num_lanes

    def fingerprint(self, num_lanes: int | None = None) -> dict[str, Any]:
        """What must be equal for two runs to have the same packs; plain JSON values. None: lanes as asked for."""
        return self._plan.fingerprint(num_lanes)

    def list_shards(self) -> ShardTable:
        """The shards of the first source; see `tables`."""
        return self.tables()[0]

    def tables(self) -> tuple[ShardTable, ...]:
        """The shards of each source, in order; the first call expands and measures them."""
        return self._plan.list_shards()

    def adopt_tables(self, tables: Sequence[ShardTable]) -> None:
        """Take the shards of each source, in order, as another rank has listed them."""
        self._plan.adopt(tables)

    def data_digest(self) -> str:
        """A digest of `data` as it was given, before anything is listed."""
        return self._plan.shards.digest

    def corpus(self, num_lanes: int | None = None) -> Corpus:
        """The first source's of a run: which of its bytes come when."""
        return self.run(num_lanes).sources[0].corpus

    def schedule(self) -> Schedule | None:
        """The stages and the end of the run; None: they depend on shards that have not been listed yet."""
        return self._plan.known_schedule()

    def in_step(self) -> dict[str, Any]:
        """What must be equal on all ranks besides the fingerprint: where the run, or a pass, ends."""
        return self._plan.in_step()

    def run(self, num_lanes: int | None = None, continued: Continued = FRESH) -> Run:
        """The run of these arguments; lists the shards if that was not done.

        Args:
            num_lanes: None: as asked for.
            continued: what a run that goes on from a state has of it.

        Raises:
            ConfigError: two stages would begin with the same round.
        """
        return self._plan.run(num_lanes, continued)

    def for_rank(self, rank: int, size: int) -> Self:
        """This dataset as data-parallel rank `rank` of `size` has it, for torch's own DataLoader on several ranks.

        `PackedDataLoader` needs no such call: it takes the dataset itself, and knows its rank. The shards are listed
        at once if that was not done. `set_epoch` is each dataset's own.

        Raises:
            TopologyError: there is no such rank.
            ConfigError: one of them is not a whole number.
        """
        rank, size = as_integer(rank, "rank"), as_integer(size, "size")
        if not 0 <= rank < size:
            raise TopologyError(f"for_rank({rank}, {size}): the rank must be at least 0 and below the number of ranks")
        self.list_shards()
        epoch = self._epoch.clone().share_memory_()
        return self._copy(_topology=topology.Topology(rank=rank, size=size, by_hand=True), _epoch=epoch)

    def without_lookahead(self) -> Self:
        """This dataset with `lookahead=False`, for a model that shifts labels itself.

        Packings of whole documents have each label in the pack of its row, except where `overflow` cut a document.
        """
        return self._copy(_plan=self._plan.without_lookahead())

    def _copy(self, **changes: object) -> Self:
        other = object.__new__(type(self))  # `copy.copy` would call `__getstate__`, which lists the shards
        other.__dict__.update(self.__dict__, **changes)
        return other

    def check_same_topology(self, other: topology.Topology) -> None:
        """Refuse a loader of another rank than the dataset was made for."""
        check_same(self._topology, other)

    def check_budget(self, *, num_ranks: int, num_workers: int) -> None:
        """Refuse workers with too little memory for their lanes, if the number of lanes is known by now."""
        self._plan.check_budget(num_ranks=num_ranks, num_workers=num_workers)

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration with another epoch than 0; the loader needs no such call."""
        self._epoch[0] = as_integer(epoch, "epoch", low=0)

    def __iter__(self) -> PackIterator:
        """Packs of this rank and worker, from the epoch that was set; see `PackIterator` for its state."""
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        return PackIterator(partial(self._reading, worker, num_workers))

    def _reading(self, worker: int, num_workers: int) -> Reading:
        """What an iterator of this process reads, once it begins."""
        if get_worker_info() is not None and not self._plan.shards.is_listed:
            raise LoaderError(
                "the shards were not listed before the workers were forked: give the DataLoader "
                "dataset.for_rank(rank, size), call dataset.list_shards() in the main process, or use PackedDataLoader"
            )
        check_unchanged(self._topology)
        rank, size = self._topology.rank, self._topology.size
        check_not_dealt_again(rank=rank, size=size)
        epoch = int(self._epoch.item())
        run = self.run(continued=Continued(first_epoch=epoch))
        check_ranks(num_lanes=run.num_lanes, num_ranks=size)
        lanes = rank_lanes(rank, size, run.num_lanes)
        return Reading(
            run=lambda first_epoch: self.run(continued=Continued(first_epoch=first_epoch)),
            lanes=worker_lanes(lanes, worker, num_workers),
            share=WorkerShare(rank, size, worker, num_workers),
            epoch=epoch,
            budget_bytes=worker_bytes(self.limits.buffer_bytes, run, num_lanes=len(lanes), num_workers=num_workers),
            fingerprint=self.fingerprint,
        )

    def __getstate__(self) -> dict[str, Any]:
        # Called in the parent when workers are spawned: the last chance to list once for all of them.
        check_unchanged(self._topology)
        check_not_dealt_again(rank=self._topology.rank, size=self._topology.size)
        self.list_shards()
        return self.__dict__.copy()

    def __repr__(self) -> str:
        return f"PackedDataset({self._plan.describe()})"
