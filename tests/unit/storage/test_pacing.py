"""When requests are made: the first ones of many processes, and those of a node whose storage refuses some."""

import heapq
import itertools
import math
import os
import pickle
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.proxy import Fault, Proxy

from streampack.errors import StreampackError
from streampack.storage import pacing, threads
from streampack.storage.access import StorageReader
from streampack.storage.cache.blocknames import object_key
from streampack.storage.options import RetryPolicy
from streampack.storage.pacing import Pace


def slot() -> memoryview:
    return memoryview(bytearray(64))


def refused_at(rate: float, now: float = 1000.0, shared: memoryview | None = None) -> Pace:
    """One that has sent so many requests a second, of which the last was refused."""
    pace = Pace(slot() if shared is None else shared)
    for number in range(-int(2 * rate), 1):
        pace.sent(now + number / rate)
    pace.refused(now, now)
    return pace


class TestRate:
    """What is asked for after a refusal."""

    def test_without_a_refusal_every_request_is_made_at_once(self) -> None:
        pace = Pace(slot())
        for _ in range(10_000):
            assert pace.turn(1000.0) == 1000.0
            pace.sent(1000.0)
        assert pace.rate(1000.0) == math.inf

    @pytest.mark.parametrize(
        ("after", "share"),
        [(0, 0.7), (2, 0.9625), (4, 1), (6, 1.0375), (8, 1.3), (12, 3.4), (19.9, 19.8), (20, math.inf)],
    )
    def test_it_comes_back_to_what_was_refused_and_then_goes_beyond(self, after: float, share: float) -> None:
        pace = refused_at(1000)
        assert pace.rate(1000.0 + after) == pytest.approx(1000 * share, rel=0.02)

    def test_requests_take_turns_at_that_rate(self) -> None:
        pace = refused_at(100)
        turns = [pace.turn(1000.0) for _ in range(8)]
        steps = [after - before for before, after in itertools.pairwise(turns)]
        assert turns[0] == 1000.0
        assert steps == pytest.approx([1 / pace.rate(1000.0)] * 7)
        assert pace.turn(1001.0) == 1001.0  # those turns are over

    def test_what_was_sent_before_a_cut_is_no_second_reason(self) -> None:
        pace = refused_at(100)
        before = pace.rate(1000.1)
        pace.refused(999.95, 1000.1)
        assert pace.rate(1000.1) == before
        pace.refused(1000.05, 1000.1)
        assert pace.rate(1000.1) < before

    def test_a_few_requests_a_second_are_always_made(self) -> None:
        pace = refused_at(2)
        assert pace.rate(1000.0) == 10
        for number in range(20):
            pace.refused(1000 + number, 1000 + number)
        assert pace.rate(1020.0) == 10

    def test_a_retry_after_holds_for_all_and_not_for_ever(self) -> None:
        shared = slot()
        refused_at(100, shared=shared).refused(1000.0, 1000.0, asked_s=7)
        other = Pace(shared)
        assert [other.turn(1000.0), other.turn(1000.0)] == pytest.approx([1007, 1007 + 1 / 70], abs=0.01)
        other.refused(1000.0, 1000.0, asked_s=86_400)
        assert other.turn(1000.0) < 1008

    def test_numbers_of_before_a_reboot_hold_nobody_up(self) -> None:
        shared = slot()
        refused_at(100, shared=shared).refused(1000.0, 1000.0, asked_s=50)
        pace = Pace(shared)
        assert pace.turn(3.0) == 3.0
        pace.sent(3.0)
        pace.refused(3.0, 3.1)  # a new refusal counts, though the last cut is in the future
        assert pace.cut_at == 3.1


class Storage:
    """A bucket with a limit, 64 processes of a node that each want 40 objects, and a clock; nothing is waited for."""

    def __init__(self, slots: list[memoryview], rate: float) -> None:
        self.paces = [Pace(shared) for shared in slots]
        self.rate, self.tokens, self.at = rate, rate / 10, 0.0
        self.refused = self.answered = 0
        self.events: list[Any] = []
        self.numbers = itertools.count()
        self.random = random.Random(0)
        for pace in self.paces:
            for _ in range(8):
                self.later(1.0, lambda now, pace=pace: self.want(now, pace, 0, 5))
        while self.events:
            self.now, _, event = heapq.heappop(self.events)
            event(self.now)

    def later(self, at: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self.events, (at, next(self.numbers), event))

    def want(self, now: float, pace: Pace, tries: int, left: int) -> None:
        cut_at, turn = pace.cut_at, pace.turn(now)
        if turn > now:
            return self.later(
                turn,
                lambda at: (
                    self.send(at, pace, tries, left) if pace.cut_at == cut_at else self.want(at, pace, tries, left)
                ),
            )
        return self.send(now, pace, tries, left)

    def send(self, now: float, pace: Pace, tries: int, left: int) -> None:
        pace.sent(now)
        self.tokens, self.at = min(self.tokens + (now - self.at) * self.rate, self.rate / 10), now
        is_refused = self.tokens < 1
        self.tokens -= not is_refused
        self.later(now + 0.05, lambda at: self.answer(at, pace, tries, left, now if is_refused else None))

    def answer(self, now: float, pace: Pace, tries: int, left: int, refused: float | None) -> None:
        if refused is not None:
            self.refused += 1
            pace.refused(refused, now)
            wait = min(20, 0.1 * 2**tries) * self.random.random()
            return self.later(now + wait, lambda at: self.want(at, pace, tries + 1, left))
        self.answered += 1
        return self.want(now, pace, 0, left - 1) if left > 1 else None


def test_processes_that_share_what_they_are_told_are_refused_less_and_are_done_sooner() -> None:
    together, alone = slot(), [slot() for _ in range(64)]
    one, each = Storage([together] * 64, rate=400), Storage(alone, rate=400)
    assert one.answered == each.answered == 64 * 40
    assert one.refused < 0.7 * each.refused
    assert one.now - 1 < 2 * 64 * 40 / 400  # twice what the storage needs
    assert one.now < each.now


class TestStart:
    """Thousands of processes begin at one moment."""

    @pytest.fixture
    def pauses(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """What was paused, by a process that has not begun."""
        found: list[float] = []
        monkeypatch.setattr(pacing, "_start", (0, 0.0))
        monkeypatch.setattr(threads, "pause", found.append)
        return found

    @pytest.mark.parametrize(("processes", "most"), [(512, 0.0256), (4096, 0.2048), (16_384, 0.8192), (500_000, 1)])
    def test_first_requests_are_spread_in_proportion_to_the_processes(
        self, processes: int, most: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        starts = []
        monkeypatch.setattr(pacing, "time", SimpleNamespace(monotonic=lambda: 1000.0))
        for number in range(300):
            monkeypatch.setattr(os, "getpid", lambda number=number: number + 1)
            pacing.begin_among(processes)
            starts.append(pacing._start[1] - 1000.0)
        assert 0 <= min(starts) < 0.1 * most
        assert 0.9 * most < max(starts) <= most

    def test_a_process_that_is_alone_does_not_wait(self, pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pacing, "time", SimpleNamespace(monotonic=lambda: 1000.0))
        pacing.begin_among(1)
        assert pacing._start == (os.getpid(), 1000.0)
        pacing._await_turn(Pace(slot()), 20.0)
        assert pauses == []

    def test_it_is_the_first_request_that_waits(
        self, proxy: Proxy, pauses: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(pacing, "_start", (os.getpid(), time.monotonic() + 60))
        pacing.begin_among(1_000_000)  # its time is drawn already
        (tmp_path / "a.tar").write_bytes(b"local")
        StorageReader().read(f"{tmp_path}/a.tar")
        StorageReader(retry=RetryPolicy.immediate()).read(f"{proxy.url}/a.tar")
        assert pauses == []
        StorageReader().size(f"{proxy.url}/a.tar")
        assert 0 < pauses[0] <= 60
        monkeypatch.setattr(pacing, "_start", (os.getpid() + 1, time.monotonic() + 100))  # the parent's
        pauses.clear()
        StorageReader().size(f"{proxy.url}/a.tar")
        assert pauses == []


class TestSharing:
    """What one process is told, the others of its node know."""

    def test_a_refusal_in_one_process_paces_another_one_that_was_not_refused(
        self, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = (
            "import pickle, sys\n"
            "from streampack.storage.access import StorageReader\n"
            "storage = pickle.load(sys.stdin.buffer)\n"
            f"print(len(storage.read('{proxy.url}/a.tar')), storage.num_retries)\n"
        )
        given = pickle.dumps(StorageReader())
        proxy.script([Fault("status", status=503)])
        done = subprocess.run([sys.executable, "-c", program], input=given, capture_output=True, check=True)
        assert done.stdout.split() == [b"%d" % len(proxy.objects["/a.tar"]), b"1"]
        paused: list[float] = []
        monkeypatch.setattr(threads, "pause", paused.append)
        storage = StorageReader()
        for _ in range(30):
            storage.size(f"{proxy.url}/a.tar")
        assert storage.num_retries == 0
        assert len(paused) >= 20

    @pytest.mark.parametrize("status", [500, 404, 403])
    def test_other_answers_pace_nobody(self, proxy: Proxy, status: int) -> None:
        before = Pace.of(proxy.url).cut_at
        proxy.script([Fault("status", status=status)] * 2)
        storage = StorageReader(retry=RetryPolicy(first_wait_s=0.001, max_wait_s=0.001, max_tries=2))
        with pytest.raises(StreampackError):
            list(storage.chunks(f"{proxy.url}/a.tar", 0, 10, size=None))
        assert Pace.of(proxy.url).cut_at == before
        proxy.reset()
        proxy.script([Fault("status", status=429)])
        assert len(b"".join(storage.chunks(f"{proxy.url}/a.tar", 0, 10, size=None))) == 10
        assert Pace.of(proxy.url).cut_at > before

    def test_buckets_and_endpoints_are_places_of_their_own(self) -> None:
        places = [
            pacing._place(url)
            for url in (
                "s3://bucket/a/b.tar",
                "http://host:80/a.tar?to=http://x/y",
                "gs://bucket",
                "simplecache::s3://bucket/a.tar",
            )
        ]
        assert places == ["s3://bucket", "http://host:80", "gs://bucket", "simplecache::s3://bucket"]

    def test_a_file_of_somebody_else_or_a_link_is_not_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "target")
        (tmp_path / "target").write_bytes(b"keep")
        os.mkfifo(tmp_path / "pipe")
        for name in ("link", "pipe"):
            with pytest.raises(OSError, match="symbolic|Too many|not a file"):
                pacing._map(tmp_path / name)
        assert (tmp_path / "target").read_bytes() == b"keep"
        first, second = pacing._map(tmp_path / "new"), pacing._map(tmp_path / "new")
        first[:4] = b"told"
        assert second[:4] == b"told"
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
        with pytest.raises(OSError, match="not a file of this user"):
            pacing._map(tmp_path / "new")

    def test_where_no_file_can_be_made_a_process_paces_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pacing, "_map", lambda _: (_ for _ in ()).throw(OSError("full")))
        memory = pacing._memory.__wrapped__()  # it is kept for the process otherwise
        assert len(memory) == 512 * 64
        assert not any(memory[:])


@pytest.mark.parametrize(
    "ask", [lambda reader, url: reader.size(url), lambda reader, url: next(reader.chunks(url, size=9))]
)
def test_the_pause_before_a_request_is_not_taken_for_a_storage_that_does_not_answer(ask: Callable[..., Any]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.tar"
    with pytest.raises(StreampackError):  # the first request of a process takes longer
        ask(StorageReader(retry=RetryPolicy.immediate()), url)
    reader = StorageReader(retry=RetryPolicy(start_s=0.5, first_wait_s=0.05))
    pace = Pace.of(object_key(pacing._place(url), reader._clients))
    now = time.monotonic()
    pace.sent(now)
    pace.refused(now, time.monotonic(), 0.7)  # as another process of the node was
    with pytest.raises(StreampackError, match=r"in \d s and \d+ tries"):
        ask(reader, url)
    assert time.monotonic() - now >= 1.2
