"""The speed of a run by the clock: tokens a second on several workers, their memory, the first batch, a resume.

In:  a function that makes the dataset of a finite run.
Out: frozen records of plain numbers; nothing is printed.
Invariants: a rate counts from the first batch on, so the start of the workers is not in it.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streampack.cli.bench.stages import BATCH_SIZE
from streampack.cli.bench.stopwatch import Reading, Spread, read, wall_ratio
from streampack.dataset.dataset import PackedDataset
from streampack.loader.loader import PackedDataLoader


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerScale:
    """The pipeline on one number of workers."""

    workers: int
    tokens_per_s: Spread
    """Of the clock."""
    ratio: Spread
    """To the first number of workers measured."""
    main_ms: Spread
    """CPU time of the main process for each batch, in the second half of the pass."""
    own_mb: float
    """The most memory that a worker shared with no other process, in MB; nan where the system does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """A resume from a state."""

    percent: int
    """Of an epoch's batches."""
    seconds: Spread
    """Until the first batch."""


def scale(
    make: Callable[[], PackedDataset],
    workers: Sequence[int],
    num_rounds: int,
    *,
    advance: Callable[[str], None] = lambda name: None,
) -> list[WorkerScale]:
    """The pipeline on each number of workers, from the first batch to the end of the pass, interleaved."""
    passes: dict[int, list[_Pass]] = {number: [] for number in workers}
    for turn in range(num_rounds):
        first = turn % len(workers)
        for number in (*workers[first:], *workers[:first]):
            passes[number].append(_walk(make(), number))
            advance(f"{number} workers")
    base = [each.reading for each in passes[workers[0]]]
    return [
        WorkerScale(
            workers=number,
            tokens_per_s=Spread.of([each.reading.per_wall_s for each in passes[number]]),
            ratio=wall_ratio([each.reading for each in passes[number]], base),
            main_ms=Spread.of([each.main_ms for each in passes[number]]),
            own_mb=worker_memory_mb(make(), number) if number else float("nan"),
        )
        for number in workers
    ]


@dataclass(frozen=True, slots=True)
class _Pass:
    reading: Reading
    main_ms: float


def _walk(dataset: PackedDataset, num_workers: int) -> _Pass:
    with _with_children(dataset, num_workers) as loader:
        batches = iter(loader)
        next(batches)
        begin = loader.stats()["tokens"]
        cpu = [time.process_time()]

        def work() -> int:
            cpu.extend(time.process_time() for _ in batches)
            return int(loader.stats()["tokens"] - begin)

        reading = read(work)
    half = cpu[len(cpu) // 2 :]  # messages are small at first
    return _Pass(reading, (half[-1] - half[0]) / max(len(half) - 1, 1) * 1e3)


def _with_children(dataset: PackedDataset, num_workers: int) -> PackedDataLoader:
    """A loader whose workers are children of this process: their CPU time counts as this one's when they have ended."""
    return PackedDataLoader(dataset, BATCH_SIZE, num_workers=num_workers, multiprocessing_context="fork")


def worker_memory_mb(dataset: PackedDataset, num_workers: int) -> float:
    """The most memory of its own that a worker had in a pass, in MB, measured every 16 batches; nan as above."""
    highest = 0.0
    with _with_children(dataset, num_workers) as loader:
        for number, _ in enumerate(loader):
            if number % 16 == 0:
                highest = max([highest, *(own_memory_mb(each.pid) for each in multiprocessing.active_children())])
    return highest or float("nan")


def own_memory_mb(pid: int | None) -> float:
    """Memory of a process that it shares with no other, in MB; nan where /proc does not tell."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
    except OSError:
        return float("nan")
    return sum(int(row.split()[1]) for row in rollup.splitlines() if row.startswith("Private_")) / 1000


def first_batch(make: Callable[[], PackedDataset], num_workers: int, num_rounds: int) -> Spread:
    """Seconds from making the dataset to its first batch."""
    return Spread.of([_seconds_to_first_batch(make, num_workers) for _ in range(num_rounds)])


def _seconds_to_first_batch(
    make: Callable[[], PackedDataset], num_workers: int, state: dict[str, Any] | None = None
) -> float:
    begin = time.perf_counter()
    with PackedDataLoader(make(), BATCH_SIZE, num_workers=num_workers) as loader:
        if state is not None:
            loader.load_state_dict(state)
        next(iter(loader))
        return time.perf_counter() - begin


def resume(make: Callable[[], PackedDataset], percents: Sequence[int], num_rounds: int) -> list[Resume]:
    """Seconds from making the dataset to the first batch after a state, interleaved; 0 percent is a fresh start."""
    with PackedDataLoader(make(), BATCH_SIZE, num_workers=0) as walk:
        states = [walk.state_dict() for _ in walk]
    at = {
        percent: states[min(len(states) * percent // 100, len(states) - 2)] if percent else None for percent in percents
    }
    seconds: dict[int, list[float]] = {percent: [] for percent in percents}
    for _ in range(num_rounds):
        for percent in percents:
            seconds[percent].append(_seconds_to_first_batch(make, 0, at[percent]))
    return [Resume(percent=percent, seconds=Spread.of(values)) for percent, values in seconds.items()]
