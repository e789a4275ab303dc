"""What the ranks do together: listing and comparing before the first batch, agreeing on the end of a pass, joining.

In:    this rank's dataset and arguments; its state; what it has in the next rounds of a finite pass.
Out:   the same shard list on every rank; the state of all ranks; a number of all; or an error on every rank, so that no
       rank waits for one that has failed.
Never: a number of ranks that are not in the same pass at the same round.
"""

import logging
import threading
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from streampack.corpus.partition import check_ranks, rank_lanes
from streampack.dataset.dataset import PackedDataset
from streampack.errors import ConfigError, LoaderError, StateError, TopologyError
from streampack.hashing import hash_name
from streampack.lanes.run import Continued, Run
from streampack.loader.adding import SharedCount
from streampack.loader.differences import EngineDifferences
from streampack.loader.max_bad import MaxBad
from streampack.loader.rounds import Waiter
from streampack.loader.sharing import compare_arguments, share_shards
from streampack.ranks.exchange import Exchange, NotSame, RankExchanges
from streampack.ranks.topology import has_process_group
from streampack.ranks.torch_private import add_to_store
from streampack.state.checkpoint import Committed, State, check_versions
from streampack.state.cursors import check_cursors, check_windows
from streampack.state.fingerprint import check_fingerprint, fingerprint_of, warn_of_libraries, widened
from streampack.state.forms import SLOTS, key_of_more
from streampack.state.joining import from_json, merge_state_dicts, to_json
from streampack.state.reading import read_checkpoint
from streampack.state.sharded import check_torch
from streampack.state.stages import check_future, continued
from streampack.tokenizers.libraries import libraries_of

_log = logging.getLogger(__name__)


class _Lock:
    """A lock that its thread may take again; a copy of its owner, or one that was pickled, has a lock of its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type["_Lock"], tuple[()]]:
        return _Lock, ()


class SharedRun:
    """The run that the data-parallel ranks share: the same shards and arguments, and to each rank its lanes."""

    def __init__(self, dataset: PackedDataset, exchanges: RankExchanges, in_step: Mapping[str, object]) -> None:
        """`in_step`: arguments that are not in the fingerprint, and without which the ranks would not stay in step."""
        self._dataset = dataset
        self._exchanges = exchanges
        self._in_step = in_step
        self.ranks: Exchange | None = None
        """The others; None where there are none, or none that this rank can reach, and before `join`."""
        self.name = ""
        """The same on all ranks of this run, and of no other run or loader; empty where `ranks` is None."""
        self.beginning = _Lock()
        """Held while the run begins, which one thread does for all."""
        self._bounds = 0
        """How many times `bound_on_bad` was called."""
        self._has_warned = False
        """Of skipped ranges that plain loading leaves out."""

    def join(self) -> None:
        """List the shards once for all ranks, and make sure that all were given the same. A collective, once.

        After an error the next call does it again. A rank that can reach no others lists by itself.

        Raises:
            ConfigError: on every rank, where the ranks' arguments differ or rank 0 cannot list the shards.
            TopologyError: a finite run on several ranks that cannot reach each other.
        """
        with self.beginning:
            if self.ranks is None:
                self._join()

    def _join(self) -> None:
        dataset, topology = self._dataset, self._exchanges.join()
        if topology.size == 1 or self._exchanges.are_unknown:
            dataset.list_shards()
        elif has_process_group():
            ranks = self._exchanges.data_parallel()
            self.name = share_shards(dataset, ranks, rank=topology.rank, size=topology.size)
            compare_arguments(self.arguments(dataset.num_lanes), ranks)
            self.ranks = ranks
        else:
            if dataset.epochs is None:
                dataset.list_shards()
            if dataset.epochs is not None or dataset.run().is_finite:
                what = "max_epochs of all its sources" if dataset.epochs is None else f"epochs={dataset.epochs}"
                raise TopologyError(
                    f"a finite run ({what}) on {topology.size} ranks must agree on its end: call "
                    "torch.distributed.init_process_group first, or give dp_rank and dp_size by hand (then ranks may "
                    "end at different batches)"
                )

    def begin(self) -> Committed:
        """The rows with which the run begins; a collective, see `join`."""
        self.join()
        run = self._dataset.run()
        return Committed.fresh(self.lanes(run.num_lanes), run.num_lanes, run.names, run.schedule.stages)

    def load(self, state: Mapping[str, Any], *, allow: Collection[str] = (), any_lanes: bool = False) -> Committed:
        """The rows with which the run continues from a state; a collective, see `join`.

        `any_lanes`: the state's lanes count, whatever `num_lanes` of the dataset is.

        Raises:
            StateError: the state cannot be loaded here.
        """
        if "validation" in state:
            raise StateError(
                "this is the state of a validation set (HoldOut with part='val'), which has no position, and this "
                "loader trains: load the state of the training loader"
            )
        check_versions(state)
        saved = fingerprint_of(state)
        self.join()
        dataset, num_lanes = self._dataset, int(saved.get("num_lanes", 0))
        # A run keeps its lanes until `relane`, whatever the data say now.
        takes_lanes = (dataset.auto_lanes or any_lanes) and num_lanes > 0
        now = dataset.fingerprint(num_lanes if takes_lanes else None)
        check_fingerprint(saved, now, allow=allow)
        warn_of_libraries(state.get("libraries"), libraries_of(dataset.pipeline.tokenizer))
        committed = Committed.from_state(state, self.lanes(num_lanes), num_lanes, tuple(dataset.sources))
        before, since = committed.stages, committed.since
        placed = tuple(stage[:2] for stage in before) if since else ()
        as_now = dataset.run(num_lanes, Continued(since=since, placed=placed))
        committed.stages = continued(
            before,
            as_now.schedule.stages,
            sources=as_now.names,
            global_pack=committed.global_pack,
            allow=widened(allow, saved, now),
        )
        run = self.run_of(committed)
        check_future(run.schedule, len(before), committed.global_pack)
        check_windows(committed, run, before, as_now.schedule.stages)
        committed.stages = run.schedule.stages
        check_cursors(committed, run)
        if dataset.epochs is not None:
            committed.check_end(dataset.epochs)
        else:
            committed.check_max_epochs({source.name: source.end_epoch for source in run.sources})
        return committed

    def run_of(self, committed: Committed) -> Run:
        """The run as it continues from `committed`.

        Raises:
            StateError: a stage would begin before those that have begun.
        """
        try:
            return self._dataset.run(committed.num_lanes, committed.continued)
        except ConfigError as error:
            raise StateError(f"{error.message}; the run is at global pack {committed.global_pack:,}") from error

    def read(self, source: Any, *, key: str | None) -> State:
        """The state in a checkpoint of torch.distributed.checkpoint, with this rank's lanes; a collective, see `join`.

        Raises:
            StateError: it has no state of a loader, or several and no `key` that tells which.
        """
        self.join()
        return read_checkpoint(source, self.lanes, key=key)

    def state_of(self, committed: Committed, *, whole: bool) -> State:
        """The rows as a state; `whole`: with the lanes of all ranks, which is a collective.

        Raises:
            StateError: this torch would not save the state of one rank of several; the ranks are at different steps.
        """
        is_part = len(committed.lanes) < committed.num_lanes
        if is_part and not whole:
            check_torch()
        libraries = libraries_of(self._dataset.pipeline.tokenizer)
        state = committed.to_state(self._dataset.fingerprint(committed.num_lanes), libraries)
        if is_part and not whole and not self._has_warned and key_of_more(committed.lanes) in state:
            self._has_warned = True
            _log.warning(
                "a lane has more than %d skipped ranges that it may meet again. loader.load_checkpoint(path) loads "
                "all of them; plain torch.distributed.checkpoint.load takes only keys that the state it is given has",
                SLOTS,
            )
        return join_states(state, self._exchanges.states()) if is_part and whole else state

    def lanes(self, num_lanes: int) -> range:
        """This rank's lanes out of so many; raises a `TopologyError` where the ranks do not divide them."""
        topology = self._exchanges.topology
        check_ranks(num_lanes=num_lanes, num_ranks=topology.size)
        return rank_lanes(topology.rank, topology.size, num_lanes)

    def num_lanes(self) -> int:
        """Lanes of a run that has not begun, if they are known; else a `LoaderError`."""
        if self._dataset.auto_lanes and self._exchanges.topology.size > 1 and not self._exchanges.are_unknown:
            raise LoaderError(
                'num_lanes="auto" is known once the ranks have listed the shards together: ask for it after '
                "iter(loader), state_dict or load_state_dict, which all ranks call"
            )
        return self._dataset.num_lanes

    def agreement(self, committed: Committed, batch_size: int) -> "PassAgreement | None":
        """How the ranks agree on the end of the pass that continues from `committed`; None where this rank need not."""
        if self.ranks is None or not self.run_of(committed).is_finite:
            return None
        if self.ranks.is_out_of_step:
            self.ranks = self._exchanges.data_parallel()
        return PassAgreement(
            self.ranks,
            self.name,
            first_epoch=committed.first_epoch,
            global_pack=committed.global_pack,
            batch_size=batch_size,
            highest=self._dataset.epoch_end == "pad",
        )

    def bound_on_bad(self, committed: Committed) -> MaxBad:
        """The bound on what the run may skip, beginning with what was skipped before `committed`; it waits for nobody.

        All ranks make as many of these, one at the start and one for each state that they load.
        """
        self._bounds += 1
        shared = self._shared_count(f"bad/{self._bounds}")
        bound = MaxBad(
            self._dataset.pipeline.max_bad,
            num_ranks=self._exchanges.topology.size,
            shared=shared,
            url_of=lambda shard: self._dataset.list_shards()[shard].url,
        )
        if num_bad := committed.num_skipped():
            shared.tell(num_bad)
        return bound

    def engine_differences(self) -> EngineDifferences:
        """The bound on what an engine may give wrongly; every rank makes one."""
        return EngineDifferences(self._shared_count)

    def _shared_count(self, name: str) -> SharedCount:
        return SharedCount(None if self.ranks is None else partial(add_to_store, f"{self.name}/{name}"))

    def arguments(self, num_lanes: int) -> dict[str, object]:
        """All arguments that must be equal on all ranks, by name; plain JSON values."""
        run = self._dataset.run(num_lanes)
        stages = {
            f"stages[{index}].{name}": value
            for index, stage in enumerate(run.schedule.stages)
            for name, value in stage.described.items()
        }
        own = {f"max_epochs of source {source.name!r}": source.end_epoch for source in run.sources}
        return {
            **self._dataset.fingerprint(num_lanes),
            "names of sources": list(run.names),
            **stages,
            **(own if self._dataset.epochs is None else {}),
            "num_packs (of the budget)": run.schedule.end,
            "exhausted": "error" if run.fails_exhausted else "skip",
            **self._in_step,
        }


class PassAgreement:
    """The all-reduces by which the ranks of one finite pass agree on its end; one for each window of rounds.

    All-reduces of one group meet in the order in which ranks join them. If a rank leaves a pass at another batch than
    the others, its next one meets theirs of another pass or window. So each carries what it is about.
    """

    _ABOUT = ("run", "first epoch of the pass", "global pack with which the pass began", "batch size", "round")

    def __init__(
        self, ranks: Exchange, run_name: str, *, first_epoch: int, global_pack: int, batch_size: int, highest: bool
    ) -> None:
        """`run_name`: tells the ranks' runs from all others; `highest`: whether the highest number counts."""
        self._ranks = ranks
        self._pass = hash_name(run_name) % 2**32, first_epoch, global_pack, batch_size
        self._highest = highest

    def __call__(self, first_round: int, number: int) -> Waiter:
        """Join the all-reduce of the window that begins at a round, with this rank's number; does not wait."""
        agreement = self._ranks.start_agreeing(number, (*self._pass, first_round), highest=self._highest)

        def wait() -> int:
            try:
                agreed = agreement.wait()
            except RuntimeError as error:  # what torch raises where a connection breaks or time is up
                raise LoaderError(
                    f"the data-parallel ranks could not agree on the end of the pass: {error}. A rank has died, or has "
                    "left the pass; every rank must take all batches of a finite pass. The state of this rank is good."
                ) from error
            if isinstance(agreed, NotSame):
                raise LoaderError(self._describe(agreed))
            return agreed

        return wait

    def _describe(self, not_same: NotSame) -> str:
        (one, other), (value, other_value) = not_same.ranks, not_same.values
        what = self._ABOUT[not_same.which]
        found = f"{what} is {value} on rank {one}, {other_value} on rank {other}"
        if what == "run":
            found = f"rank {one} and rank {other} are iterating over different loaders"
        return (
            f"the data-parallel ranks are not in the same pass: {found}. All ranks must make the same calls in the "
            "same order: break, skip, load_state_dict, another batch_size and another iter(loader) after the same "
            "batch. The state of each rank is good, and states of one step can be loaded together."
        )


def join_states(state: State, ranks: Exchange) -> State:
    """The state with the lanes of all ranks, on every rank; a collective.

    Raises:
        StateError: on every rank, if the ranks are at different steps.
    """
    return merge_state_dicts(from_json(text) for text in ranks.all_gather(to_json(state)))
