"""How many packs a validation set has, which all ranks find out together, once.

In:    the sources of a run; how a rank reads.
Out:   the sources in lanes that the data fill; of each lane how many packs it has, and positions to read it from.
Never: a rank that waits for one that has failed; a part that is empty and goes unnoticed.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

from streampack.corpus.shares import DEFAULT
from streampack.errors import ConfigError, LoaderError, ShardError
from streampack.lanes.budget import worker_bytes
from streampack.lanes.held_out import hold_out_of, why_empty
from streampack.lanes.run import Run, RunSource
from streampack.lanes.skipping import allowed_bad
from streampack.loader.messages import Message, Work
from streampack.loader.parts import held_out_bytes, parts
from streampack.loader.passes import PassSettings, in_this_process
from streampack.loader.restarts import RestartingMessages, WorkerRestarts
from streampack.loader.stretches import CountedLane, Counting, Counts, Stretches, ValidationLane, only, step_of
from streampack.ranks.exchange import Exchange

_LANE_BYTES = 2**20
"""Least bytes of documents that a lane has, where there are enough for more than one; and 64 packs of 4 bytes a row."""
_MOST_LANES = 1024
_COUNTED_TOGETHER = 16
"""Lanes of each rank, where not all may be needed."""
_ALL = 2**63


def validation_run(run: Run) -> Run:
    """The sources, each in as many lanes as what is held out of it fills: the data alone decide."""
    sources = []
    for source in run.sources:
        num_lanes = held_out_bytes(source) // max(_LANE_BYTES, 256 * source.pipelines[0].seq_len)
        corpus = dataclasses.replace(source.corpus, num_lanes=max(min(num_lanes, _MOST_LANES), 1))
        sources.append(source._replace(corpus=corpus))
    return run._replace(sources=tuple(sources))


def active_sources(run: Run) -> list[int]:
    """The indexes of the sources that have a weight."""
    return [index for index, _ in run.schedule.stages[0].shares.weights]


def budget_bytes(run: Run, settings: PassSettings, asked: int | None) -> int:
    """Bytes of each worker, which reads one lane at a time."""
    workers = max(settings.num_workers, 1)
    return min(
        worker_bytes(asked, only(run, source), num_lanes=workers, num_workers=workers)
        for source in active_sources(run)
    )


class Worked:
    """The messages of some work, of which each is one task: from workers, or made here."""

    def __init__(
        self, work: Counting | Stretches, num_tasks: int, settings: PassSettings, restarts: WorkerRestarts
    ) -> None:
        num_workers = min(settings.num_workers, num_tasks)
        self.restarting: RestartingMessages | None = None
        """None: made here."""
        if num_workers:
            self.restarting = RestartingMessages(
                work,
                num_workers,
                _Sent(work, num_workers),
                timeout_s=settings.worker_timeout_s,
                restarts=restarts,
            )
        self.messages: Iterator[Message] = self.restarting or in_this_process(work)


class _Sent:
    """How many messages have come: `Progress`."""

    def __init__(self, work: Counting | Stretches, num_workers: int) -> None:
        self._work = work
        self._sent = [0] * num_workers

    def add(self, worker: int, message: Message) -> None:
        """A message of a worker came whole."""
        self._sent[worker] += 1

    def rest(self) -> Work:
        """What is left to do."""
        return dataclasses.replace(self._work, sent=tuple(self._sent))


def count(
    run: Run, ranks: Exchange | None, settings: PassSettings, restarts: WorkerRestarts, *, budget_bytes: int
) -> list[CountedLane]:
    """The lanes in their order, with the packs that an iteration has of each; a collective of the ranks.

    A budget of packs is divided among the sources, see `parts`; lanes after the last pack of a source are left out.

    Args:
        run: of `validation_run`.
        ranks: the others; None: this rank counts all by itself.
        settings: how this rank reads, and which it is.
        restarts: what starts workers.
        budget_bytes: of each worker.

    Raises:
        ConfigError: a source has no pack.
        ShardError: too much was skipped.
        LoaderError: another rank has failed.
    """
    rank, num_ranks = (0, 1) if ranks is None else (settings.rank, settings.num_ranks)
    counted: dict[int, list[CountedLane]] = {source: [] for source in active_sources(run)}
    step = step_of(run.schedule.stages[0].seq_len)
    while lanes := _to_count(run, counted, together=_COUNTED_TOGETHER * num_ranks):
        mine = lanes[rank::num_ranks]
        counting = Counting(run=run, num_ranks=num_ranks, lanes=mine, step=step, budget_bytes=budget_bytes)
        for each in sorted(_shared(partial(_counted, counting, settings, restarts), ranks), key=lambda each: each.lane):
            counted[each.lane.source].append(each)
    found = list(chain(*counted.values()))
    if run.schedule.end is not None:
        wanted = zip(counted.values(), _wanted(run, counted), strict=True)
        found = [each for lanes_of_source, packs in wanted for each in _first(lanes_of_source, packs)]
    _check_skipped(run, found)
    for source, of_source in counted.items():
        if not any(each.packs for each in of_source):
            raise ConfigError(_why_without_packs(run.sources[source]))
    return found


def _to_count(run: Run, counted: Mapping[int, Sequence[CountedLane]], *, together: int) -> list[ValidationLane]:
    """The next lanes of the sources of which too few packs are known; with a budget about `together`."""
    lacking = []
    for (source, lanes), packs in zip(counted.items(), _wanted(run, counted), strict=True):
        if sum(each.packs for each in lanes) < packs and len(lanes) < run.sources[source].corpus.num_lanes:
            lacking.append(source)
    found = []
    for source in lacking:
        done, stop = len(counted[source]), run.sources[source].corpus.num_lanes
        if run.schedule.end is not None:
            stop = min(stop, done + max(together // len(lacking), 1))
        found += [ValidationLane(source, lane) for lane in range(done, stop)]
    return found


def _wanted(run: Run, counted: Mapping[int, Sequence[CountedLane]]) -> list[int]:
    """How many packs an iteration has of each source, as far as is known by now."""
    num_packs = _ALL if run.schedule.end is None else run.schedule.end
    available = []
    for source, lanes in counted.items():
        is_whole = len(lanes) == run.sources[source].corpus.num_lanes
        available.append(sum(each.packs for each in lanes) if is_whole else num_packs)
    return parts(num_packs, [held_out_bytes(run.sources[source]) for source in counted], available)


def _first(lanes: Sequence[CountedLane], packs: int) -> Iterator[CountedLane]:
    """The lanes that have the first `packs`, each with how many of them it has."""
    before = 0
    for each in lanes:
        yield each._replace(packs=min(each.packs, packs - before))
        before += each.packs
        if before >= max(packs, 1):  # of a source without a pack, all lanes
            return


def _counted(work: Counting, settings: PassSettings, restarts: WorkerRestarts) -> list[CountedLane]:
    worked = Worked(work, len(work.lanes), settings, restarts)
    found = []
    try:
        for _ in work.lanes:
            message = next(worked.messages)
            if message.error is not None:
                raise message.error
            assert isinstance(message, Counts), "a worker that counts sends nothing else"
            assert message.counted is not None, "without an error it has counted"
            found.append(message.counted)
    finally:
        if worked.restarting is not None:
            worked.restarting.close()
    return found


def _shared(count_mine: Callable[[], list[CountedLane]], ranks: Exchange | None) -> list[CountedLane]:
    """What all ranks have counted; where one fails, all do."""
    if ranks is None:
        return count_mine()
    mine: list[CountedLane] = []
    error: Exception | None = None
    try:
        mine = count_mine()
    except Exception as failure:  # noqa: BLE001 (raised below, once the others know)
        error = failure
    wire: list[Any] = [each.to_wire() for each in mine]
    gathered = ranks.all_gather((wire, None if error is None else str(error)))
    if error is not None:
        raise error
    for rank, (_, message) in enumerate(gathered):
        if message is not None:
            raise LoaderError(f"data-parallel rank {rank} could not count the packs of the validation set: {message}")
    return [CountedLane.from_wire(each) for lanes, _ in gathered for each in lanes]


def _check_skipped(run: Run, counted: Sequence[CountedLane]) -> None:
    """Refuse a set of which more was skipped than `max_bad` allows."""
    num_bad, documents = sum(each.num_skipped for each in counted), sum(each.documents for each in counted)
    max_bad = run.sources[0].pipelines[0].max_bad
    if num_bad > allowed_bad(max_bad, documents):
        raise ShardError(
            f"the validation set has {num_bad} bad records or broken shards, more than max_bad={max_bad} allows with "
            f"{documents} documents; the log names each. Repair the data or raise max_bad."
        )


def _why_without_packs(source: RunSource) -> str:
    """Why a source has no pack, and what to do."""
    name = "the shards" if source.name == DEFAULT else f"source {source.name!r}"
    return why_empty(source) or (
        f"{hold_out_of(source)} gives no pack of {name}: there is no document, or none that is held out has a row "
        "with a target"
    )
