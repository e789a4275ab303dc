"""What the ranks do together: listing and comparing before the first batch, agreeing on the end of a pass, joining.

In:    this rank's dataset and arguments; its state; what it has in the next rounds of a finite pass.
Out:   the same shard list on every rank; the state of all ranks; a number of all; or an error on every rank, so that no
       rank waits for one that has failed.
Never: a number of ranks that are not in the same pass at the same round.
"""

import logging
import secrets
import threading
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from streampack.corpus.partition import check_ranks, rank_lanes
from streampack.corpus.table import ShardTable
from streampack.dataset.dataset import PackedDataset
from streampack.errors import ConfigError, LoaderError, TopologyError
from streampack.hashing import hash_name
from streampack.loader.max_bad import MaxBad
from streampack.loader.rounds import Waiter
from streampack.ranks.exchange import Exchange, NotSame, RankExchanges
from streampack.ranks.topology import has_process_group
from streampack.ranks.torch_private import add_to_store
from streampack.state.checkpoint import Committed, State, check_versions
from streampack.state.fingerprint import check_fingerprint, describe_differences, fingerprint_of, warn_of_libraries
from streampack.state.forms import SLOTS, key_of_more
from streampack.state.joining import from_json, merge_state_dicts, to_json
from streampack.state.reading import read_checkpoint
from streampack.state.sharded import check_torch
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
            self.name = _share_shards(dataset, ranks, rank=topology.rank, size=topology.size)
            _check_same(ranks.all_gather(self.arguments(dataset.num_lanes)))
            self.ranks = ranks
        else:
            dataset.list_shards()
            self._refuse_finite()

    def _refuse_finite(self)
            raise TopologyError(
                f"a finite run (epochs={dataset.epochs}) on {topology.size} ranks must agree on its end: call "
                "torch.distributed.init_process_group first, or give dp_rank and dp_size by hand (then ranks may end "
                "at different batches)"
            )

    def begin(self) -> Committed:
        """The rows with which the run begins; a collective, see `join`."""
        self.join()
        num_lanes = self._dataset.num_lanes
        return Committed.fresh(self.lanes(num_lanes), num_lanes)

    def load(self, state: Mapping[str, Any], *, allow: Collection[str]) -> Committed:
        """The rows with which the run continues from a state; a collective, see `join`.

        Raises:
            StateError: the state cannot be loaded here.
        """
        check_versions(state)
        saved = fingerprint_of(state)
        self.join()
        num_lanes = int(saved.get("num_lanes", 0))
        # A run keeps its lanes for life, whatever the data say now.
        now = self._dataset.fingerprint(num_lanes if self._dataset.auto_lanes and num_lanes > 0 else None)
        check_fingerprint(saved, now, allow=allow)
        warn_of_libraries(state.get("libraries"), libraries_of(self._dataset.pipeline.tokenizer))
        committed = Committed.from_state(state, self.lanes(num_lanes), num_lanes)
        committed.check_cursors(
            [self._dataset.corpus(num_lanes)],
            has_packing_windows=bool({saved.get("packing"), now.get("packing")} & {"best_fit"}),
        )
        committed.check_windows(saved, now)
        if self._dataset.epochs is not None:
            committed.check_end(self._dataset.epochs)
        return committed

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

    def agreement(self, committed: Committed, batch_size: int) -> "PassAgreement | None":
        """How the ranks agree on the end of the pass that continues from `committed`; None where this rank need not."""
        if self.ranks is None or self._dataset.epochs is None:
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
        add_up = partial(add_to_store, f"{self.name}/bad/{self._bounds}") if self.ranks is not None else None
        bound = MaxBad(
            self._dataset.pipeline.max_bad,
            num_ranks=self._exchanges.topology.size,
            add_up=add_up,
            url_of=lambda shard: self._dataset.list_shards()[shard].url,
        )
        if num_bad := committed.num_skipped():
            bound.tell(num_bad)
        return bound

    def arguments(self, num_lanes: int) -> dict[str, object]:
        """All arguments that must be equal on all ranks, by name; plain JSON values."""
        return {**self._dataset.fingerprint(num_lanes), **self._in_step}


def _share_shards(dataset: PackedDataset, ranks: Exchange, *, rank: int, size: int) -> str:
    """Give every rank the shard list of rank 0, and a name of their run. If rank 0 fails, all ranks do."""
    asked = ranks.all_gather((dataset.data_digest(), rank, size))
    wrong = [
        f"rank {other} of the group was given dp_rank={its_rank}, dp_size={its_size}"
        for other, (_, its_rank, its_size) in enumerate(asked)
        if (its_rank, its_size) != (other, len(asked))
    ]
    if wrong:
        raise TopologyError(
            f"dp_rank must be the rank in the group of the {len(asked)} data-parallel ranks, and dp_size its size: "
            f"{'; '.join(wrong[:8])}. Leave dp_rank and dp_size out, or give the ranks of the group in its order."
        )
    odd = [other for other, (digest, *_) in enumerate(asked) if digest != asked[0][0]]
    if odd:
        raise ConfigError(
            f"data differs between ranks: ranks {odd} were given other shards than rank 0; give all ranks the same data"
        )
    tables, error = [b""], None
    if rank == 0:
        try:
            tables = [table.to_bytes() for table in dataset.tables()]
        except Exception as failure:  # noqa: BLE001 (raised below, once the others know)
            error = failure
    name: str
    tables, message, name = ranks.broadcast((tables, None if error is None else str(error), secrets.token_hex(8)))
    if error is not None:
        raise error
    if message is not None:
        raise ConfigError(f"rank 0 could not list the shards: {message}")
    dataset.adopt_tables([ShardTable.from_bytes(table) for table in tables])
    return name


def _check_same(fingerprints: Sequence[Mapping[str, object]]) -> None:
    for other, fingerprint in enumerate(fingerprints):
        differences = describe_differences(
            fingerprints[0], fingerprint, saved_where="on rank 0", now_where=f"on rank {other}", advise=False
        )
        if differences:
            raise ConfigError("the ranks were given different arguments: " + "; ".join(differences))


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
