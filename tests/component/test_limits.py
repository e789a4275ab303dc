"""Each stage made slow, one after the other: the loader is limited by that one."""

import time
from collections import Counter
from pathlib import Path

import pytest
from support.thorough import nightly, some
from support.throttles import Throttled, sleeping

from streampack.loader import times
from streampack.metrics import clock
from streampack.metrics.clock import STAGES

BATCHES = 100
FAST_S, SLOW_S = 0.01, 0.2
"""What each stage costs for a batch, and what the slow one costs."""


class Time:
    """The monotonic clock, which stands still but where a stage lets it go on."""

    def __init__(self) -> None:
        self.ns = 10**12

    def monotonic_ns(self) -> int:
        return self.ns

    def monotonic(self) -> float:
        return self.ns / 1e9


@pytest.mark.parametrize("slow_stage", some([stage for stage in STAGES if stage != "send"], 2))
def test_without_workers_the_slow_stage_is_named_in_each_window(
    slow_stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, calls, cost_s = Time(), Counter[str](), dict.fromkeys(STAGES, 0.0)
    monkeypatch.setattr(clock, "time", now)
    monkeypatch.setattr(times, "time", now)

    def slow(stage: str) -> None:
        calls[stage] += 1
        now.ns += int(1e9 * cost_s[stage])

    throttled = Throttled(tmp_path, slow, monkeypatch, num_workers=0)
    named: list[str | None] = []
    begin = 0
    for number in throttled.batches():
        if number == BATCHES:  # how often each stage does something for a batch is known
            cost_s = {stage: (SLOW_S if stage == slow_stage else FAST_S) * BATCHES / calls[stage] for stage in calls}
            begin = now.ns
        if begin and now.ns - begin > 31e9 and number % 10 == 0:
            named.append(throttled.limited_by)
        if number == 5 * BATCHES:
            break
    assert len(named) > 10
    assert named.count(slow_stage) >= 0.95 * len(named), Counter(named)


@pytest.mark.parametrize("slow_stage", ["storage", *nightly(["tokenize", "trainer"])])
def test_with_workers_the_slow_stage_is_named_and_stays_it(
    slow_stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as what was made ahead is used up; a busy machine only makes that later."""
    slow = sleeping(slow_stage, 0.2 if slow_stage == "storage" else 0.02)
    throttled = Throttled(tmp_path, slow, monkeypatch, num_workers=2)
    named: list[str | None] = []
    deadline = time.monotonic() + 60
    for _ in throttled.batches():
        named.append(throttled.limited_by)
        if named[-20:] == 20 * [slow_stage] or time.monotonic() > deadline:
            break
    assert named[-20:] == 20 * [slow_stage], Counter(named)
