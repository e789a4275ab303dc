"""Sorted runs: merged in any way they have the order of all records; how often each record is read."""

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streampack.corpus.parts import Part
from streampack.corpus.writing import sorting
from streampack.corpus.writing.folder import OutputFolder
from streampack.corpus.writing.job import Job
from streampack.corpus.writing.merging import plan_merges
from streampack.corpus.writing.runs import RECORD_BYTES, Run, merge_runs, records_between, write_run
from streampack.corpus.writing.sorting import PartRuns, Sorted
from streampack.storage.options import Storage

JOB = Job(field="jsonl:text", shard_bytes=2**16, shuffle=True, seed=0, on_error="raise", inputs=[("a", 3, "1")])


@given(st.integers(0, 400), st.integers(1, 9), st.integers(2, 9))
def test_merges_join_neighbours_until_few_enough_are_left(num_runs: int, left: int, most: int) -> None:
    steps, rest = plan_merges(num_runs, left=left, most=most)
    assert len(rest) <= max(left, 0)
    assert [at for span in rest for at in range(*span)] == list(range(num_runs))
    there = {(run, run + 1) for run in range(num_runs)}
    for step in steps:
        for span, inputs in step.items():
            assert 2 <= len(inputs) <= most + 1
            assert (inputs[0][0], inputs[-1][1]) == span
            assert [each[1] for each in inputs[:-1]] == [each[0] for each in inputs[1:]]
            there -= set(inputs)
            there.add(span)
    assert there == set(rest)


@pytest.mark.parametrize("num_runs", [1025, 10**4, 2 * 10**5])
def test_a_record_is_read_once_a_step_and_steps_grow_with_the_logarithm(num_runs: int) -> None:
    steps, rest = plan_merges(num_runs, left=100, most=100)
    assert len(rest) == 100
    assert len(steps) == math.ceil(math.log(num_runs, 100)) - 1
    for step in steps:
        assert sum(stop - start for start, stop in step) <= num_runs


@pytest.mark.parametrize(("most", "parts"), [(2, 2), (2, 1), (3, 1), (100, 33), (100, 1)])
def test_runs_that_are_merged_give_the_records_in_the_order_of_all(
    most: int, parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorting, "MOST_RUNS", most)
    monkeypatch.setattr(sorting, "_RUN_BYTES", 200)  # a merge takes several slices
    folder = OutputFolder(f"{tmp_path}/out", Storage(), JOB, Part(0, parts), str(tmp_path / "scratch"))
    scratch = folder.scratch.path
    rng = np.random.default_rng(0)
    portions, expected = [], []
    for number, sizes in enumerate(([5, 1, 7], [], [2], [9, 4, 6, 1])):
        (scratch / f"sorted-{number:05d}").mkdir(parents=True)
        there = []
        for run, size in enumerate(sizes):
            keys = rng.integers(0, 6, size, dtype=np.uint64) * np.uint64(2**61)  # many are equal
            records = [f"{number}/{run}/{index}".encode() * int(rng.integers(1, 9)) for index in range(size)]
            there.append((size, write_run(scratch / f"sorted-{number:05d}" / str(run), keys, records)))
            expected += zip(keys.tolist(), records, strict=True)
        portions.append((number, Sorted(num_bytes=1, runs=there, num_skipped=0, problems=[])))
    runs = PartRuns(portions, folder)
    told: list[int] = []
    for merges in runs.missing():
        size = runs.size(merges)
        for span in merges:
            runs.merge(span, told.append)
        assert sum(told) == size
        told.clear()
    assert not any(PartRuns(portions, folder).missing()), "all is done"
    found = [Run(scratch / name, *sizes) for name, *sizes in runs.joined().runs]
    assert all(run.is_there for run in found)
    assert len(found) == min(max(most // parts, 1), 8)
    for count in (1, 3):
        assert [record for number in range(count) for record in records_between(found, number, count)] == [
            record for _, record in sorted(expected, key=lambda each: each[0])
        ]


def test_short_records_take_few_bytes_of_memory_besides_their_own(tmp_path: Path) -> None:
    rng, runs, count = np.random.default_rng(0), [], 2000
    for number in range(8):
        keys = rng.integers(0, 2**64, count, dtype=np.uint64)
        runs.append(Run(tmp_path / str(number), count, write_run(tmp_path / str(number), keys, [b"x" * 50] * count)))
    tracemalloc.start()
    try:
        assert sum(map(len, records_between(runs, 0, 1))) == 8 * count * 50
        read = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        merge_runs(runs, tmp_path / "merged", slice_bytes=2**18, tell=lambda size: None)
        merged = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    a_run = 50 * count
    assert read < 8 * count * (50 + RECORD_BYTES) + 2 * a_run + 4096 * 64 + 2**16
    assert merged < 1.5 * 2**18 + 4096 * 64
