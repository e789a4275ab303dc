"""PackedDataLoader: the packs of one rank as batches, in the global order, with a state that moves to any topology.

    workers --messages--> deal (rank's order) --items--> rounds (batches) --> commit --> formats --> the trainer

In:    a `PackedDataset`, and which rank this is.
Out:   batches; a state, a digest and counts of what was handed out.
Never: a state that counts what workers have made and the trainer was not given. A batch is committed when it is
       handed out: its packs' cursors become the lanes' rows, and the rows are the state, from which workers can be
       restarted at any time.
"""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sized
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

from streampack.config.file import load_config
from streampack.dataset import wrappers
from streampack.dataset.dataset import PackedDataset
from streampack.errors import ConfigError, LoaderError, as_bool, as_integer
from streampack.formats.consumers import Batch, Format, Positions
from streampack.formats.layout import LossWeights, as_layout
from streampack.loader.agreement import SharedRun, join_states
from streampack.loader.commits import Commits
from streampack.loader.consistency import Verifier
from streampack.loader.formatting import BatchFormatter
from streampack.loader.passes import Pass, PassSettings
from streampack.loader.restarts import WorkerRestarts
from streampack.loader.rounds import PackBatch
from streampack.loader.stats import LoaderCounts, stats_of
from streampack.ranks import topology
from streampack.ranks.exchange import RankExchanges
from streampack.state.checkpoint import Committed, State, check_versions
from streampack.state.fingerprint import check_fingerprint, fingerprint_of

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh


class PackedDataLoader:
    """Batches of packs for one data-parallel rank; the same global batches on every number of ranks and workers.

    Iterating gives dicts of int64 tensors of shape [batch_size, seq_len]: "tokens", "labels", "position_ids",
    "segment_ids", and "num_targets" of shape [batch_size]; or what `format` names. A `break` loses nothing: a new
    iterator continues after the last batch handed out. In a finite run one iteration is a pass of `dataset.epochs`
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
            "megatron", "varlen" or "maxtext"; see `streampack.formats`. With "hf" and "hf_flash" the model shifts
            labels and sees none after a pack's end: the dataset is taken as if made with `lookahead=False`.
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
        worker_timeout_s: seconds without a sign of life after which a worker that is waited for is killed; a dead
            worker is noticed at once. All workers of the rank are then restarted and continue with the same bits, up
            to 3 times an hour. A worker gives a sign with every pack, sample, record and block of bytes, and while it
            waits to try a failing storage again; so this must be more than the slowest document needs in the transform
            and the tokenizer, and more than `RetryPolicy.timeout_s`. The first sign may take at least 2 minutes.
        verify_every: at the first batch and every `verify_every` after it, compare all ranks of `device_mesh` (without
            one, the data-parallel ones): the same step, different packs on data-parallel ranks, the same packs on
            peers in other dimensions. What differs is a `LoaderError` on all of them. Every rank must have a loader
            then.
        whole_state: `state_dict` gives the lanes of all ranks, on every rank: for trainers that save what rank 0 has,
            as Lightning, Accelerate and Transformers do; see `streampack.integrations`. All data-parallel ranks must
            call it together.

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
        layout = as_layout(
            format, positions=positions, mask=mask, boundary=dataset.pipeline.boundary, loss_weights=loss_weights
        )
        here = topology.resolve(dp_rank=dp_rank, dp_size=dp_size, device_mesh=device_mesh)
        dataset.check_same_topology(here)
        self._exchanges = RankExchanges(here, process_group)
        self.whole_state = as_bool(whole_state, "whole_state")
        """Whether `state_dict` gives the lanes of all ranks."""
        if self.whole_state:
            self._exchanges.check_known("whole_state")
        self.dataset = dataset.without_lookahead() if layout.spec.model_shifts else dataset
        """What is loaded; for a format whose model shifts labels, with `lookahead=False`."""
        self.batch_size = as_integer(batch_size, "batch_size", low=1)
        self._settings = PassSettings(
            batch_size=self.batch_size,
            num_ranks=here.size,
            num_workers=as_integer(num_workers, "num_workers", low=0),
            prefetch_bytes=as_integer(prefetch_bytes, "prefetch_bytes", low=1),
            multiprocessing_context=multiprocessing_context,
            worker_timeout_s=worker_timeout_s,
            with_provenance=provenance or loss_weights == LossWeights.DOCUMENT,
            drop_last=drop_last,
        )
        self._formatter = BatchFormatter(
            layout=layout,
            seq_len=dataset.seq_len,
            pad_id=dataset.pipeline.pad_id,
            pin_memory=torch.cuda.is_available() if pin_memory == "auto" else pin_memory,
            provenance=provenance,
        )
        self._verifier = None if verify_every is None else Verifier(verify_every, self._exchanges)
        in_step = {
            "epochs": dataset.epochs,
            "epoch_end": dataset.epoch_end,
            "batch_size": self.batch_size,
            "drop_last": self._settings.drop_last,
            "verify_every": None if self._verifier is None else self._verifier.every,
        }
        self._run = SharedRun(self.dataset, self._exchanges, in_step)
        self._commits: Commits | None = None
        self._pass: Pass | None = None
        self._ahead: Sized = ()
        """What a trainer has taken of the current iterator and not used yet."""
        self._counts = LoaderCounts()
        self._restarts = WorkerRestarts()

    @classmethod
    def from_config(cls, path: str) -> "PackedDataLoader":
        """The loader that a YAML file describes."""
        config = load_config(path)
        return cls(PackedDataset(**config.dataset_arguments()), **config.loader_arguments())

    @property
    def dp_size(self) -> int:
        """How many data-parallel ranks share the lanes."""
        return self._exchanges.topology.size

    @property
    def drop_last(self) -> bool:
        """No such attribute: only what would rebuild a torch DataLoader asks for it, as skip_first_batches does."""
        raise wrappers.RebuiltLoaderError

    # -- what a trainer does ---------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        """Continue after the last batch handed out; an older iterator raises from now on.

        Raises:
            LoaderError: Lightning's fit asks for it, without `streampack.integrations.LightningLoader`.
        """
        wrappers.check_lightning_adapter()
        return self.iterate()

    def iterate(self, *, taken_ahead: Callable[[], Sized] = tuple) -> Iterator[Batch]:
        """As `iter(loader)`, for the adapter of a trainer that takes batches before it uses them.

        Args:
            taken_ahead: called when the first batch is asked for. Gives the container in which the trainer holds what
                it has taken and not used yet. The state does not count these batches as handed out, and the next
                iterator begins with those that are in it then.
        """
        if ahead := len(self._ahead):
            self._retire()
            self._begun().take_back(ahead)
        self._ahead = ()
        current = self._current_pass(new=True)
        current.taken = True
        return self._iterate(current, taken_ahead)

    def _iterate(self, current: Pass, taken_ahead: Callable[[], Sized]) -> Iterator[Batch]:
        if self._pass is current:
            self._ahead = taken_ahead()
        while True:
            if self._pass is not current:
                raise LoaderError(
                    "this iterator is over: a newer iter(loader), load_state_dict or close has taken its place"
                )
            batch = self._next_batch(current)
            if batch is None:
                assert self.dataset.epochs is not None, "an endless run has no end"
                self._begun().end_pass(current.tally.ends, epochs=self.dataset.epochs)
                self._retire()
                return
            try:
                handed_out = self._formatter.format(batch, self._begun().committed)
                if self._verifier is not None and self._verifier.is_due(self._counts.batches):
                    arguments = self._run.arguments(self.num_lanes)
                    self._verifier.check(batch, self._begun().committed, self._counts.batches, arguments)
            except BaseException:
                self._retire()  # the batch is not committed, so it must come again
                raise
            self._begun().commit(batch)
            self._counts.batches += 1
            yield handed_out

    def _next_batch(self, current: Pass) -> PackBatch | None:
        begin = perf_counter()
        try:
            return next(current.batches, None)
        except BaseException:
            self._retire()  # a pass that failed must not be taken for one that has ended
            raise
        finally:
            self._counts.seconds_waited += perf_counter() - begin

    def skip(self, num_batches: int) -> int:
        """Go past up to `num_batches` batches on this rank without handing them out; call it on every rank.

        Their positions are committed, their packs count as "skipped_packs" in `stats` and their documents as documents;
        they are in no digest. Returns how many there were before the pass ended.
        """
        num_batches = as_integer(num_batches, "num_batches", low=0)
        current = self._current_pass(new=False)
        for done in range(num_batches):
            batch = self._next_batch(current)
            if batch is None:
                return done
            self._begun().commit(batch, skipped=True)
        return num_batches

    def state_dict(self, batches_back: int = 0) -> State:
        """The state after the last batch handed out, or up to 8 batches before; copies of everything.

        One int64 tensor ("lanes.000123") and one JSON string ("skipped_ranges.000123") per lane of this rank, and
        values that are equal on all ranks: it saves and loads on any number of ranks through
        torch.distributed.checkpoint. With `whole_state` the lanes of all ranks; a collective. Batches that a trainer
        has taken ahead (`iterate`) are not in it.

        Raises:
            StateError: `batches_back` goes back too far, or Accelerate would save the lanes of one of several ranks.
        """
        commits = self._begun()
        if self.dp_size > 1 and not self.whole_state:
            wrappers.check_every_rank_saves(sys._getframe(1), size=self.dp_size)  # noqa: SLF001  # the caller
        committed = commits.before(batches_back, ahead=len(self._ahead))
        state = committed.to_state(self.dataset.fingerprint() | {"num_lanes": committed.num_lanes})
        return join_states(state, self._exchanges.states()) if self.whole_state and self.dp_size > 1 else state

    def load_state_dict(self, state: Mapping[str, Any], *, allow: Collection[str] = ()) -> None:
        """Continue from a state of any number of ranks and workers; ends the present workers and iterators.

        Args:
            state: from `state_dict`, `merge_state_dicts`, torch.distributed.checkpoint or JSON.
            allow: fields of the fingerprint that may differ because they only decide how the same rows are cut into
                packs, such as {"seq_len", "boundary"}.

        Raises:
            StateError: another version, another run (each differing field is named), or lanes that are missing.
        """
        check_versions(state)
        saved = fingerprint_of(state)
        self._run.join()
        now = self.dataset.fingerprint()
        num_lanes = int(saved.get("num_lanes", 0))
        if self.dataset.auto_lanes:
            now["num_lanes"] = num_lanes  # a run keeps its lanes for life, whatever the data say now
        check_fingerprint(saved, now, allow=allow)
        committed = Committed.from_state(state, self._run.lanes(num_lanes), num_lanes)
        # From here on nothing can fail: a state that is refused leaves the loader as it was.
        self._retire()
        self._ahead = ()
        self._commits = Commits(committed)

    @property
    def num_lanes(self) -> int:
        """Lanes of the run: a loaded state's where the dataset leaves them to the data, else the dataset's."""
        return self._begun().committed.num_lanes

    def digest(self) -> int:
        """A 64-bit digest of (global number, content) of every pack handed out on this rank's lanes since the start.

        Ranks' digests add up, modulo 2**64, to the same number on every topology.
        """
        return self._begun().committed.digest()

    def stats(self) -> dict[str, float]:
        """Counts of this rank's lanes since the start of the run, and of this loader; docs/stats.md has the keys."""
        counts = self._begun().committed.counts()
        return stats_of(counts, self._counts, self._pass, self._restarts)

    def close(self) -> None:
        """End the workers. The state stays readable; iterating again starts new workers."""
        self._retire()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- start -----------------------------------------------------------------------------------------------------

    def _begun(self) -> Commits:
        """The commits of this run; the first call begins it: it lists the shards and compares the ranks."""
        if self._commits is None:
            self._run.join()
            num_lanes = self.dataset.num_lanes
            self._commits = Commits(Committed.fresh(self._run.lanes(num_lanes), num_lanes))
        return self._commits

    def _current_pass(self, *, new: bool) -> Pass:
        """The pass that continues from the committed rows; `new`: not one that has an iterator already."""
        committed = self._begun().committed
        if self._pass is not None and new and self._pass.taken:
            self._retire()
        if self._pass is None:
            self._pass = Pass(self.dataset, committed, self._settings, self._run.ranks, self._restarts)
        return self._pass

    def _retire(self) -> None:
        if self._pass is not None:
            self._pass.close()
            self._counts.end_pass(self._pass)
            self._pass = None
