"""Reading ahead: what is fetched before it is wanted, how much, by whom, and what a fault there costs."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.proxy import Fault, Proxy

from streampack import RetryPolicy
from streampack.errors import StorageError
from streampack.storage import objects, readahead
from streampack.storage.access import StorageReader
from streampack.storage.backends import local

KIB = 1024
DATA = os.urandom(2000 * KIB)
SIZE = len(DATA)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    running = Proxy(objects={f"/{number}.tar": DATA for number in range(30)})
    yield running
    running.close()


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def ranges(proxy: Proxy) -> list[tuple[int, int]]:
    return [(get.first // KIB, (get.last + 1) // KIB) for get in proxy.gets]


def start(storage: StorageReader, url: str, *, num_bytes: int) -> Iterator[bytes]:
    """A reading that has given the first bytes."""
    chunks = storage.chunks(url, size=SIZE, first_bytes=100 * KIB, max_bytes=800 * KIB)
    given = 0
    while given < num_bytes:
        given += len(next(chunks))
    return chunks


class TestWhen:
    """Requests are made before their bytes are wanted, but none too many."""

    def test_the_first_range_is_read_alone(self, proxy: Proxy) -> None:
        start(StorageReader(), f"{proxy.url}/0.tar", num_bytes=100 * KIB)
        time.sleep(0.3)
        assert ranges(proxy) == [(0, 100)]

    def test_the_next_range_is_fetched_when_a_quarter_of_one_is_left(self, proxy: Proxy) -> None:
        chunks = start(StorageReader(), f"{proxy.url}/0.tar", num_bytes=150 * KIB)  # of the second range, 100 to 300
        time.sleep(0.3)
        assert ranges(proxy) == [(0, 100), (100, 300)]
        next(chunks)
        assert wait_for(lambda: ranges(proxy) == [(0, 100), (100, 300), (300, 700)])

    def test_nothing_behind_the_stop_is_asked_for_and_all_before_it_comes(self, proxy: Proxy) -> None:
        for stop in (1, 100 * KIB, 100 * KIB + 1, 300 * KIB, 699 * KIB, 1500 * KIB, SIZE):
            proxy.reset()
            storage = StorageReader()
            chunks = storage.chunks(
                f"{proxy.url}/0.tar", 0, stop, size=SIZE, first_bytes=100 * KIB, max_bytes=800 * KIB
            )
            assert b"".join(chunks) == DATA[:stop]
            time.sleep(0.02)
            assert max(get.last for get in proxy.gets) == stop - 1
            assert len(proxy.gets) == storage.num_requests
            assert storage.bytes_read == stop

    @pytest.mark.parametrize("max_bytes", [40 * KIB, 128 * KIB, 800 * KIB])
    def test_no_more_than_five_quarters_of_the_bound_are_held(self, proxy: Proxy, max_bytes: int) -> None:
        given = 0
        for piece in StorageReader().chunks(f"{proxy.url}/0.tar", size=SIZE, first_bytes=32 * KIB, max_bytes=max_bytes):
            time.sleep(0.002)  # a thread gets its chance
            asked = sum(get.last + 1 - get.first for get in proxy.gets)
            assert asked - given <= 1.25 * max_bytes + 64 * KIB  # the piece in hand included
            given += len(piece)
        assert given == SIZE

    def test_a_local_file_is_read_by_the_consumer_itself(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path, threads = tmp_path / "a.tar", set()
        path.write_bytes(DATA)
        fetch = local.LocalFile.fetch

        def noted(self: local.LocalFile, start: int, stop: int, keep: objects.Keep) -> None:
            threads.add(threading.current_thread())
            fetch(self, start, stop, keep)

        monkeypatch.setattr(local.LocalFile, "fetch", noted)
        storage = StorageReader()
        assert b"".join(storage.chunks(str(path), size=SIZE, first_bytes=100 * KIB, max_bytes=800 * KIB)) == DATA
        assert threads == {threading.current_thread()}

    def test_the_waiting_for_slow_answers_is_done_meanwhile(self, proxy: Proxy) -> None:
        proxy.always = Fault("delay", seconds=0.3)
        storage = StorageReader()
        for _ in storage.chunks(f"{proxy.url}/0.tar", size=SIZE, first_bytes=250 * KIB, max_bytes=250 * KIB):
            time.sleep(0.1)  # a consumer that takes 0.8 s for a range
        assert len(proxy.gets) == 8
        # Two ranges are waited for; of the six others at most a little.
        assert 0.6 <= storage.seconds_waited < 0.3 * 8 - 0.3


class TestFaultsAhead:
    """A thread tries once; what fails is the consumer's to try again, when it has nothing left."""

    def test_a_fault_costs_nothing_of_the_budget_while_there_are_bytes(self, proxy: Proxy) -> None:
        proxy.script([None, None, Fault("status", status=503)])
        storage = StorageReader(retry=RetryPolicy(budget_s=0.5, first_wait_s=0.001, max_wait_s=0.01))
        chunks = start(storage, f"{proxy.url}/0.tar", num_bytes=250 * KIB)
        assert wait_for(lambda: len(proxy.gets) == 3)
        time.sleep(1.0)  # of the consumer's own
        assert len(proxy.gets) == 3  # nobody tries again meanwhile
        rest = b"".join(chunks)
        assert SIZE - 300 * KIB <= len(rest) <= SIZE - 250 * KIB
        assert DATA.endswith(rest)
        assert storage.num_retries == 1

    def test_the_budget_is_that_of_an_empty_buffer(self, proxy: Proxy) -> None:
        proxy.script([None, None])
        proxy.always = Fault("status", status=503)
        storage = StorageReader(retry=RetryPolicy(budget_s=0.5, first_wait_s=0.02, max_wait_s=0.05))
        chunks = start(storage, f"{proxy.url}/0.tar", num_bytes=250 * KIB)
        assert wait_for(lambda: len(proxy.gets) == 3)
        time.sleep(1.0)
        began = time.monotonic()
        with pytest.raises(StorageError, match=rf"byte {300 * KIB}: not a byte in \d s"):
            b"".join(chunks)
        assert 0.3 < time.monotonic() - began < 10

    def test_what_came_before_the_fault_is_kept(self, proxy: Proxy) -> None:
        proxy.script([None, None, Fault("reset", 150 * KIB)])
        storage = StorageReader(retry=RetryPolicy.immediate())
        chunks = storage.chunks(f"{proxy.url}/0.tar", size=SIZE, first_bytes=100 * KIB, max_bytes=800 * KIB)
        assert b"".join(chunks) == DATA
        assert ranges(proxy)[:4] == [(0, 100), (100, 300), (300, 700), (450, 850)]

    def test_shards_that_stall_ahead_do_not_keep_another_from_being_read(self, proxy: Proxy) -> None:
        storage = StorageReader()
        stalled = []
        for number in range(readahead.MOST_THREADS + 4):
            proxy.script([None, None, Fault("stall", None)])
            stalled.append(start(storage, f"{proxy.url}/{number}.tar", num_bytes=250 * KIB))
            if number < readahead.MOST_THREADS:  # for the last four no thread is free
                assert wait_for(lambda: not proxy.faults)
            proxy.faults.clear()
        began = time.monotonic()
        assert b"".join(storage.chunks(f"{proxy.url}/29.tar", size=SIZE)) == DATA
        assert time.monotonic() - began < 10  # the others stall for 30 s
        assert storage.num_retries == 0
        assert len(stalled) == 12


class TestThreads:
    """Few, daemons, and gone when there is nothing to do."""

    def test_no_more_requests_than_threads_and_the_consumer_are_under_way(self, proxy: Proxy) -> None:
        storage, streams = StorageReader(), []
        for number in range(30):
            streams += [start(storage, f"{proxy.url}/{number}.tar", num_bytes=150 * KIB)]
        proxy.always = Fault("delay", seconds=0.05)
        proxy.most_under_way = 0
        for stream in streams:
            next(stream)  # now each is read ahead
        for stream in streams:
            for _ in stream:
                pass
        assert 4 <= proxy.most_under_way <= readahead.MOST_THREADS + 1
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("streampack-read-ahead") <= readahead.MOST_THREADS

    def test_idle_threads_end(self, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(readahead, "_IDLE_S", 0.05)
        monkeypatch.setattr(readahead, "_threads", None)
        before = set(threading.enumerate())
        for _ in StorageReader().chunks(f"{proxy.url}/0.tar", size=SIZE, first_bytes=100 * KIB, max_bytes=200 * KIB):
            pass
        assert wait_for(
            lambda: not any(thread.name == "streampack-read-ahead" for thread in set(threading.enumerate()) - before)
        )

    def test_a_reading_that_is_dropped_lets_go_of_its_request(self, proxy: Proxy) -> None:
        proxy.script([None, None, Fault("throttle", seconds=0.05)])
        storage = StorageReader()
        chunks = start(storage, f"{proxy.url}/0.tar", num_bytes=250 * KIB)
        assert wait_for(lambda: len(proxy.gets) == 3)
        began = time.monotonic()
        chunks.close()  # type: ignore[attr-defined]  # a generator
        assert time.monotonic() - began < 0.5
        assert wait_for(lambda: proxy.under_way == 0)  # the proxy would have gone on for 1.2 s, and noticed
        assert b"".join(storage.chunks(f"{proxy.url}/0.tar", size=SIZE)) == DATA

    def test_the_interpreter_ends_though_a_shard_stalls_ahead(self, proxy: Proxy) -> None:
        proxy.script([None, None, Fault("stall", None)])
        program = (
            "import sys\n"
            "from streampack.storage.access import StorageReader\n"
            f"chunks = StorageReader().chunks(sys.argv[1], size={SIZE}, first_bytes=102400, max_bytes=819200)\n"
            "given = 0\n"
            "while given < 256000: given += len(next(chunks))\n"
            "print('done')\n"
        )
        process = subprocess.run(
            [sys.executable, "-c", program, f"{proxy.url}/0.tar"],
            capture_output=True,
            text=True,
            timeout=25,
            check=False,
        )
        assert (process.returncode, process.stdout, process.stderr) == (0, "done\n", "")
