"""PackedDataLoader: the packs of one rank as batches, in the global order, with a state that moves to any topology.

    workers --messages--> deal (rank's order) --items--> rounds (batches) --> commit --> formats --> the trainer

A batch is committed when it is handed out: its packs' cursors become the lanes' rows, and the rows are the state.
What workers have made ahead is in no state; workers can be ended and started again from the rows at any time.
"""

import sys
from collections.abc import Collection, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

from streampack.config.file import load_config
from streampack.corpus.partition import check_ranks, rank_lanes
from streampack.dataset.dataset import PackedDataset
from streampack.errors import ConfigError, LoaderError, TopologyError
from streampack.formats.consumers import Batch as FormattedBatch
from streampack.formats.consumers import Format, Positions
from streampack.formats.layout import MODEL_SHIFTS, LossWeights, as_layout, pinned
from streampack.loader import trainers
from streampack.loader.agreement import join_states, share_dataset
from streampack.loader.commits import Commits
from streampack.loader.consistency import Verifier
from streampack.loader.passes import Pass, PassSettings
from streampack.loader.restarts import WorkerRestarts
from streampack.loader.rounds import Batch
from streampack.packing.blocks import gather
from streampack.ranks import topology
from streampack.records import StorageUse
from streampack.state.checkpoint import Committed, State, check_versions
from streampack.state.fingerprint import check_fingerprint, fingerprint_of

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh


class PackedDataLoader:
    """Batches of packs for one data-parallel rank; the same global batches on every number of ranks and workers.

    Iterating gives dicts of int64 tensors of shape [batch_size, seq_len]: "tokens", "labels", "position_ids",
    "segment_ids", and "num_targets" of shape [batch_size]; or what `format` names. A `break` loses nothing: a new
    iterator goes on behind the last batch handed out. In a finite run one iteration is a pass of `dataset.epochs`
    epochs, and the next iteration is the next pass; every rank gives the same number of batches.

    Args:
        dataset: what to load.
        batch_size: packs of a batch on this rank; free to change at any time.
        num_workers: processes that read, tokenize and pack; 0 does it in this process. Free to change at any time.
        dp_rank: data-parallel rank; None takes it from `device_mesh`, torch.distributed or torchrun's environment.
        dp_size: data-parallel ranks; must divide the dataset's lanes.
        device_mesh: its dimensions named dp, dp_replicate, dp_shard, ... are data-parallel; peers in other dimensions
            get the same packs.
        process_group: the data-parallel ranks, for the exchanges of a finite run; None: looked up at first use.
        format: whose keys and shapes a batch has: "streampack", "torchtune", "hf", "hf_flash", "torchtitan",
            "megatron", "varlen" or "maxtext"; see `streampack.formats`. Behind "hf" and "hf_flash" the model shifts
            labels and sees none behind a pack's end: the dataset is taken as if made with `lookahead=False`.
        positions: position ids begin at 0 in every "document", or once a "pack", for plain causal attention over it.
        loss_weights: add "loss_weights", float32 beside the labels: "token" (1 for each target), or "document" (1 / the
            targets of its document in all packs); divide the sum of weighted losses by the sum of weights.
        mask: add "mask", block-causal, bool [batch_size, seq_len, seq_len]; for "streampack" and "torchtune".
        provenance: add to a batch "provenance", for each pack where its segments come from (a tuple of
            `Provenance`), and "pack_numbers", the global numbers of its packs (int64 [batch_size]; -1 for a filler
            that has none).
        drop_last: in a finite run, leave out what does not fill a batch on every rank, instead of padding it.
        prefetch_bytes: bound on the packs that workers may have made ahead.
        pin_memory: put batches into pinned memory; "auto" does where there is a GPU.
        multiprocessing_context: "fork", "spawn" or "forkserver"; None takes Python's default.
        worker_timeout_s: a worker that is waited for and shows no sign of life for so many seconds is ended, as one
            that died is noticed at once; the workers are restarted and go on with the same bits, up to 3 times an
            hour. A worker shows life with every pack, sample, record and block of bytes, and while it waits to try
            a failing storage again; so this must be more than the slowest document needs in the transform and the
            tokenizer, and more than `RetryPolicy.timeout_s`. At least 2 minutes are allowed until the first sign.
        verify_every: at the first batch and every so many behind it, compare all ranks of `device_mesh` (without one,
            the data-parallel ones): the same step, different packs on data-parallel ranks, the same packs on peers in
            other dimensions. What differs is a `LoaderError` on all of them. Every rank must have a loader then.
        whole_state: `state_dict` gives the lanes of all ranks, on every rank: for trainers that save what rank 0 has,
            as Lightning and Accelerate do. All data-parallel ranks must call it together.

    Raises:
        ConfigError: an argument that cannot work.
        TopologyError: ranks that do not divide the lanes.
    """

    def __init__(
        self,
        dataset: PackedDataset,
        batch_size: int = 1,
        *,
        num_workers: int = 2,
        dp_rank: int | None = None,
        dp_size: int | None = None,
        device_mesh: "DeviceMesh | None" = None,
        process_group: "dist.ProcessGroup | None" = None,
        format: Format | str = "streampack",  # noqa: A002 (the name of the public contract)
        positions: Positions | str = "document",
        loss_weights: LossWeights | str | None = None,
        mask: bool = False,
        provenance: bool = False,
        drop_last: bool = False,
        prefetch_bytes: int = 64 * 2**20,
        pin_memory: bool | Literal["auto"] = "auto",
        multiprocessing_context: str | None = None,
        worker_timeout_s: float = 300.0,
        verify_every: int | None = None,
        whole_state: bool = False,
    ) -> None:
        if not isinstance(dataset, PackedDataset):
            raise ConfigError(f"dataset must be a PackedDataset, not {type(dataset).__name__}")
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("prefetch_bytes", prefetch_bytes, 1),
            ("verify_every", 1 if verify_every is None else verify_every, 1),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}")
        if not isinstance(worker_timeout_s, int | float) or not worker_timeout_s > 0:
            raise ConfigError(f"worker_timeout_s={worker_timeout_s!r} must be a number of seconds above 0")
        self._layout = as_layout(
            format, positions=positions, mask=mask, boundary=dataset.pipeline.boundary, loss_weights=loss_weights
        )
        if provenance and self._layout.format is Format.TORCHTITAN:
            raise ConfigError('provenance=True has no place in the pairs of format="torchtitan"; choose another format')
        if self._layout.format in MODEL_SHIFTS:
            dataset = dataset.without_lookahead()
        self._dataset = dataset
        self._provenance = provenance
        self.batch_size = batch_size
        self._topology = topology.resolve(dp_rank=dp_rank, dp_size=dp_size, device_mesh=device_mesh)
        dataset.check_same_topology(self._topology)
        self._process_group = process_group
        self._settings = PassSettings(
            batch_size=batch_size,
            num_ranks=self._topology.size,
            num_workers=num_workers,
            prefetch_bytes=prefetch_bytes,
            multiprocessing_context=multiprocessing_context,
            worker_timeout_s=worker_timeout_s,
            with_provenance=provenance or loss_weights == LossWeights.DOCUMENT,
            drop_last=drop_last,
        )
        for name, wanted in (("verify_every", verify_every is not None), ("whole_state", whole_state)):
            if wanted and self._topology.by_hand and self._topology.size > 1 and process_group is None:
                raise ConfigError(
                    f"{name} asks the other ranks, and how to reach ranks that were given by hand is not known: give "
                    "process_group too, or device_mesh instead of dp_rank and dp_size"
                )
        self._whole_state = whole_state
        self._verifier: Verifier | None = None
        if verify_every is not None:
            alone = self._topology.is_alone(process_group)
            self._verifier = Verifier(verify_every, self._topology, None if alone else self._all_ranks)
        self._pin_memory = torch.cuda.is_available() if pin_memory == "auto" else pin_memory
        self._peers: topology.Peers | None = None
        self._commits: Commits | None = None
        self._ahead: Sized = ()
        """What a trainer has taken of the current iterator and not used yet."""
        self._pass: Pass | None = None
        self._past = _PastPasses()
        self._restarts = WorkerRestarts()
        self._batches = 0
        self._waited_s = 0.0

    @classmethod
    def from_config(cls, path: str) -> "PackedDataLoader":
        """The loader that a YAML file describes."""
        config = load_config(path)
        return cls(PackedDataset(**config.dataset_arguments()), **config.loader_arguments())

    @property
    def dataset(self) -> PackedDataset:
        """What is loaded; where the model shifts labels, without the label behind a pack's end."""
        trainers.refuse_rebuilding(sys._getframe(1))  # noqa: SLF001  # the caller
        return self._dataset

    # -- what a trainer does ---------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[FormattedBatch]:
        """Go on behind the last batch handed out; an older iterator raises from now on.

        Batches that Lightning took ahead of the older one and did not use come again.
        """
        if (state := trainers.state_left_unread(self)) is not None:
            self.load_state_dict(state)
        self._take_back()
        current = self._current_pass(new=True)
        current.taken = True
        return self._iterate(current)

    def _iterate(self, current: Pass) -> Iterator[FormattedBatch]:
        if self._pass is current:
            self._ahead = trainers.batches_taken_ahead()
        while True:
            if self._pass is not current:
                raise LoaderError(
                    "this iterator is over: a newer iter(loader), load_state_dict or close has taken its place"
                )
            batch = self._next_batch(current)
            if batch is None:
                self._end_pass(current)
                return
            try:
                handed_out = self._hand_out(batch)
                if self._verifier is not None and self._verifier.is_due(self._batches):
                    self._verifier.check(batch, self._prepare().rows, self._batches, self._arguments)
            except BaseException:
                self._retire()  # the batch is not committed, so it must come again
                raise
            self._prepare().add(batch)
            self._batches += 1
            yield handed_out

    def _next_batch(self, current: Pass) -> Batch | None:
        begin = perf_counter()
        try:
            return next(current.batches, None)
        except BaseException:
            self._retire()  # a pass that broke off must not be taken for one that has ended
            raise
        finally:
            self._waited_s += perf_counter() - begin

    def skip(self, num_batches: int) -> int:
        """Go past up to `num_batches` batches on this rank without handing them out; call it on every rank.

        Their positions are committed, and their packs counted as passed over, their documents as documents; they are in
        no digest. Returns how many there were before the pass ended.
        """
        current = self._current_pass(new=False)
        for done in range(num_batches):
            batch = self._next_batch(current)
            if batch is None:
                return done
            self._prepare().add(batch, skipped=True)
        return num_batches

    def state_dict(self, batches_back: int = 0) -> State:
        """The state behind the last batch handed out, or up to 8 batches before; copies of everything.

        One int64 tensor ("lanes.000123") and one JSON string ("skipped_ranges.000123") per lane of this rank, and
        values that are equal on all ranks: it saves and loads on any number of ranks through
        torch.distributed.checkpoint. With `whole_state` the lanes of all ranks; a collective. Batches that Lightning
        has taken ahead are not in it.
        """
        commits = self._prepare()
        if self._topology.size > 1 and not self._whole_state:
            caller = sys._getframe(1)  # noqa: SLF001
            trainers.check_every_rank_saves(caller, size=self._topology.size)
        committed = commits.before(batches_back, ahead=len(self._ahead))
        state = committed.to_state(self._dataset.fingerprint() | {"num_lanes": committed.num_lanes})
        if not self._whole_state or self._topology.size == 1:
            return state
        return join_states(state, topology.Peers(self._topology, self._process_group, purpose="state"))

    def load_state_dict(self, state: Mapping[str, Any], *, allow: Collection[str] = ()) -> None:
        """Go on from a state, of any number of ranks and workers; ends workers and iterators of before.

        Args:
            state: from `state_dict`, `merge_state_dicts`, torch.distributed.checkpoint or JSON.
            allow: fields of the fingerprint that may differ because they only decide how the same rows are cut into
                packs, such as {"seq_len", "boundary"}.

        Raises:
            StateError: another version, another run (each differing field is named), or lanes that are missing.
        """
        check_versions(state)
        saved = fingerprint_of(state)
        self._share_shards()
        now = self._dataset.fingerprint()
        num_lanes = int(saved.get("num_lanes", 0))
        if self._dataset.auto_lanes:
            now["num_lanes"] = num_lanes  # a run keeps its lanes for life, whatever the data say now
        check_fingerprint(saved, now, allow=allow)
        check_ranks(num_lanes=num_lanes, num_ranks=self._topology.size)
        lanes = rank_lanes(self._topology.rank, self._topology.size, num_lanes)
        committed = Committed.from_state(state, lanes, num_lanes)
        # From here on nothing can fail: a state that is refused leaves the loader as it was.
        self._retire()
        self._ahead = ()
        self._commits = Commits(committed)

    @property
    def num_lanes(self) -> int:
        """Lanes of the run: a loaded state's where the dataset leaves them to the data, else the dataset's."""
        return self._prepare().rows.num_lanes

    def digest(self) -> int:
        """A 64-bit digest of (global number, content) of every pack handed out on this rank's lanes since the start.

        Ranks' digests add up, modulo 2**64, to the same number on every topology.
        """
        return self._prepare().rows.digest()

    def stats(self) -> dict[str, float]:
        """Counts of this rank's lanes since the start of the run, and of this loader.

        Of this loader are: "batches"; "left_out_packs"; "worker_restarts", how often its workers were restarted;
        "retries", "requests", "bytes_read", "seconds_waited_storage", "cache_hits" and "cache_bytes", of the storage
        and its cache in all its workers together, up
        to the messages that came; "seconds_waited", of this process for batches.
        """
        counts = self._prepare().rows.counts()
        storage = self._past.storage if self._pass is None else self._past.storage.plus(self._pass.tally.storage)
        return {
            **counts._asdict(),
            "batches": self._batches,
            "left_out_packs": self._past.left_out_packs,
            "worker_restarts": self._restarts.number,
            "retries": storage.retries,
            "requests": storage.requests,
            "bytes_read": storage.bytes_read,
            "seconds_waited_storage": storage.seconds_waited,
            "cache_hits": storage.cache_hits,
            "cache_bytes": storage.cache_bytes,
            "seconds_waited": self._waited_s,
        }

    def close(self) -> None:
        """End the workers. The state stays readable; iterating again starts new workers."""
        self._retire()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- start -----------------------------------------------------------------------------------------------------

    def _prepare(self) -> Commits:
        """What is committed; the first call lists shards and compares the ranks."""
        if self._commits is None:
            self._share_shards()
            num_lanes, ranks = self._dataset.num_lanes, self._topology
            check_ranks(num_lanes=num_lanes, num_ranks=ranks.size)
            self._commits = Commits(Committed.fresh(rank_lanes(ranks.rank, ranks.size, num_lanes), num_lanes))
        return self._commits

    def _share_shards(self) -> None:
        """One listing for all ranks, and the same arguments on all of them. A collective, once."""
        self._topology = self._topology.joined()
        alone = self._topology.size == 1 or (self._topology.by_hand and self._process_group is None)
        if self._peers is not None or alone:
            self._dataset.list_shards()
            return
        if not topology.has_process_group():
            if self._dataset.epochs is not None:
                raise TopologyError(
                    f"a finite run (epochs={self._dataset.epochs}) on {self._topology.size} ranks must agree on its "
                    "end: call torch.distributed.init_process_group first, or give dp_rank and dp_size by hand (then "
                    "ranks may end at different batches)"
                )
            self._dataset.list_shards()
            return
        peers = topology.Peers(self._topology, self._process_group)
        share_dataset(self._dataset, peers, rank=self._topology.rank, in_step=self._in_step())
        self._peers = peers  # only now: whoever tries again after an error is to be compared again

    def _all_ranks(self) -> topology.Peers:
        return topology.Peers.of_all(self._topology, self._process_group, purpose="verify")

    def _in_step(self) -> dict[str, Any]:
        """Arguments that are in no state, and that all ranks must have been given alike."""
        return {
            "epochs": self._dataset.epochs,
            "epoch_end": self._dataset.epoch_end,
            "batch_size": self.batch_size,
            "drop_last": self._settings.drop_last,
            "verify_every": None if self._verifier is None else self._verifier.every,
        }

    def _arguments(self) -> dict[str, Any]:
        """All arguments that all ranks must have been given alike."""
        return {**self._dataset.fingerprint(), "num_lanes": self.num_lanes, **self._in_step()}

    def _current_pass(self, *, new: bool) -> Pass:
        """The pass that goes on from the committed rows; `new`: not one that an iterator has been given out for."""
        committed = self._prepare().rows
        if self._pass is not None and new and self._pass.taken:
            self._retire()
        if self._pass is None:
            self._pass = Pass(self._dataset, committed, self._settings, self._peers, self._restarts)
        return self._pass

    def _retire(self) -> None:
        if self._pass is not None:
            self._pass.close()
            self._past.add(self._pass)
            self._pass = None

    def _take_back(self) -> None:
        """Go back behind batches that a trainer has taken and will not use any more."""
        if ahead := len(self._ahead):
            self._retire()
            self._prepare().take_back(ahead)
        self._ahead = ()

    # -- batches ---------------------------------------------------------------------------------------------------

    def _end_pass(self, current: Pass) -> None:
        assert self._dataset.epochs is not None, "an endless run has no end"
        self._prepare().end_pass(current.tally.ends, epochs=self._dataset.epochs)
        self._retire()

    def _hand_out(self, batch: Batch) -> FormattedBatch:
        dataset = self._dataset
        packs = [None if item is None else item.pack for item in batch.items]
        in_blocks = [None if pack is None else pack.in_block for pack in packs]
        block = gather(in_blocks, seq_len=dataset.seq_len, pad_id=dataset.pipeline.pad_id)
        provenance = [() if pack is None else pack.provenance for pack in packs]
        result = self._layout.batch(block, [segment.targets for of_pack in provenance for segment in of_pack])
        if self._pin_memory:
            result = pinned(result)
        if self._provenance:
            result["provenance"] = provenance
            committed = self._prepare().rows
            result["pack_numbers"] = torch.tensor(
                [
                    -1 if item is None else item.round * committed.num_lanes + committed.lanes[item.lane_index]
                    for item in batch.items
                ]
            )
        return result


@dataclass(slots=True)
class _PastPasses:
    """What the passes before the current one counted."""

    left_out_packs: int = 0
    storage: StorageUse = field(default_factory=StorageUse)

    def add(self, ended: Pass) -> None:
        self.left_out_packs += ended.tally.left_out.packs
        self.storage = self.storage.plus(ended.tally.storage)
