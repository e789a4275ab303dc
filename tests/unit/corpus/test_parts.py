"""Parts of a job: which shards each has, and a folder that takes the parts of one job only."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streampack.corpus.parts import Part, PartsFolder, PartsJob, as_part, as_runs, shards_of
from streampack.errors import ConfigError

JOB = PartsJob(command="verify", num_parts=3, about={"seq_len": 8, "source web": {"shards": 9}})


@given(sizes=st.lists(st.integers(0, 2**62 // 60), max_size=60), number=st.integers(1, 90))
def test_each_shard_is_in_one_part_and_no_part_has_more_than_its_bytes_and_a_shard(
    sizes: list[int], number: int
) -> None:
    parts = [shards_of(np.array(sizes, dtype=np.int64), Part(index, number)) for index in range(number)]
    assert [index for part in parts for index in part] == list(range(len(sizes)))
    share = sum(sizes) / number
    assert all(sum(sizes[i] for i in part) <= share * (1 + 1e-9) + max(sizes, default=0) for part in parts)


def test_as_many_parts_as_equal_shards_have_one_each() -> None:
    sizes = np.full(97, 10_240, dtype=np.int64)
    assert [shards_of(sizes, Part(index, 97)) for index in range(97)] == [range(i, i + 1) for i in range(97)]


def test_a_part_is_a_number_from_0_and_how_many_there_are() -> None:
    assert (as_part("0/1"), as_part("31/32"), str(Part(3, 8))) == (Part(0, 1), Part(31, 32), "3/8")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("32/32", "--part 32/32: the parts of 32 have the numbers 0 to 31 (Slurm: --array=0-31)"),
        ("3", "--part 3: give I/N"),
        ("/32", "give I/N"),  # $SLURM_ARRAY_TASK_ID is not set
        ("-1/4", "give I/N"),
        ("1/4/2", "give I/N"),
        ("0/0", "there are 1 to 99,999 parts, and not 0"),
        ("0/100000", "there are 1 to 99,999 parts, and not 100,000"),
    ],
)
def test_what_is_no_part_is_refused_with_what_to_give(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        as_part(text)
    assert says in str(error.value)


def test_missing_numbers_are_written_as_slurm_takes_them() -> None:
    assert [as_runs(numbers) for numbers in ([], [4], {9, 0, 1, 2, 7, 8})] == ["", "4", "0-2,7-9"]


@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_folder_has_the_results_in_order_once_all_parts_are_there(tmp_path: Path, place: str) -> None:
    folder = PartsFolder(str(tmp_path / "parts") if place == "local" else f"memory://{tmp_path.name}/parts/")
    assert folder.done(JOB) == set()
    with pytest.raises(ConfigError, match="has no parts"):
        folder.job()
    for index in (2, 0):
        folder.keep(JOB, index, {"name": f"\udce9{index}"})
    assert folder.done(JOB) == {0, 2}
    with pytest.raises(ConfigError, match=r"2 of 3 parts; missing are 1. Run `streampack verify ... --part 1/3`"):
        folder.job()
    folder.keep(JOB, 1, None)
    assert folder.job() == JOB
    assert list(folder.results(JOB)) == [{"name": "\udce90"}, None, {"name": "\udce92"}]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (PartsJob(command="count", num_parts=3, about=JOB.about), "they are of `verify`, and this is `count`"),
        (PartsJob(command="verify", num_parts=4, about=JOB.about), "they are parts of 3, and this is one of 4"),
        (PartsJob(command="verify", num_parts=3, about={"seq_len": 8, "source web": {"shards": 1000}}),
         "source web, shards is 9 there, and 1,000 here"),
        (PartsJob(command="verify", num_parts=3, about={**JOB.about, "field": "json:a"}),
         'field is nothing there, and "json:a" here'),
    ],
)  # fmt: skip
def test_a_part_of_another_job_is_refused_with_what_differs(tmp_path: Path, other: PartsJob, says: str) -> None:
    folder = PartsFolder(str(tmp_path))
    folder.keep(JOB, 0, None)
    with pytest.raises(ConfigError) as error:
        folder.done(other)
    assert says in str(error.value) and str(tmp_path) in str(error.value)
    folder.keep(other, 1, None)  # as when both begin at once
    with pytest.raises(ConfigError, match="has parts of another job"):
        folder.job()


def test_a_file_that_is_not_what_a_part_writes_is_named(tmp_path: Path) -> None:
    folder = PartsFolder(str(tmp_path))
    for index in range(3):
        folder.keep(JOB, index, index)
    first, second, _ = sorted(tmp_path.iterdir())
    good = second.read_bytes()
    second.write_bytes(good[:40])
    with pytest.raises(ConfigError, match=f"{second}: .* remove the file and run --part 1/3 again"):
        list(folder.results(folder.job()))
    second.write_bytes(first.read_bytes())
    with pytest.raises(ConfigError, match=f"{second}: the file has part 0/3 .*, not what its name says"):
        list(folder.results(folder.job()))
