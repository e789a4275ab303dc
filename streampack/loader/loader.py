"""PackedDataLoader: the packs of one rank as batches, in the global order, with a state that moves to any topology.

    workers --messages--> deal (rank's order) --items--> rounds (batches) --> formats --> commit --> the trainer

In:    a `PackedDataset`, and which rank this is.
Out:   batches; a state, a digest and counts of what was handed out.
Never: a state that counts what workers have made and the trainer was not given. A batch is committed when it is handed
       out, and what is committed is the state, from which workers can be started at any time.
"""

import dataclasses
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sized
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

from streampack.config.file import load_config
from streampack.dataset import wrappers
from streampack.dataset.dataset import PackedDataset
from streampack.dataset.fixed import FixedArguments
from streampack.errors import ConfigError, as_bool, as_integer
from streampack.formats.consumers import Batch, Format, Positions
from streampack.formats.layout import LossWeights, as_layout
from streampack.hashing import as_int64
from streampack.loader.consistency import Verifier
from streampack.loader.delivery import Delivery
from streampack.loader.describing import describe
from streampack.loader.formatting import BatchFormatter
from streampack.loader.passes import PassSettings
from streampack.loader.progress import length, no_progress
from streampack.loader.stats import added_up, no_stats
from streampack.loader.validation import delivery_of, shared_run
from streampack.metrics.stats import Stats
from streampack.ranks import topology
from streampack.ranks.exchange import RankExchanges
from streampack.state.checkpoint import State

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh


class PackedDataLoader(FixedArguments, instead="loader"):
    """Batches of packs for one data-parallel rank; the same global batches on every number of ranks and workers.

    Iterating gives dicts of int64 tensors of shape [batch_size, seq_len]: "tokens", "labels", "position_ids",
    "segment_ids", and "num_targets" of shape [batch_size]; or what `format` names. A `break` or an interrupt loses
    nothing: the next iterator continues after the last batch handed out. In a finite run one iteration is a pass of
    `dataset.epochs` epochs, and the next iteration is the next pass; every rank gives the same number of batches.

    One thread takes batches; `state_dict`, `stats`, `digest` and `close` may be called from any. Only making an
    iterator, the next batch, `skip`, `load_state_dict`, the first `state_dict`, and what says so wait for other ranks.

    Args:
        dataset: what to load.
        batch_size: packs of a batch on this rank; may be set later, too: `loader.batch_size = 8`.
        num_workers: processes that read, tokenize and pack; 0 does it in this process. May be set later, too.
        dp_rank: data-parallel rank; None takes it from `device_mesh`, torch.distributed or torchrun's environment.
        dp_size: data-parallel ranks; must divide the dataset's lanes.
        device_mesh: ranks along dimensions named dp, dp_replicate, dp_shard, batch, ... have different packs, peers
            along tp, cp, pp, ... the same; other names are an error.
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
        multiprocessing_context: None: workers are forked from a clean process; "fork": from the trainer.
        worker_timeout_s: seconds without a sign of life (a pack, sample, record, block of bytes, or wait for a failing
            storage) after which a worker that is waited for is killed; a dead one is noticed at once. All workers of
            the rank are then restarted, up to 3 times an hour. It must be more than the slowest document needs, and
            more than `RetryPolicy.timeout_s`. The first sign may take at least 2 minutes.
        verify_every: at the first batch and every `verify_every` after it, compare all ranks of `device_mesh` (without
            one, the data-parallel ones): the same step, different packs on data-parallel ranks, the same packs on
            peers in other dimensions. What differs is a `LoaderError` on all of them. Every rank must have a loader
            then.
        whole_state: `state_dict` gives the lanes of all ranks, on every rank, for trainers that save what rank 0 has;
            see `streampack.integrations`. All data-parallel ranks must call it together.

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
        self._whole_state = as_bool(whole_state, "whole_state")
        if self._whole_state:
            self._exchanges.check_known("whole_state")
        self._dataset = dataset.without_lookahead() if layout.spec.model_shifts else dataset
        self._settings = PassSettings(
            batch_size=as_integer(batch_size, "batch_size", low=1),
            rank=here.rank,
            num_ranks=here.size,
            num_workers=as_integer(num_workers, "num_workers", low=0),
            prefetch_bytes=as_integer(prefetch_bytes, "prefetch_bytes", low=1),
            multiprocessing_context=multiprocessing_context,
            worker_timeout_s=worker_timeout_s,
            with_provenance=provenance or loss_weights == LossWeights.DOCUMENT,
            drop_last=drop_last,
        )
        dataset.check_budget(num_ranks=here.size, num_workers=self._settings.num_workers)
        pad_id = dataset.pipeline.pad_id
        formatter = BatchFormatter(layout=layout, pad_id=pad_id, pin_memory=pin_memory, provenance=provenance)
        verifier = None if verify_every is None else Verifier(verify_every, self._exchanges)
        self._in_step = {
            **dataset.in_step(),
            "batch_size": self._settings.batch_size,
            "drop_last": self._settings.drop_last,
            "verify_every": None if verifier is None else verifier.every,
        }
        self._format = layout.format
        self._run = run = shared_run(self._dataset, self._exchanges, self._in_step)
        launcher = self._settings.launcher()
        self._delivery: Delivery | None = None  # until the run begins
        self._deliver = partial(
            delivery_of(run), dataset=self._dataset, run=run, formatter=formatter, verifier=verifier, launcher=launcher
        )

    @classmethod
    def from_config(cls, path: str) -> "PackedDataLoader":
        """The loader that a YAML file describes."""
        config = load_config(path)
        return cls(PackedDataset(**config.dataset_arguments()), **config.loader_arguments())

    @property
    def dataset(self) -> PackedDataset:
        """What is loaded; for a format whose model shifts labels, with `lookahead=False`."""
        return self._dataset

    @property
    def batch_size(self) -> int:
        """Packs of a batch on this rank; may be set, on all ranks alike, and holds from the next `iter(loader)` on."""
        return self._settings.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self._settings = dataclasses.replace(self._settings, batch_size=as_integer(value, "batch_size", low=1))
        self._in_step["batch_size"] = self._settings.batch_size

    @property
    def num_workers(self) -> int:
        """Processes that make packs; may be set, and holds from the next `iter(loader)` on."""
        return self._settings.num_workers

    @num_workers.setter
    def num_workers(self, value: int) -> None:
        self._settings = dataclasses.replace(self._settings, num_workers=as_integer(value, "num_workers", low=0))

    @property
    def whole_state(self) -> bool:
        """Whether `state_dict` gives the lanes of all ranks."""
        return self._whole_state

    @property
    def dp_rank(self) -> int:
        """Which of the data-parallel ranks this is."""
        return self._settings.rank

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
        return self._begun().begin(self._settings, taken_ahead)

    def skip(self, num_batches: int) -> int:
        """Go past up to `num_batches` batches on this rank without handing them out; call it on every rank.

        Their positions are committed, their packs count as "skipped_packs" in `stats`, their documents as documents;
        they are in no digest. Returns how many there were before the pass ended. May wait for other ranks.

        Raises:
            LoaderError: a trainer holds batches that it has taken ahead (`iterate`); or it is a validation set.
        """
        return self._begun().skip(as_integer(num_batches, "num_batches", low=0), self._settings)

    def state_dict(self, batches_back: int = 0) -> State:
        """The state after the last batch handed out, or up to 8 batches before; copies of everything.

        Tables of this rank's lanes ("rows", "skipped_ranges"), and values that are equal on all ranks: through
        torch.distributed.checkpoint it is saved by and loaded on any number of ranks. Batches that a trainer has taken
        ahead (`iterate`) are not in it. Only the first call waits for the other ranks; with `whole_state` each does.

        Raises:
            StateError: `batches_back` goes back too far; Accelerate or this torch cannot save one rank of several.
        """
        commits = self._begun().commits
        if self.dp_size > 1 and not self.whole_state:
            wrappers.check_every_rank_saves(sys._getframe(1), size=self.dp_size)  # noqa: SLF001  # the caller
        return self._run.state_of(commits.committed(batches_back), whole=self.whole_state)

    def load_state_dict(self, state: Mapping[str, Any], *, allow: Collection[str] = ()) -> None:
        """Continue from a state of any number of ranks and workers; ends the present workers and iterators.

        The first call of a loader that has not begun waits for the other ranks.

        Args:
            state: from `state_dict`, `merge_state_dicts`, torch.distributed.checkpoint or JSON.
            allow: fields of the fingerprint that may differ because they only decide how the same rows are cut into
                packs, such as {"seq_len", "boundary"}.

        Raises:
            StateError: another version, another run (each differing field is named), lanes that are missing, or lanes
                that are past the end that `epochs` sets.
        """
        committed = self._run.load(state, allow=allow)
        # From here on nothing can fail: a state that is refused leaves the loader as it was.
        with self._run.beginning:
            if self._delivery is None:
                self._delivery = self._deliver(committed)
            else:
                self._delivery.load(committed)

    def load_checkpoint(self, source: Any, *, key: str | None = None, allow: Collection[str] = ()) -> None:
        """As `load_state_dict`, from a checkpoint of torch.distributed.checkpoint with whatever lanes it has.

        `source`: its path, or a `StorageReader`; `key`: where in it the state is, as in "train.loader" (None: found).
        """
        self.load_state_dict(self._run.read(source, key=key), allow=allow)

    @property
    def num_lanes(self) -> int:
        """Lanes of the run: a loaded state's where the dataset leaves them to the data, else the dataset's.

        Raises:
            LoaderError: the dataset leaves them to the data, and the ranks have not listed the shards together yet.
        """
        return self._run.num_lanes() if self._delivery is None else self._delivery.commits.num_lanes

    def digest(self, *, all_ranks: bool = False) -> int:
        """A digest of (global number, content) of every pack handed out on this rank's lanes since the start; an int64.

        Ranks' digests add up, modulo 2**64 as int64 tensors do, to the same number on every topology. `all_ranks`: give
        that sum over the data-parallel ranks; a collective, which all of them must call. 0 before the run has begun.
        """
        digest = 0 if self._delivery is None else self._delivery.commits.digest()
        return as_int64(*self._exchanges.sums([digest], "digest(all_ranks=True)")) if all_ranks else digest

    def stats(self, *, all_ranks: bool = False) -> Stats:
        """Counts of this rank's lanes since the start of the run, and of this loader; docs/stats.md has the keys.

        Also the seconds of each stage, what limits the loader, and those of each source. From any thread, unless
        `all_ranks`: of all data-parallel ranks, which must all call it.
        """
        stats = no_stats(self.dataset.sources) if self._delivery is None else self._delivery.stats()
        return added_up(stats, self._exchanges, "stats(all_ranks=True)") if all_ranks else stats

    def progress(self) -> dict[str, Any]:
        """How far the run has come: "packs" and "tokens" over all ranks, and the "stage" of the next batch.

        Also "epochs", by source, of this rank's lanes, and "share" of the budget, or None (docs/stats.md).
        """
        return no_progress(self._dataset) if self._delivery is None else self._delivery.progress()

    @property
    def stage(self) -> int:
        """The index of the stage of the next batch."""
        return 0 if self._delivery is None else self._delivery.stage

    def __len__(self) -> int:
        """Batches of the whole run from its start, of this size; a `TypeError` unless its budget decides its end."""
        return (partial(length, self._dataset) if self._delivery is None else self._delivery.length)(self._settings)

    def __bool__(self) -> bool:
        """A loader without a length is not empty."""
        return True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({describe(self._dataset, self._settings, self._format, self._delivery)})"

    def close(self) -> None:
        """End the workers; from any thread. The state stays readable; iterating again starts new workers."""
        if self._delivery is not None:
            self._delivery.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _begun(self) -> Delivery:
        """What delivers this run; the first call begins it: it lists the shards and compares the ranks."""
        with self._run.beginning:
            if self._delivery is None:
                self._delivery = self._deliver(self._run.begin())
            return self._delivery
