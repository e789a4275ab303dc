"""Workers that die or hang are restarted, and the run goes on with the same bits."""

import contextlib
import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from support.jobs import Corpus, assert_equal, dataset, expected, rows, uneven, write_corpus
from support.jobs import texts as make_texts
from support.thorough import nightly, some
from support.troubles import LostConnectionError, Unready
from support.workers import children, server_pid, worker_pids
from torch.utils.data import DataLoader

import streampack
from streampack import RetryPolicy
from streampack.errors import ConfigError, LoaderError
from streampack.loader import restarts, workers
from streampack.loader.processes import Forks
from streampack.metrics import heartbeat
from streampack.records import Counts
from streampack.state.checkpoint import FIELDS
from streampack.state.joining import to_json

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at processes in /proc"),
]

FORK: Any = {"multiprocessing_context": "fork"}
"""Where it is no matter what workers come from: a server takes longer."""
SILENCE_S = 1.5
"""Far more than a worker needs for anything here, also on a busy machine."""
NOTICED_S = 10.0
"""Within which the workers must be restarted after a death, on a busy machine."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return uneven(tmp_path_factory.mktemp("uneven"))


@pytest.fixture(scope="module")
def wanted(corpus: Corpus) -> list[Any]:
    return expected(corpus, 200, seq_len=32)


@pytest.fixture(autouse=True)
def _leaves_no_process() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


def loader_of(data: streampack.PackedDataset, **options: Any) -> streampack.PackedDataLoader:
    """Batches of 4; messages of one pack, so that whatever happens to a worker is noticed within a few packs."""
    return streampack.PackedDataLoader(data, **{"batch_size": 4, "num_workers": 2, "prefetch_bytes": 1, **options})


def hurt(loader: streampack.PackedDataLoader, number: signal.Signals = signal.SIGKILL, worker: int = -1) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has died, and its server has waited for it
        os.kill(worker_pids(loader)[worker], number)


def take(iterator: Iterator[dict[str, Any]], batches: int) -> list[Any]:
    return [row for batch in itertools.islice(iterator, batches) for row in rows(batch)]


# --- the same bits


@pytest.mark.parametrize("after", [6, *nightly([0, 1])])
@pytest.mark.parametrize("num_workers", some([2, 1, 3], 3))
def test_a_worker_that_is_killed_costs_nothing_but_time(
    corpus: Corpus, wanted: list[Any], num_workers: int, after: int
) -> None:
    with loader_of(dataset(corpus), num_workers=0) as quiet:
        take(iter(quiet), 15)
    with loader_of(dataset(corpus), num_workers=num_workers) as loader:
        iterator = iter(loader)
        packs = take(iterator, after)
        hurt(loader)
        begin = time.monotonic()
        packs += take(iterator, 15 - after)
        assert time.monotonic() - begin < NOTICED_S
        assert_equal(dict(enumerate(packs)), wanted)
        assert loader.digest() == quiet.digest()
        assert to_json(loader.state_dict()) == to_json(quiet.state_dict())
        assert loader.stats()["worker_restarts"] == 1


@pytest.mark.parametrize(("num_workers", "after"), [(2, 5), *nightly([(1, 0), (3, 1)])])
def test_a_worker_that_is_stopped_is_ended_and_costs_nothing_but_time(
    corpus: Corpus, wanted: list[Any], monkeypatch: pytest.MonkeyPatch, num_workers: int, after: int
) -> None:
    monkeypatch.setattr(workers, "START_S", 2 * SILENCE_S)  # in case it is stopped before it begins
    with loader_of(dataset(corpus), num_workers=num_workers, worker_timeout_s=SILENCE_S) as loader:
        iterator = iter(loader)
        packs = take(iterator, after)
        stopped = worker_pids(loader)[-1]
        hurt(loader, signal.SIGSTOP)
        packs += take(iterator, 15 - after)
        assert_equal(dict(enumerate(packs)), wanted)
        assert loader.stats()["worker_restarts"] == 1
        assert stopped not in children()


def test_workers_that_are_forked_from_the_trainer_are_restarted_too(corpus: Corpus, wanted: list[Any]) -> None:
    with loader_of(dataset(corpus), multiprocessing_context="fork") as loader:
        iterator = iter(loader)
        packs = take(iterator, 2)
        hurt(loader)
        packs += take(iterator, 5)
        assert_equal(dict(enumerate(packs)), wanted)
        assert loader.stats()["worker_restarts"] == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, *nightly([signal.SIGSTOP])])
def test_a_server_that_dies_or_is_stopped_costs_nothing_but_time(
    corpus: Corpus, wanted: list[Any], number: signal.Signals, caplog: Any
) -> None:
    with loader_of(dataset(corpus)) as loader, caplog.at_level(logging.WARNING):
        iterator = iter(loader)
        packs = take(iterator, 2)
        before = server_pid(loader)
        os.kill(before, number)
        if number == signal.SIGSTOP:  # its workers need it no more until they are restarted
            hurt(loader)
        packs += take(iterator, 8)
        assert_equal(dict(enumerate(packs)), wanted)
        assert loader.stats()["worker_restarts"] == 1
        assert server_pid(loader) != before
        assert before not in children()
    if number == signal.SIGKILL:
        assert f"ended with the workers' server (pid {before}), which was ended by SIGKILL" in caplog.text


@pytest.mark.parametrize(
    ("epoch_end", "prefetch_bytes"),
    [("stop", 1), *nightly([("pad", 64 * 2**20), ("pad", 1), ("stop", 64 * 2**20)])],
)
def test_a_finite_pass_is_the_same_though_a_worker_dies_before_every_batch(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, epoch_end: str, prefetch_bytes: int
) -> None:
    """Also in the last batches, which are made of lanes that have ended."""
    monkeypatch.setattr(restarts, "BUDGET", 1000)
    data = dataset(corpus, epochs=1, epoch_end=epoch_end, num_lanes=4)
    with loader_of(data, num_workers=0) as quiet:
        calm = [row for batch in quiet for row in rows(batch)]
    with loader_of(data, num_workers=2, prefetch_bytes=prefetch_bytes) as loader:
        packs, iterator = [], iter(loader)
        for number in itertools.count():
            if loader._delivery.current_pass is not None:
                hurt(loader, worker=number % 2)
            batch = next(iterator, None)
            if batch is None:
                break
            packs += rows(batch)
        assert loader.stats()["worker_restarts"] >= (
            1 if prefetch_bytes > 1 else 5
        )  # what was sent before is used up first
        assert_equal(dict(enumerate(packs)), calm)
        assert loader.digest() == quiet.digest()
        assert to_json(loader.state_dict()) == to_json(quiet.state_dict())
        counts, calm_counts = loader.stats(), quiet.stats()
        assert {name: counts[name] for name in Counts._fields} == {name: calm_counts[name] for name in Counts._fields}
        assert counts["left_out_packs"] == calm_counts["left_out_packs"]


def partly_bad(folder: Path, bad: range, *, count: int) -> Corpus:
    """One shard of so many documents, of which those in `bad` are no UTF-8."""
    corpus = write_corpus(folder, [(".tar", make_texts(count, longest=60))])
    path = corpus.shards[0]
    for number in bad:
        path.write_bytes(path.read_bytes().replace(b"<%d>" % number, b"\xff%d>" % number))
    return corpus


def test_bad_records_are_skipped_once_though_workers_die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "BUDGET", 1000)
    data = dataset(partly_bad(tmp_path, range(0, 60, 4), count=60), epochs=1, num_lanes=4, on_error="skip")
    with loader_of(data, num_workers=0) as quiet:
        calm = [row for batch in quiet for row in rows(batch)]
    with loader_of(data, num_workers=2) as loader:
        packs, iterator = [], iter(loader)
        while (batch := next(iterator, None)) is not None:
            packs += rows(batch)
            if loader._delivery.current_pass is not None:
                hurt(loader)
        assert_equal(dict(enumerate(packs)), calm)
        assert loader.stats()["bad_records"] == quiet.stats()["bad_records"] == 15
        assert to_json(loader.state_dict()) == to_json(quiet.state_dict())


def test_a_rate_of_bad_records_counts_documents_through_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "BUDGET", 1000)
    corpus = partly_bad(tmp_path, range(3, 80, 4), count=80)
    data = dataset(corpus, epochs=1, num_lanes=1, on_error="skip", max_bad=0.4, shuffle="shards")
    with loader_of(data, num_workers=1) as loader:
        for number, _ in enumerate(loader):
            if number % 2 == 0:
                hurt(loader)
        assert loader.stats()["worker_restarts"] >= 3
        assert loader.stats()["bad_records"] == 20


def test_all_workers_killed_at_once_are_one_restart(corpus: Corpus, wanted: list[Any]) -> None:
    with loader_of(dataset(corpus), num_workers=3) as loader:
        iterator = iter(loader)
        packs = take(iterator, 4)
        for pid in worker_pids(loader):
            os.kill(pid, signal.SIGKILL)
        packs += take(iterator, 8)
        assert_equal(dict(enumerate(packs)), wanted)
        assert loader.stats()["worker_restarts"] == 1


def test_workers_that_are_killed_inside_a_window_go_on_in_its_order(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, [(".tar", make_texts(120, seed=seed, first=200 * seed)) for seed in range(2)])
    data = dataset(corpus, num_lanes=2, seq_len=64, shuffle=streampack.Shuffle(block_bytes=4096, window=8))
    with loader_of(data, num_workers=0) as quiet:
        calm = take(iter(quiet), 20)
    with loader_of(data, prefetch_bytes=1, **FORK) as loader:
        iterator = iter(loader)
        packs = []
        for batches in (2, 6, 12):
            packs += take(iterator, batches)
            places = loader.state_dict()["rows"][..., FIELDS.index("place")]
            assert places.numel() == 2 and places.min() > 0
            if batches < 12:
                hurt(loader)
        assert loader.stats()["worker_restarts"] == 2
    assert_equal(dict(enumerate(packs)), calm)


def test_workers_killed_again_before_their_first_message_are_restarted_again(corpus: Corpus, wanted: list[Any]) -> None:
    with loader_of(dataset(corpus)) as loader:
        iterator = iter(loader)
        packs = take(iterator, 3)
        hurt(loader)
        first = worker_pids(loader)
        while worker_pids(loader) == first:
            packs += take(iterator, 1)
        hurt(loader, worker=0)
        hurt(loader, worker=1)
        packs += take(iterator, 6)
        assert_equal(dict(enumerate(packs)), wanted)
        assert loader.stats()["worker_restarts"] == 2


def test_a_run_goes_on_exactly_from_a_state_of_a_loader_after_a_restart(corpus: Corpus, wanted: list[Any]) -> None:
    with loader_of(dataset(corpus)) as loader:
        iterator = iter(loader)
        packs = take(iterator, 3)
        hurt(loader)
        packs += take(iterator, 7)
        assert loader.stats()["worker_restarts"] == 1
        state = loader.state_dict()
    with loader_of(dataset(corpus), num_workers=3) as other:
        other.load_state_dict(state)
        packs += take(iter(other), 7)
    assert_equal(dict(enumerate(packs)), wanted)


def test_skip_goes_past_as_many_batches_though_a_worker_dies(corpus: Corpus, wanted: list[Any]) -> None:
    with loader_of(dataset(corpus)) as loader:
        iterator = iter(loader)
        take(iterator, 2)
        hurt(loader)
        assert loader.skip(8) == 8
        assert_equal(dict(enumerate(take(iterator, 4), 40)), wanted, begin=40)
        assert loader.stats()["worker_restarts"] == 1


# --- when it is noticed, and when not


def test_a_worker_that_dies_while_it_is_waited_for_is_noticed_at_once(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    def held_up(document: Any, rng: Any) -> Any:
        while not gate.exists():  # a worker that works on and on
            time.sleep(0.01)
            heartbeat.beat()
        return document

    corpus = write_corpus(tmp_path / "shards", [(".tar", make_texts(30, longest=60))])
    with loader_of(dataset(corpus, transform=held_up, transform_version="1", num_lanes=2)) as loader:
        iterator = iter(loader)
        victim = worker_pids(loader)[0]

        def kill() -> None:
            gate.touch()
            os.kill(victim, signal.SIGKILL)

        threading.Timer(0.5, kill).start()
        begin = time.monotonic()
        assert len(take(iterator, 2)) == 8
        assert time.monotonic() - begin < NOTICED_S
        assert loader.stats()["worker_restarts"] <= 1  # it may have sent what was waited for just before


def test_a_worker_that_waits_for_a_lock_for_ever_is_restarted(tmp_path: Path, caplog: Any) -> None:
    was_there = tmp_path / "was there"

    def locked_up(document: Any, rng: Any) -> Any:
        if "<20>" in document.text and not was_there.exists():
            was_there.touch()
            lock = threading.Lock()
            lock.acquire()
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()  # lives on, and is no sign of life
            lock.acquire()
        return document

    corpus = write_corpus(tmp_path / "shards", [(".tar", make_texts(60, longest=60))])
    data = dataset(corpus, transform=locked_up, transform_version="1", num_lanes=2)
    packs = expected(corpus, 60, seq_len=32, num_lanes=2)
    with loader_of(data, worker_timeout_s=SILENCE_S) as loader, caplog.at_level(logging.WARNING):
        assert_equal(dict(enumerate(take(iter(loader), 15))), packs)
        assert loader.stats()["worker_restarts"] == 1
    message = next(record.getMessage() for record in caplog.records if "are restarted" in record.getMessage())
    assert "was silent for" in message and str(corpus.shards[0]) in message and "lane " in message


def test_a_worker_that_never_begins_is_restarted(
    corpus: Corpus, wanted: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    restart, start_s = restarts.RestartingMessages._restart, workers.START_S

    def patient(messages: Any, lost: Any) -> None:
        monkeypatch.setattr(workers, "START_S", start_s)  # for a server that starts on a busy machine
        restart(messages, lost)

    monkeypatch.setattr(workers, "START_S", SILENCE_S)
    monkeypatch.setattr(restarts.RestartingMessages, "_restart", patient)
    with loader_of(dataset(corpus), worker_timeout_s=0.1) as loader, caplog.at_level(logging.WARNING):
        iterator = iter(loader)
        os.kill(server_pid(loader), signal.SIGSTOP)
        assert loader._delivery is not None and loader._delivery.current_pass is not None
        later = loader._delivery.current_pass._restarting
        monkeypatch.setattr(later, "_timeout_s", 60.0)  # of the workers that come after these
        assert_equal(dict(enumerate(take(iterator, 1))), wanted)
        assert loader.stats()["worker_restarts"] == 1
    assert "before it began" in caplog.text


def test_a_worker_that_is_slow_is_left_alone(tmp_path: Path) -> None:
    def slow(document: Any, rng: Any) -> Any:
        time.sleep(0.2)
        return document

    corpus = write_corpus(tmp_path, [(".tar", ["a" * 5] * 30)])
    data = dataset(corpus, transform=slow, transform_version="1", num_lanes=1, seq_len=60)
    with loader_of(data, batch_size=1, num_workers=1, worker_timeout_s=SILENCE_S, **FORK) as loader:
        begin = time.monotonic()
        take(iter(loader), 1)
        assert time.monotonic() - begin > SILENCE_S, "a pack takes longer than the limit"
        assert loader.stats()["worker_restarts"] == 0


class Flaky(LocalFileSystem):
    """Local files as a remote storage whose first answer in each process is an error."""

    protocol = "flaky"
    cachable = False
    _failed_in = 0

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        if Flaky._failed_in != os.getpid():
            Flaky._failed_in = os.getpid()
            raise ConnectionResetError("one that passes")
        return super().cat_file(path, start=start, end=end, **options)


def test_a_worker_that_waits_to_try_a_failing_storage_again_is_left_alone(corpus: Corpus) -> None:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    wait_s = 2 * SILENCE_S
    retry = RetryPolicy(first_wait_s=wait_s, max_wait_s=wait_s, jitter=False)
    data = dataset([f"flaky://{corpus.shards[1]}"], num_lanes=1, retry=retry)
    with loader_of(data, num_workers=1, worker_timeout_s=SILENCE_S, **FORK) as loader:
        begin = time.monotonic()
        take(iter(loader), 1)
        assert time.monotonic() - begin > wait_s
        stats = loader.stats()
        assert stats["worker_restarts"] == 0
        assert stats["retries"] == 1 and stats["requests"] >= 2 and stats["bytes_read"] > 1000
        assert stats["seconds_waited_storage"] > 0


def test_a_death_never_breaks_into_the_trainers_own_code(corpus: Corpus, wanted: list[Any]) -> None:
    next(iter(DataLoader([0, 1], num_workers=1)))  # torch installs a handler that looks at dead children of its own
    with loader_of(dataset(corpus)) as loader:
        iterator = iter(loader)
        packs = take(iterator, 2)
        hurt(loader)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:  # where a handler would raise
            pass
        packs += take(iterator, 5)
        assert_equal(dict(enumerate(packs)), wanted)
        assert loader.stats()["worker_restarts"] == 1


# --- what no restart helps


def test_what_a_workers_own_code_raises_is_the_same_in_the_trainer_and_causes_no_restart(tmp_path: Path) -> None:
    class LocalError(Exception):
        def __str__(self) -> str:
            return f"local: {self.args[0]}"

    method = LocalError.__str__
    corpus = write_corpus(tmp_path, [(".tar", make_texts(10))])
    cases: list[tuple[Any, tuple[Any, ...], Any, str]] = [
        (ValueError, ("of its own",), ValueError, "of its own"),
        (LocalError, ("of its own",), LocalError, "local: of its own"),
        (LostConnectionError, ("here", 80), LostConnectionError, "here:80"),
    ]
    for raised, arguments, kind, text in cases:

        def failing(document: Any, rng: Any, raised: Any = raised, arguments: Any = arguments) -> Any:
            error = raised(*arguments)
            error.add_note("a note")
            raise error

        with loader_of(dataset(corpus, transform=failing, transform_version="1", num_lanes=1), num_workers=1) as loader:
            with pytest.raises(kind) as caught:
                next(iter(loader))
            assert type(caught.value) is kind and str(caught.value) == text
            first, *others = caught.value.__notes__
            assert first == "a note"
            assert "raised by transform" in others[0] and "raised in worker" in others[1]
            assert "in failing" in str(caught.value.__cause__), "the traceback in the worker"
            assert loader.stats()["worker_restarts"] == 0
    assert LocalError.__str__ is method, "what comes back changes no class"


def test_a_sample_that_kills_its_worker_each_time_is_named_once_the_budget_is_spent(tmp_path: Path) -> None:
    main = os.getpid()

    def deadly(document: Any, rng: Any) -> Any:
        if "<30>" in document.text and os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return document

    corpus = write_corpus(tmp_path, [(".tar", make_texts(60, longest=60))], alike=True)
    data = dataset(corpus, transform=deadly, transform_version="1", num_lanes=1)
    packs = expected(corpus, 200, seq_len=32, num_lanes=1)
    position = corpus.shards[0].read_bytes().index(b"<30>") - 512
    with loader_of(data, num_workers=1) as loader:
        found = []
        with pytest.raises(LoaderError) as caught:
            found.extend(row for batch in loader for row in rows(batch))
        for part in ("worker 0", "SIGKILL", "lane 0", str(corpus.shards[0]), f"byte {position}", "3 times", "num_work"):
            assert part in str(caught.value)
        assert loader.stats()["worker_restarts"] == 3
        with pytest.raises(LoaderError, match="did not help"):  # the budget is the loader's, not the iterator's
            next(iter(loader))
        state = loader.state_dict()
        assert state["global_pack"] == len(found) > 8
    with loader_of(data, num_workers=0) as alone:
        alone.load_state_dict(state)
        assert_equal(dict(enumerate(found + take(iter(alone), 5))), packs)


def test_the_budget_is_for_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(restarts.time, "monotonic", lambda: now)
    budget = restarts.WorkerRestarts(Forks())
    assert [budget.allow() for _ in range(4)] == [True, True, True, False]
    now = 3599.0
    assert not budget.allow()
    now = 3601.0
    assert [budget.allow() for _ in range(4)] == [True, True, True, False]
    assert budget.number == 6


def test_what_the_workers_cannot_load_is_an_error_at_once(corpus: Corpus) -> None:
    def broken() -> None:
        raise ImportError("as of a module that is not there")

    with loader_of(dataset(corpus, transform=Unready(broken), transform_version="1")) as loader:
        with pytest.raises(ConfigError, match="cannot load .* .ImportError: as of a module that is not there."):
            next(iter(loader))
        assert loader.stats()["worker_restarts"] == 0


@pytest.mark.parametrize("value", [0, -1.0, "soon"])
def test_a_limit_that_cannot_be_is_refused(corpus: Corpus, value: Any) -> None:
    with pytest.raises(ConfigError, match="worker_timeout_s"):
        loader_of(dataset(corpus), worker_timeout_s=value)


# --- nothing is left


def test_many_restarts_leave_no_process_and_no_open_file(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "BUDGET", 100)
    before = children()
    with loader_of(dataset(corpus)) as loader:
        iterator = iter(loader)
        take(iterator, 2)
        files = []
        for number in range(1, 7):
            hurt(loader)
            while loader.stats()["worker_restarts"] < number:
                take(iterator, 1)
            files.append(len(list(Path("/proc/self/fd").iterdir())))
        assert files[-1] <= files[0], files
        assert len(children() - before) == 3
    assert children() <= before


@pytest.mark.parametrize("ending", ["close", "del"])
def test_a_stopped_worker_does_not_outlive_its_loader(corpus: Corpus, ending: str) -> None:
    loader = loader_of(dataset(corpus))
    iterator = iter(loader)
    take(iterator, 1)
    stopped = worker_pids(loader)
    hurt(loader, signal.SIGSTOP)
    begin = time.monotonic()
    if ending == "close":
        loader.close()
    else:
        del loader, iterator
    assert time.monotonic() - begin < NOTICED_S
    assert not children() & set(stopped)


UNCLOSED = """
import os, signal, sys
import streampack
from streampack.testing import ByteTokenizer

loader = streampack.PackedDataLoader(streampack.PackedDataset(sys.argv[1:], ByteTokenizer(), 32, num_lanes=4), 4)
iterator = iter(loader)
next(iterator)
for each in loader._delivery.current_pass._restarting._workers._workers:
    print(each.process.pid)
    os.kill(each.process.pid, signal.SIGSTOP)
print(loader._delivery._restarts.launcher._running.process.pid)
"""


def test_a_program_ends_though_its_workers_are_stopped_and_nobody_closed_the_loader(corpus: Corpus) -> None:
    program = [sys.executable, "-c", UNCLOSED, *corpus.urls]
    output = subprocess.run(program, capture_output=True, text=True, check=True, timeout=40).stdout
    assert len(output.split()) == 3
    assert not any(Path(f"/proc/{pid}").exists() for pid in output.split())
