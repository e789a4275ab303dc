"""Each stage made slow, one after the other, under workers: the loader is limited by that one in windows of 30 s."""

import logging
import time
from collections import Counter
from pathlib import Path

import pytest
from support.throttles import Throttled, sleeping

from streampack.loader.limits import WINDOW_S
from streampack.metrics.clock import STAGES

SECONDS = {"storage": 0.5, "decompress": 0.5, "pack": 0.1, "send": 0.1, "main": 0.05}
"""Of a sleep; a storage is not asked for each batch."""


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("slow_stage", STAGES)
def test_the_slow_stage_is_named_in_windows_of_30_seconds(
    slow_stage: str,
    num_workers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if slow_stage == "send" and not num_workers:
        pytest.skip("nothing is sent")
    caplog.set_level(logging.INFO, "streampack.loader.limits")
    slow = sleeping(slow_stage, SECONDS.get(slow_stage, 0.02))
    throttled = Throttled(tmp_path, slow, monkeypatch, num_workers=num_workers)
    named: list[str | None] = []
    begin, looked = time.monotonic(), 0.0
    for _ in throttled.batches():
        now = time.monotonic()
        if now - begin > WINDOW_S + 2 and now - looked > 0.2:
            looked = now
            named.append(throttled.limited_by)
        if now - begin > 1.5 * WINDOW_S:
            break
    assert len(named) > 10
    assert named.count(slow_stage) >= 0.95 * len(named), Counter(named)
    told = [record.getMessage() for record in caplog.records]
    assert [text.startswith(f"limited by {slow_stage} (") for text in told] == [True] * (slow_stage != "trainer")
