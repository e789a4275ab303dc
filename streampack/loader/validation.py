"""A validation set: every iteration has all of it, and the same packs on any number of ranks and workers.

In:    a dataset with `HoldOut("val", ...)`.
Out:   batches of one rank; each iteration begins at the beginning.
Never: an exchange between ranks but in the first iteration; a position that is kept. Training's loader knows nothing of
       it, so its packs are the same with and without evaluations.

    first iteration    each rank counts the packs of some lanes, and all ranks learn all numbers: `counting`
    every iteration    13 packs on 3 ranks in batches of 3:     rank 0    0  1  2 |  3  -  -
                                                                rank 1    4  5  6 |  7  -  -
                       -: a filler, which has no number         rank 2    8  9 10 | 11 12  -

Rank r of R has the packs r*P//R to (r+1)*P//R of P, so there are fewer fillers than packs of one global batch.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import Any, NamedTuple

from streampack.dataset.dataset import PackedDataset
from streampack.errors import LoaderError, StateError
from streampack.lanes.run import Run
from streampack.loader.agreement import SharedRun
from streampack.loader.counting import Worked, budget_bytes, count, validation_run
from streampack.loader.dealing import Item, deal
from streampack.loader.delivery import Delivery
from streampack.loader.differences import EngineDifferences
from streampack.loader.passes import MAX_MESSAGE_PACKS, Pass, PassSettings, Tally, max_rows
from streampack.loader.restarts import WorkerRestarts
from streampack.loader.rounds import PackBatch, whole
from streampack.loader.steps import num_batches
from streampack.loader.stretches import CountedLane, Stretches, step_of, stretches
from streampack.loader.turns import BatchIterator, Running, Turn
from streampack.metrics.stats import Stats
from streampack.ranks.exchange import RankExchanges
from streampack.state.checkpoint import STATE_VERSION, Committed, State


def shared_run(dataset: PackedDataset, exchanges: RankExchanges, in_step: Mapping[str, object]) -> SharedRun:
    """What the ranks of a loader share, for training or validation."""
    return (ValidationRun if dataset.is_validation else SharedRun)(dataset, exchanges, in_step)


def delivery_of(run: SharedRun) -> type[Delivery]:
    """What hands out the batches of such a run."""
    return ValidationDelivery if isinstance(run, ValidationRun) else Delivery


class ValidationRun(SharedRun):
    """What the ranks do together: they count, once. There is no position to save or to load."""

    def begin(self) -> Committed:
        """Nothing is handed out yet; a collective, see `join`."""
        self.join()
        return self.beginning_rows()

    def beginning_rows(self) -> Committed:
        """Rows that count what an iteration hands out: all packs of this rank are those of one lane."""
        return Committed.fresh(range(1), 1, tuple(self._dataset.sources))

    def load(self, state: Mapping[str, Any], *, allow: Collection[str] = (), any_lanes: bool = False) -> Committed:
        """The beginning: a state has no position. A collective, see `join`.

        Raises:
            StateError: it is not the state of a validation set.
        """
        if not isinstance(state, Mapping) or set(state) != {"version", "validation"}:
            what = "that of a training run" if isinstance(state, Mapping) and "rows" in state else "something else"
            raise StateError(
                f"this loader reads a validation set, whose state has the keys version and validation; this is {what}. "
                "Load the state of a training run into the training loader; a validation set needs no state, as each "
                "iteration begins at the beginning"
            )
        return self.begin()

    def read(self, source: Any, *, key: str | None) -> State:
        """The state, which nothing is read for."""
        return self._state()

    def state_of(self, committed: Committed, *, whole: bool) -> State:
        """A state that is the same on all ranks and says nothing."""
        return self._state()

    @staticmethod
    def _state() -> State:
        return {"version": STATE_VERSION, "validation": 1}


class ValidationDelivery(Delivery):
    """Hands out the batches of a validation set, each iteration from the beginning."""

    _counted: list[CountedLane] | None = None
    """Once the first iteration has begun."""
    _settings: PassSettings
    """Of the latest iterator."""

    def begin(self, settings: PassSettings, taken_ahead: Callable[[], Sized]) -> BatchIterator:
        """A new iterator, which begins at the beginning; stats and digest are its own."""
        self._settings = settings
        self._to_the_beginning()
        return super().begin(settings, taken_ahead)

    def load(self, committed: Committed) -> None:
        """Every iterator is over."""
        self._to_the_beginning()

    def _to_the_beginning(self) -> None:
        assert isinstance(self._run, ValidationRun), "the loader has made both"
        with self._lock:
            self._retire()
            self.commits.load(self._run.beginning_rows())

    def _make(self, settings: PassSettings) -> Running:
        committed = self.commits.latest()
        run = validation_run(self._dataset.run())
        self._limits.reset()
        budget = budget_bytes(run, settings, self._dataset.limits.buffer_bytes)
        if self._counted is None:
            self._counted = count(run, self._run.ranks, settings, self._restarts, budget_bytes=budget)
        each = ValidationPass(
            run,
            self._counted,
            committed.global_pack,
            settings,
            self._restarts,
            self._differences,
            budget_bytes=budget,
        )
        return Running(each, settings, committed.global_pack, self.commits.standing)

    def skip(self, num_batches: int, settings: PassSettings) -> int:
        """Nothing can be skipped: the next iteration would begin at the beginning all the same."""
        raise LoaderError(
            f"skip({num_batches}): each iteration of a validation set begins at the beginning, so nothing can be "
            "skipped. Leave the call out, or take the first batches of an iteration and leave them unused"
        )

    def progress(self) -> dict[str, Any]:
        """As of a training run; "share" is of the packs of an iteration, "epochs" are over all ranks."""
        progress, sources = super().progress(), self._sources()
        if sources:
            progress["share"] = progress["packs"] / sum(each.packs for each in sources.values())
        for name, each in sources.items():
            progress["epochs"][name] = each.handed_out / each.packs
        return progress

    def stats(self) -> Stats:
        """As of a training run; "share" of a source is of the packs of an iteration, "epochs" as in `progress`."""
        stats, sources = super().stats(), self._sources()
        packs = sum(each.packs for each in sources.values())
        for name, each in sources.items():
            source = stats["sources"][name]
            source["epochs"], source["share"] = each.handed_out / each.packs, each.packs / packs
        return stats

    def _sources(self) -> dict[str, "_SourcePacks"]:
        """By name, those that are read; none before the packs are counted."""
        if self._counted is None:
            return {}
        found = _packs_of_sources(self._counted, self.commits.global_pack, self._settings)
        names = list(self._dataset.sources)
        return {names[source]: each for source, each in found.items()}

    def length(self, settings: PassSettings) -> int:
        """Batches of an iteration; a `TypeError` before the packs are counted."""
        if self._counted is None:
            return super().length(settings)
        return _num_batches(_num_packs(self._counted), settings)

    def _end_pass(self, turn: Turn, running: Running) -> None:
        with self._lock:
            self._check(turn)
            each = running.each
            left_out = each.tally.left_out.packs
            self.commits.end_pass((), each.end_epochs, after=running.taken_from, next_epoch=1, left_out_packs=left_out)
        self._drop(running)


class ValidationPass(Pass):
    """The batches of one iteration from a global pack on."""

    def __init__(
        self,
        run: Run,
        lanes: Sequence[CountedLane],
        global_pack: int,
        settings: PassSettings,
        restarts: WorkerRestarts,
        differences: EngineDifferences,
        *,
        budget_bytes: int,
    ) -> None:
        """`global_pack`: so many packs, fillers among them, were handed out on all ranks."""
        self.tally = Tally()
        self.end_epochs = [source.end_epoch for source in run.sources]
        self._restarting = None
        batch_size = settings.batch_size
        global_batch = batch_size * settings.num_ranks
        packs = _num_packs(lanes)
        num, total = _num_batches(packs, settings), _handed_out(packs, settings)
        self.tally.left_out.packs = (packs - total) * (settings.rank == 0)
        done = -(-global_pack // global_batch)
        first, stop = _own(total, settings.rank, settings.num_ranks)
        first += done * batch_size
        seq_len = run.schedule.stages[0].seq_len
        step = step_of(seq_len)
        size = _stretch_packs(max(stop - first, 0), step, seq_len, settings)
        tasks = stretches(run, lanes, first, stop, step=step, size=size)
        items: Iterator[Item] = iter(())
        if tasks:
            work = Stretches(
                run=run,
                num_ranks=settings.num_ranks,
                stretches=tasks,
                budget_bytes=budget_bytes,
                with_provenance=settings.with_provenance,
            )
            worked = Worked(work, len(tasks), settings, restarts)
            self._restarting = worked.restarting
            messages = differences.look_through(self.tally.watch_messages(worked.messages))
            items = differences.watch(deal(messages, num_lanes=1, num_workers=1, first_round=first))
            items = islice(items, stop - first)
        ends = [min(number * global_batch, total) for number in range(done + 1, num + 1)]
        self.batches = _batches(items, batch_size, ends, seq_len)


def _num_packs(lanes: Sequence[CountedLane]) -> int:
    """Of an iteration, over all ranks."""
    return sum(each.packs for each in lanes)


def _num_batches(packs: int, settings: PassSettings) -> int:
    """Of each rank."""
    return num_batches(
        packs, num_ranks=settings.num_ranks, batch_size=settings.batch_size, drop_last=settings.drop_last
    )


def _handed_out(packs: int, settings: PassSettings) -> int:
    """How many of the packs an iteration hands out: all, or with `drop_last` those of whole batches."""
    whole_batches = _num_batches(packs, settings) * settings.batch_size * settings.num_ranks
    return whole_batches if settings.drop_last else packs


def _own(packs: int, rank: int, num_ranks: int) -> tuple[int, int]:
    """The first of a rank's packs, and the one after its last."""
    return rank * packs // num_ranks, (rank + 1) * packs // num_ranks


class _SourcePacks(NamedTuple):
    """Packs of one source, over all ranks."""

    packs: int
    """Of an iteration."""
    handed_out: int


def _packs_of_sources(
    lanes: Sequence[CountedLane], global_pack: int, settings: PassSettings
) -> dict[int, _SourcePacks]:
    """Of each source that is read, by its index, once `global_pack` is reached."""
    num_ranks, batch_size = settings.num_ranks, settings.batch_size
    done = -(-global_pack // (batch_size * num_ranks)) * batch_size
    total = _handed_out(_num_packs(lanes), settings)
    owns = [_own(total, rank, num_ranks) for rank in range(num_ranks)]
    packs: Counter[int] = Counter()
    for each in lanes:
        packs[each.lane.source] += each.packs
    found, begin = {}, 0
    for source, of_source in packs.items():
        end = begin + of_source
        handed_out = sum(len(range(max(first, begin), min(first + done, stop, end))) for first, stop in owns)
        found[source] = _SourcePacks(of_source, handed_out)
        begin = end
    return found


def _batches(items: Iterator[Item], batch_size: int, ends: Sequence[int], seq_len: int) -> Iterator[PackBatch]:
    """`ends`: of each batch, the global pack after it."""
    for global_pack in ends:
        packs = [whole(item) for item in islice(items, batch_size)]
        yield PackBatch([*packs, *[None] * (batch_size - len(packs))], global_pack, seq_len)


def _stretch_packs(num_packs: int, step: int, seq_len: int, settings: PassSettings) -> int:
    """How many packs a stretch has: a message of workers holds no more, and each has some to do."""
    num_workers = settings.num_workers
    if not num_workers:
        return min(settings.batch_size, MAX_MESSAGE_PACKS)
    most = max(1, min(max_rows(num_workers, settings) // seq_len, MAX_MESSAGE_PACKS))
    fair = max(-(-num_packs // (2 * num_workers * step)), 1) * step
    return min(fair, most) if most < step else min(fair, most // step * step)
