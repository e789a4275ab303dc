"""Which ranges of the inputs become which portion, and what makes two jobs different."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streampack.corpus.writing.job import Job, check_same
from streampack.corpus.writing.planning import Unit, plan
from streampack.errors import ConfigError

UNITS = st.lists(
    st.tuples(st.integers(0, 10), st.integers(0, 30), st.integers(0, 40), st.booleans()), min_size=1, max_size=12
)


@given(UNITS, st.integers(1, 50))
def test_every_position_of_every_unit_is_in_exactly_one_portion(
    made: list[tuple[int, int, int, bool]], portion_bytes: int
) -> None:
    units = [Unit(index, start, start + length, size, cut) for index, (start, length, size, cut) in enumerate(made)]
    portions = plan(units, portion_bytes)
    ranges = [each for portion in portions for each in portion.ranges]
    for unit in units:
        mine = [each for each in ranges if each.input == unit.input]
        assert sorted(at for each in mine for at in range(each.start, each.stop)) == list(range(unit.start, unit.stop))
        assert mine, "an empty file is read, too: it may be a text"
    order = [(each.input, each.start) for each in ranges]
    assert order == sorted(order)
    assert [portion.number for portion in portions] == list(range(len(portions)))


def test_a_large_file_is_cut_and_a_compressed_one_goes_where_it_begins() -> None:
    portions = plan([Unit(0, 0, 100, 100, True), Unit(1, 0, 30, 120, False), Unit(2, 0, 20, 20, True)], 60)
    assert [[(each.input, each.start, each.stop) for each in portion.ranges] for portion in portions] == [
        [(0, 0, 60)],
        [(0, 60, 100), (1, 0, 30)],
        [(2, 0, 20)],
    ]


JOB = {"field": "jsonl:text", "shard_bytes": 100, "shuffle": False, "seed": 0, "on_error": "raise"}
FILES = [("a.jsonl", 10, "1"), ("b.jsonl", 20, "2")]


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"field": "jsonl:content"}, "field was 'jsonl:text' and is 'jsonl:content' now"),
        ({"shard_bytes": 200}, "shard_bytes was 100 and is 200 now"),
        ({"shuffle": True}, "shuffle was False and is True now"),
        ({"inputs": FILES[:1]}, "b.jsonl was an input and is none now"),
        ({"inputs": [*FILES, ("c.jsonl", 1, ""), ("d.jsonl", 1, "")]}, "c.jsonl is an input now and was none, and 1"),
        ({"inputs": [FILES[0], ("b.jsonl", 21, "3")]}, r"b.jsonl has changed \(20 bytes, then 21\)"),
        ({"inputs": [FILES[0], ("b.jsonl", 20, "3")]}, r"b.jsonl has changed \(version 2, then 3\)"),
        ({"inputs": FILES[::-1]}, "another order"),
        ({"inputs": None}, "one of the two was an iterable"),
    ],
)
def test_the_error_of_another_job_says_what_differs(now: dict[str, object], message: str) -> None:
    before = {**JOB, "inputs": FILES}
    with pytest.raises(ConfigError, match=f"out was written from something else: .*{message}.*Remove the folder"):
        check_same(Job(**before), Job(**{**before, **now}), folder="out")  # type: ignore[arg-type]


def test_bad_records_may_be_skipped_when_a_run_that_ended_at_one_goes_on() -> None:
    before, now = Job(**JOB, inputs=FILES), Job(**{**JOB, "on_error": "skip"}, inputs=FILES)  # type: ignore[arg-type]
    check_same(before, now, folder="out")
    with pytest.raises(ConfigError, match="on_error was 'skip' and is 'raise' now"):
        check_same(now, before, folder="out")
