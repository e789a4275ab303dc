"""Packs of a validation set by their numbers in an iteration, which are the same on any number of ranks.

In:  a dataset with `HoldOut("val", ...)`; the numbers. Out: a `TracedPack` of each.
Invariants: the packs are counted as a loader's first iteration does, then those that are asked for are read.
"""

from dataclasses import replace

from streampack.cli.console import plural
from streampack.cli.peek.pieces import Pieces
from streampack.cli.trace.found import Place, TracedPack, traced
from streampack.dataset.dataset import PackedDataset
from streampack.errors import ConfigError
from streampack.loader.counting import budget_bytes, count, validation_run
from streampack.loader.passes import PassSettings
from streampack.loader.restarts import WorkerRestarts
from streampack.loader.stretches import Stretches, StretchReader, step_of, stretches


def traced_held_out(
    dataset: PackedDataset, *, pack: int | None, global_batch: int | None, row: int | None, pieces: Pieces | None
) -> list[TracedPack]:
    """The pack, or the `global_batch` packs from it on, or of these the one with number `row`.

    Raises:
        ConfigError: no pack is asked for, or one that the set does not have.
    """
    run = validation_run(dataset.run())
    settings = _in_this_process()
    budget = budget_bytes(run, settings, dataset.limits.buffer_bytes)
    counted = count(run, None, settings, WorkerRestarts(settings.launcher()), budget_bytes=budget)
    end = sum(each.packs for each in counted)
    if pack is None:
        raise ConfigError(
            "give --pack in place of --step: which batch a pack of a validation set is in depends on the ranks. Of R "
            f"ranks, rank r has the packs r * {end} // R to (r + 1) * {end} // R - 1, one after the other"
        )
    if pack >= end:
        raise ConfigError(f"there is no pack {pack:,}: the validation set has {plural(end, 'pack')}, from 0 on")
    stop = min(pack + (global_batch or 1), end)
    if row is not None and row >= stop - pack:
        raise ConfigError(f"--row {row}: from pack {pack:,} on there are {plural(stop - pack, 'pack')}, from row 0 on")
    if row is not None:
        pack, stop = pack + row, pack + row + 1
    step = step_of(run.schedule.stages[0].seq_len)
    parts = stretches(run, counted, pack, stop, step=step, size=step)
    reader = StretchReader(Stretches(run=run, stretches=parts, num_ranks=1, budget_bytes=budget, with_provenance=True))
    found: list[TracedPack] = []
    for part in parts:
        for lane_pack, made in enumerate(reader.packs(part), start=part.start.packs + part.passed_over):
            assert made.pack is not None, "a stretch has as many packs as were counted"
            at = row if row is not None or global_batch is None else len(found)
            one = traced(run, Place(global_pack=made.global_pack, row=at), made.pack, pieces, ended_after=None)
            found.append(replace(one, lane=part.lane.lane, lane_pack=lane_pack))
    return found


def _in_this_process() -> PassSettings:
    return PassSettings(
        batch_size=1,
        rank=0,
        num_ranks=1,
        num_workers=0,
        prefetch_bytes=0,
        multiprocessing_context=None,
        worker_timeout_s=1,
        with_provenance=True,
        drop_last=False,
    )
