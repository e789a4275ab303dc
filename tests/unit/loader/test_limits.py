"""Which stage limits a loader, from what its time went to."""

import logging
from collections.abc import Mapping

import numpy as np
import pytest

from streampack.loader.limits import Limit, Limits, limit_of
from streampack.loader.times import Spent
from streampack.metrics.clock import STAGES

S = 10**9


def spent(
    waited: Mapping[str, float], own: Mapping[str, float], *workers: Mapping[str, float], source: int = 0
) -> Spent:
    """Seconds by stage; of one of two sources."""
    both = np.zeros((2, 2, len(STAGES)))
    for table, seconds in zip(both, (waited, own), strict=True):
        table[source] = row(seconds)
    return Spent(*both, np.array([row(each) for each in workers]).reshape(-1, len(STAGES)))


def row(seconds: Mapping[str, float]) -> list[float]:
    return [seconds.get(stage, 0.0) for stage in STAGES]


NOTHING = spent({}, {})


@pytest.mark.parametrize(
    ("waited", "own", "stage", "seconds"),
    [
        # batches are waited for: what the workers do meanwhile, and not what the trainer does
        ({"storage": 4.1, "tar": 0.9}, {"main": 1, "trainer": 4}, "storage", 4.1),
        ({"storage": 0.2, "tokenize": 0.4}, {"trainer": 9.4}, "tokenize", 0.4),
        ({"tokenize": 1}, {"main": 8, "trainer": 1}, "tokenize", 1),
        # hardly ever: a slow trainer is no problem of the data
        ({"tokenize": 0.4}, {"trainer": 9.6}, "trainer", 9.6),
        ({"tokenize": 0.4}, {"main": 4, "trainer": 5.6}, "trainer", 5.6),
        ({"tokenize": 0.4}, {"main": 5, "trainer": 4.6}, "main", 5),
        # no workers: nothing is made ahead
        ({}, {"tar": 2, "tokenize": 3, "main": 1, "trainer": 4}, "tokenize", 3),
        ({}, {"tar": 2, "tokenize": 2, "trainer": 6}, "trainer", 6),
        # workers that are starting
        ({"main": 6}, {"trainer": 4}, "main", 6),
    ],
)
def test_the_stage_that_batches_are_waited_for_limits(
    waited: dict[str, float], own: dict[str, float], stage: str, seconds: float
) -> None:
    before = spent({"pack": 100}, {"trainer": 100, "main": 50})
    after = Spent(*(a + b for a, b in zip(before[:2], spent(waited, own)[:2], strict=True)), before.workers)
    found = limit_of(before, after)
    assert found is not None
    assert (found.stage, round(found.seconds, 6), round(found.of_seconds, 6)) == (stage, seconds, 10)


def test_nothing_limits_before_there_is_time() -> None:
    assert limit_of(NOTHING, NOTHING) is None


def test_the_source_of_most_of_it_is_named_and_the_workers_that_are_in_the_stage() -> None:
    before = spent({}, {}, {}, {"tar": 100}, {})
    after = spent({"tar": 6}, {"trainer": 4}, {"tar": 5}, {"tar": 104}, {"pack": 9, "tar": 6}, source=1)
    assert limit_of(before, after) == Limit("tar", 6.0, 10.0, 1, 2, 3)
    other = after._replace(waited=after.waited + after.waited[::-1])
    assert limit_of(before, other) == Limit("tar", 12.0, 16.0, None, 0, 3)
    restarted = after._replace(workers=after.workers[:1])
    assert limit_of(before, restarted) == Limit("tar", 6.0, 10.0, 1, 0, 0)


class Run:
    """A loader of which a test says what its time went to, second by second."""

    def __init__(self) -> None:
        self.spent = spent({}, {}, {}, {})
        self.limits = Limits(lambda: self.spent, lambda *of: f"{('source', 'folder')[of[1]]} {of[0]}", window_s=3)
        self.now_ns = 10**12
        self.limits.reset()
        self.limits.tick(self.now_ns)

    def goes(
        self, seconds: int, waited: Mapping[str, float], own: Mapping[str, float], *, batch_s: float = 0.1
    ) -> None:
        """So many seconds, of which each went to the same; a batch after each `batch_s`."""
        step = spent(waited, own, waited, {})
        for _ in range(round(seconds / batch_s)):
            self.now_ns += round(S * batch_s)
            self.spent = Spent(*(a + batch_s * b for a, b in zip(self.spent, step, strict=True)))
            self.limits.tick(self.now_ns)


def test_the_window_moves(caplog: pytest.LogCaptureFixture) -> None:
    run = Run()
    assert run.limits.stage() is None
    run.goes(1, {"storage": 1}, {})
    assert run.limits.stage() == "storage"
    run.goes(1, {"tokenize": 1}, {})
    run.goes(1, {"tokenize": 1}, {})
    assert run.limits.now() == pytest.approx(Limit("tokenize", 2.0, 3.0, 0, 1, 2))
    run.goes(3, {}, {"trainer": 1})
    assert run.limits.now() == pytest.approx(Limit("trainer", 3.0, 3.0))


def test_the_window_is_as_long_where_batches_take_as_long_as_it() -> None:
    run = Run()
    run.goes(300, {}, {"trainer": 1}, batch_s=2)
    run.goes(4, {"storage": 1}, {}, batch_s=2)
    assert run.limits.now() == pytest.approx(Limit("storage", 4.0, 4.0, 0, 1, 2))
    run.goes(10, {}, {"trainer": 1}, batch_s=10)
    assert run.limits.now() == pytest.approx(Limit("trainer", 10.0, 10.0))


def test_the_log_tells_what_limits_when_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "streampack")
    run = Run()
    run.goes(9, {}, {"trainer": 1})
    assert not caplog.records
    run.goes(9, {"storage": 0.6}, {"trainer": 0.4})
    run.goes(9, {"transform": 1}, {})
    run.goes(9, {}, {"trainer": 1})
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
        ("WARNING", "limited by storage (folder 0, 1.8 s of 3), 1 of 2 workers blocked"),
        ("WARNING", "limited by transform (source 0, 3.0 s of 3), 1 of 2 workers busy with it"),
        ("INFO", "limited by trainer: batches are ready before they are asked for"),
    ]


def test_what_comes_before_the_first_batch_is_no_limit() -> None:
    run = Run()
    run.limits.reset()
    run.spent = spent({"main": 60}, {}, {}, {})
    assert run.limits.stage() is None
    run.limits.tick(run.now_ns)
    run.goes(1, {}, {"trainer": 1})
    assert run.limits.stage() == "trainer"
