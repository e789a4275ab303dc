"""Where batches begin and end, compared with cutting the run pack by pack."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streampack.corpus.partition import fitting_ranks
from streampack.corpus.schedule import Schedule, StageOfRun
from streampack.corpus.shares import Shares
from streampack.loader.steps import Step, Steps


def schedule_of(num_lanes: int, stages: list[tuple[int, int]], end: int | None = None) -> Schedule:
    """Stages as (first round, seq_len)."""
    made = [StageOfRun(first * num_lanes, 0, seq_len, Shares.of([1]), {}) for first, seq_len in stages]
    return Schedule(num_lanes=num_lanes, stages=tuple(made), end=end)


def all_steps(steps: Steps, begin: int, pass_end: int | None = None) -> list[Step]:
    found = []
    while (step := steps.at(begin, pass_end)) is not None:
        found.append(step)
        begin = step.end
    return found


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    num_lanes = draw(st.sampled_from([1, 2, 4, 6, 12]))
    firsts = sorted(draw(st.sets(st.integers(1, 6), max_size=3)))
    stages = [(first, draw(st.sampled_from([100, 400]))) for first in (0, *firsts)]
    return schedule_of(num_lanes, stages, draw(st.integers(1, 8 * num_lanes)))


@given(schedules(), st.integers(1, 7), st.booleans(), st.data())
def test_batches_are_those_that_cutting_pack_by_pack_gives(
    schedule: Schedule, batch_size: int, drop_last: bool, data: st.DataObject
) -> None:
    ranks = data.draw(st.sampled_from(fitting_ranks(schedule.num_lanes)))
    assert schedule.end is not None
    begin = data.draw(st.integers(0, schedule.end))
    steps = Steps(schedule=schedule, batch_size=batch_size, num_ranks=ranks, drop_last=drop_last)
    expected: list[list[int]] = []
    for pack in range(begin, schedule.end):
        seq_len = schedule.stage_of(pack).seq_len
        last = expected[-1] if expected else []
        if not last or len(last) == batch_size * ranks or schedule.stage_of(last[0]).seq_len != seq_len:
            expected.append([])
        expected[-1].append(pack)
    if drop_last and expected and len(expected[-1]) < batch_size * ranks:
        expected.pop()
    found = all_steps(steps, begin)
    if begin == 0:
        assert [steps.numbered(number) for number in range(len(found) + 1)] == [*found, None]
        if not drop_last:
            begins = {step.begin for step in found}
            assert {pack for pack in range(schedule.end) if steps.has_begin(pack)} == begins
    assert [list(range(step.begin, step.end)) for step in found] == expected
    for step, packs in zip(found, expected, strict=True):
        own = [sum(pack % ranks == rank for pack in packs) for rank in range(ranks)]
        assert [steps.own(step, rank) for rank in range(ranks)] == own
        is_cut = step.end < schedule.end and len(packs) < batch_size * ranks
        assert step.size == (-(-len(packs) // ranks) if is_cut else batch_size)
        assert {schedule.stage_of(pack).seq_len for pack in packs} == {step.seq_len}
    if begin == 0:
        assert steps.count(schedule.end) == len(found)


@given(schedules(), st.integers(1, 5), st.data())
def test_steps_go_on_on_other_ranks_where_they_were_left(
    schedule: Schedule, batch_size: int, data: st.DataObject
) -> None:
    begin, packs = 0, []
    for _ in range(3):
        ranks = data.draw(st.sampled_from(fitting_ranks(schedule.num_lanes)))
        steps = Steps(schedule=schedule, batch_size=batch_size, num_ranks=ranks)
        for step in all_steps(steps, begin)[: data.draw(st.integers(0, 4))]:
            packs += range(step.begin, step.end)
            begin = step.end
    rest = Steps(schedule=schedule, batch_size=3, num_ranks=1)
    packs += [pack for step in all_steps(rest, begin) for pack in range(step.begin, step.end)]
    assert packs == list(range(schedule.end or 0))


@pytest.mark.parametrize(
    ("packs", "ranks", "batch_size", "padded", "dropped"),
    [
        (0, 1, 4, 0, 0),
        (12, 1, 4, 3, 3),
        (13, 1, 4, 4, 3),
        (13, 4, 4, 1, 0),  # 4 packs on the first rank, 3 on the others
        (17, 4, 4, 2, 1),
        (24, 2, 5, 3, 2),
    ],
)
def test_the_number_of_batches(packs: int, ranks: int, batch_size: int, padded: int, dropped: int) -> None:
    endless = schedule_of(12, [(0, 100)])
    for drop_last, number in ((False, padded), (True, dropped)):
        steps = Steps(schedule=endless, batch_size=batch_size, num_ranks=ranks, drop_last=drop_last)
        assert steps.count(packs) == len(all_steps(steps, 0, pass_end=packs)) == number


def test_without_an_end_every_batch_is_whole() -> None:
    steps = Steps(schedule=schedule_of(12, [(0, 100)]), batch_size=5, num_ranks=4, drop_last=True)
    assert steps.at(10**12 + 7) == Step(10**12 + 7, 10**12 + 27, 5, 100)
