"""Workers that share nothing with the trainer: what they import, what scripts may give them, and how they end."""

import contextlib
import dataclasses
import gc
import itertools
import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.jobs import Corpus, assert_equal, dataset, rows, write_corpus
from support.jobs import texts as make_texts
from support.processes import needs_proc
from support.thorough import nightly
from support.workers import alive, server_pid, worker_pids

import streampack
from streampack.errors import ConfigError, LoaderError

pytestmark = needs_proc


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"), [(".tar", make_texts(90, longest=60)) for _ in range(3)])


def loader_of(corpus: Corpus, *, num_workers: int = 2, **changes: Any) -> streampack.PackedDataLoader:
    """Messages of one pack, so that much happens."""
    version = {"transform_version": "1"} if "transform" in changes else {}
    data = dataset(corpus, num_lanes=4, **version, **changes)
    return streampack.PackedDataLoader(data, 4, num_workers=num_workers, prefetch_bytes=1)


def take(loader: streampack.PackedDataLoader, batches: int) -> list[Any]:
    return [row for batch in itertools.islice(loader, batches) for row in rows(batch)]


# --- what a worker is


SCRIPT = """
import json, os, signal, sys, threading
with open("runs", "a") as file:
    file.write("x")
import streampack
sys.path.insert(0, "")
import helper
shards, result = (os.path.abspath(each) for each in sys.argv[1:3])
os.chdir("other")  # another helper, and a json that raises
sys.setrecursionlimit(5000)
from streampack.records import Document

class Tokenizer:
    "Of a script: nothing can import it."
    bos_id, eos_id, pad_id, vocab_size, digest = 1, 2, 0, 300, "of the script"
    def encode(self, text):
        import numpy as np
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32) + 3

class Broken(Exception):
    "Of a script as well."

LENGTH = 7  # a global variable
shout = lambda document, rng: Document(text=helper.change(document.text)[:LENGTH])

def telling(document, rng):
    threads = len(os.listdir("/proc/self/task"))
    raise Broken(json.dumps({
        "torch": "torch" in sys.modules, "main": getattr(sys.modules["__main__"], "__file__", None), "threads": threads,
        "s3fs": "s3fs" in sys.modules, "mark": os.environ["STREAMPACK_MARK"],
        "argv": sys.argv, "recursion": sys.getrecursionlimit(), "folder": os.getcwd(),
    }))

busy = [threading.Thread(target=threading.Event().wait, daemon=True) for _ in range(4)]
for each in busy:
    each.start()
found = {}
data = streampack.PackedDataset(
    shards, Tokenizer(), 16, transform=shout, transform_version="1", num_lanes=2, shuffle=False
)
with streampack.PackedDataLoader(data, num_workers=2) as loader:
    found["tokens"] = next(iter(loader))["tokens"].tolist()
data = streampack.PackedDataset(shards, Tokenizer(), 16, transform=telling, transform_version="1", num_lanes=2)
try:
    next(iter(streampack.PackedDataLoader(data)))
except Broken as error:
    found["told"] = json.loads(str(error))
    found["same class"] = type(error) is Broken
with open(result, "w") as file:
    json.dump(found, file)
loader = streampack.PackedDataLoader(data)
iterator = iter(loader)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def told(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a script without `if __name__ == "__main__"`, without standard input and output, finds."""
    folder = tmp_path_factory.mktemp("script")
    (folder / "script.py").write_text(SCRIPT)
    (folder / "helper.py").write_text("def change(text): return text.upper()")
    (folder / "other").mkdir()
    (folder / "other" / "helper.py").write_text("def change(text): return 'the wrong module'")
    (folder / "other" / "json.py").write_text("raise RuntimeError('of the working directory')")
    mark = uuid.uuid4().hex
    command = f'exec "{sys.executable}" script.py "{Path(corpus.shards[0])}" found.json <&- >&- 2>errors'
    environment = {**os.environ, "STREAMPACK_MARK": mark}
    ended = subprocess.run(["sh", "-c", command], cwd=folder, env=environment, check=False, timeout=100)
    assert ended.returncode == -signal.SIGKILL, (folder / "errors").read_text()
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    found["runs"] = (folder / "runs").read_text()
    found["other folder"] = str(folder / "other")
    found["left over"] = until_gone(f"STREAMPACK_MARK={mark}".encode(), seconds=20)
    return found


def until_gone(mark: bytes, *, seconds: float) -> list[int]:
    """The processes with this mark in their environment that are still there after so long."""
    end = time.monotonic() + seconds
    left = [0]
    while left and time.monotonic() < end:
        time.sleep(0.05)
        left = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    left.append(int(folder.name))
    return left


def test_functions_and_classes_of_a_script_without_a_guard_work(told: dict[str, Any], corpus: Corpus) -> None:
    first = corpus.documents[0][0][0].upper()[:7]
    assert bytes(token - 3 for token in told["tokens"][0][1 : 1 + len(first)]).decode() == first
    assert told["runs"] == "x"


def test_a_worker_imports_neither_torch_nor_the_script_nor_a_storage_that_is_not_read(told: dict[str, Any]) -> None:
    """Beside its own thread it has one that waits for the trainer's end."""
    assert {name: told["told"][name] for name in ("torch", "main", "s3fs", "threads")} == {
        "torch": False,
        "main": None,
        "s3fs": False,
        "threads": 2,
    }


def test_a_worker_has_the_trainers_arguments_folder_and_limits(told: dict[str, Any], corpus: Corpus) -> None:
    has = told["told"]
    assert has["argv"] == ["script.py", str(corpus.shards[0]), "found.json"]
    assert (has["recursion"], has["folder"]) == (5000, told["other folder"])


def test_an_exception_of_a_script_is_raised_as_the_class_that_it_is(told: dict[str, Any]) -> None:
    assert told["same class"]


def test_nothing_is_left_of_a_trainer_that_is_killed_before_its_workers_begin(told: dict[str, Any]) -> None:
    assert told["left over"] == []


def test_workers_are_not_forked_from_a_process_with_threads(corpus: Corpus, capfd: pytest.CaptureFixture[str]) -> None:
    class Starts:
        """A transform whose copy starts a thread as it is loaded."""

        def __setstate__(self, state: Any) -> None:
            threading.Thread(target=threading.Event().wait, daemon=True, name="of-the-transform").start()

        def __getstate__(self) -> str:
            return "something"

        def __call__(self, document: Any, rng: Any) -> Any:
            return document

    with loader_of(corpus, num_workers=0) as alone:
        wanted = take(alone, 8)
    with loader_of(corpus, transform=Starts()) as loader:
        packs = take(loader, 4)
        os.kill(worker_pids(loader)[0], signal.SIGKILL)
        packs += take(loader, 4)
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in worker_pids(loader)]
        assert all(b"worker" in command for command in commands), "each is a program of its own"
        pids = worker_pids(loader)
    assert_equal(dict(enumerate(packs)), wanted)
    assert alive(pids) == []
    assert "has started threads (of-the-transform) when it was loaded" in capfd.readouterr().err


def test_threads_of_every_python_here_are_not_taken_for_the_transforms(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    starts = "import threading; threading.Thread(target=threading.Event().wait, daemon=True, name='tracer').start()"
    (tmp_path / "sitecustomize.py").write_text(starts)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with loader_of(corpus, num_workers=1) as loader:
        take(loader, 1)
    assert "has threads here before it loads anything (tracer; see sitecustomize)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("when_loaded", "kind", "text"),
    [
        (False, LoaderError, r"has raised SystemExit\(no model\), as sys.exit\(\) does at lane \d, .*tar, sample \d"),
        (True, ConfigError, r"cannot load .*SystemExit: no model"),
    ],
)
def test_what_would_end_a_worker_is_an_error_of_the_transform_and_no_restart(
    corpus: Corpus, when_loaded: bool, kind: type[Exception], text: str
) -> None:
    class Exits:
        def __getstate__(self) -> str:
            return "something"

        def __setstate__(self, state: Any) -> None:
            if when_loaded:
                sys.exit("no model")

        def __call__(self, document: Any, rng: Any) -> Any:
            sys.exit("no model")

    with loader_of(corpus, num_workers=1, transform=Exits()) as loader:
        with pytest.raises(kind, match=text):
            next(iter(loader))
        assert loader.stats()["worker_restarts"] == 0


def test_what_cannot_be_sent_is_an_error_of_the_first_batch_that_names_it(corpus: Corpus) -> None:
    lock = threading.Lock()

    def clean(document: Any, rng: Any) -> Any:
        with lock:
            return document

    with loader_of(corpus, transform=clean) as loader, pytest.raises(ConfigError, match="closure variable `lock`"):
        iter(loader)


def test_signals_to_all_of_a_job_are_left_to_the_trainer(corpus: Corpus) -> None:
    with loader_of(corpus) as loader:
        take(loader, 2)
        for pid in [*worker_pids(loader), server_pid(loader)]:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
                os.kill(pid or 0, number)
        take(loader, 8)
        assert loader.stats()["worker_restarts"] == 0


def test_a_trainer_may_have_been_given_the_names_of_many_shards(corpus: Corpus, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *(f"/data/shard-{number:06d}.tar" for number in range(20_000))])
    with loader_of(corpus) as loader:
        assert len(take(loader, 1)) == 4


# --- what is short for a moment


def test_descriptors_that_run_out_in_the_trainer_cost_no_message(corpus: Corpus, caplog: Any) -> None:
    with loader_of(corpus, num_workers=0) as alone:
        wanted = take(alone, 20)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with loader_of(corpus) as loader, caplog.at_level(logging.WARNING):
        iterator = iter(loader)
        packs = []
        try:
            for _ in range(20):
                lowest = os.dup(0)
                os.close(lowest)
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
                give = threading.Timer(0.03, resource.setrlimit, (resource.RLIMIT_NOFILE, (soft, hard)))
                give.start()
                packs += rows(next(iterator))
                give.join()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert loader.stats()["worker_restarts"] == 0
    assert_equal(dict(enumerate(packs)), wanted)
    assert "no file descriptor is free (`ulimit -n` allows this process" in caplog.text


@pytest.mark.parametrize("error", [OSError(24, "for a moment"), *nightly([MemoryError("for a moment")])], ids=str)
def test_a_worker_that_is_short_of_something_is_restarted(
    corpus: Corpus, tmp_path: Path, caplog: Any, error: Exception
) -> None:
    was_there = tmp_path / "was there"

    def short(document: Any, rng: Any) -> Any:
        if document.text.startswith("<1") and not was_there.exists():
            was_there.touch()
            raise error
        return document

    with loader_of(corpus, num_workers=0) as alone:
        wanted = take(alone, 20)
    with loader_of(corpus, transform=short) as loader, caplog.at_level(logging.WARNING):
        assert_equal(dict(enumerate(take(loader, 20))), wanted)
        assert loader.stats()["worker_restarts"] == 1
    assert "found that no " in caplog.text and "for a moment" in caplog.text


# --- random numbers


def test_what_a_transform_draws_depends_on_the_document_alone(corpus: Corpus) -> None:
    """On the workers' number, their restarts and the trainer's own draws it does not."""

    def drawing(document: Any, rng: Any) -> Any:
        drawn = random.random(), np.random.random_sample(), rng.random()  # noqa: NPY002 (the global one)
        return dataclasses.replace(document, text=f"{document.text} {drawn}")

    digests = []
    for num_workers in (0, 3):
        random.seed(num_workers)
        with loader_of(corpus, num_workers=num_workers, transform=drawing) as loader:
            take(loader, 3)
            if num_workers:
                os.kill(worker_pids(loader)[0], signal.SIGKILL)
            take(loader, 9)
            digests.append(loader.digest())
    assert digests[0] == digests[1]


# --- after a restart


def test_a_new_server_has_what_the_first_one_had(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same copy of the transform, folder, environment and order of sets, though the trainer's are others by now."""

    class Marking:
        mark = "a"

        def __call__(self, document: Any, rng: Any) -> Any:
            words = {f"{document.text[:5]} {number}" for number in range(5)}
            return dataclasses.replace(document, text=f"{words} {self.mark} {Path.cwd()} {os.environ['MARK']}")

    digests = []
    for kills in (False, True):
        transform = Marking()
        with monkeypatch.context() as patch, loader_of(corpus, transform=transform) as loader:
            patch.setenv("MARK", "a")
            take(loader, 1)
            server = server_pid(loader) or 0
            open_files = [str(each.readlink()) for each in Path(f"/proc/{server}/fd").iterdir()]
            assert not any("memfd" in each for each in open_files), "the recipe is not kept in memory twice"
            transform.mark = "b"
            patch.setenv("MARK", "b")
            patch.chdir(tmp_path)
            if kills:
                os.kill(server, signal.SIGKILL)
            take(loader, 12)
            assert (server_pid(loader) != server) == kills
            digests.append(loader.digest())
    assert digests[0] == digests[1]


def test_what_was_loaded_once_is_loaded_again_where_a_new_server_fails(corpus: Corpus, tmp_path: Path) -> None:
    """A library of a module may find no memory as it is loaded, and says so in words of its own."""
    in_the_way = tmp_path / "no memory"

    class Loaded:
        def __getstate__(self) -> Path:
            return in_the_way

        def __setstate__(self, in_the_way: Path) -> None:
            if in_the_way.exists():
                in_the_way.unlink()
                raise ImportError("failed to map segment from shared object")

        def __call__(self, document: Any, rng: Any) -> Any:
            return document

    with loader_of(corpus, num_workers=0, transform=Loaded()) as alone:
        wanted = take(alone, 12)
    with loader_of(corpus, transform=Loaded()) as loader:
        packs = take(loader, 2)
        in_the_way.touch()
        os.kill(server_pid(loader) or 0, signal.SIGKILL)
        packs += take(loader, 10)
        assert loader.stats()["worker_restarts"] == 1
    assert_equal(dict(enumerate(packs)), wanted)


# --- how they end


def test_closing_takes_no_time_while_the_server_loads(corpus: Corpus) -> None:
    class Slow:
        def __getstate__(self) -> str:
            return "something"

        def __setstate__(self, state: Any) -> None:
            time.sleep(100)

        def __call__(self, document: Any, rng: Any) -> Any:
            return document

    with loader_of(corpus, transform=Slow()) as loader:
        iter(loader)
        server = server_pid(loader) or 0
        begin = time.monotonic()
        loader.close()
        assert time.monotonic() - begin < 1.0
        assert alive([server]) == []


def test_what_a_worker_has_started_ends_with_it(corpus: Corpus, tmp_path: Path) -> None:
    def starting(document: Any, rng: Any) -> Any:
        if not (tmp_path / str(os.getpid())).exists():
            child = subprocess.Popen(["sleep", "100"])
            (tmp_path / "new").write_text(str(child.pid))
            (tmp_path / "new").rename(tmp_path / str(os.getpid()))
        return document

    def started() -> list[int]:
        return [int(each.read_text()) for each in tmp_path.glob("[0-9]*")]

    def until_ended(pids: list[int]) -> None:
        give_up = time.monotonic() + 20
        while any(runs(pid) for pid in pids):
            assert time.monotonic() < give_up, pids
            time.sleep(0.01)

    with loader_of(corpus, num_workers=1, transform=starting) as loader:
        for kill in (worker_pids, lambda _: [server_pid(loader) or 0]):
            take(loader, 1)
            before = started()
            assert any(map(runs, before))
            os.kill(kill(loader)[0], signal.SIGKILL)
            take(loader, 8)
            until_ended(before)
        assert any(map(runs, started()))
    until_ended(started())


def runs(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_closing_takes_no_time_while_the_workers_are_busy(corpus: Corpus) -> None:
    def endless(document: Any, rng: Any) -> Any:
        while "<20>" in document.text:
            sum(range(1000))
        return document

    with loader_of(corpus, transform=endless) as loader:
        take(loader, 1)
        pids = [*worker_pids(loader), server_pid(loader) or 0]
        begin = time.monotonic()
        loader.close()
        assert time.monotonic() - begin < 1.0  # some milliseconds on an idle machine
        assert alive(pids) == []


@pytest.fixture(autouse=True)
def _leaves_no_descriptor() -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2  # of the test's own capturing
