"""What is done with what workers send, without a process."""

import errno
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from streampack.errors import ConfigError, LoaderError
from streampack.loader import serving, shortage, working
from streampack.loader.failures import failure_of
from streampack.loader.messages import Assignment
from streampack.loader.times import WorkerTimes
from streampack.loader.workers import LostError, Workers
from streampack.metrics import heartbeat


class Puppet:
    """A worker that does what a test tells it, as launcher, process and other end of the socket at once."""

    pid = 7
    ended: str | None = None

    def launch(
        self, assignment: Assignment, sockets: Sequence[socket.socket], memory: int, rows: Sequence[heartbeat.Row]
    ) -> "list[Puppet]":
        (self.theirs,) = (each.dup() for each in sockets)
        (self.row,) = rows
        self.row[0] = 1
        return [self]

    def end(self, processes: Sequence[object]) -> None:
        self.theirs.close()

    def close(self) -> None:
        raise AssertionError("this is the loader's to do")

    def fileno(self) -> int:
        return self.theirs.fileno()

    def ending(self, limit_s: float = 0.0) -> str | None:
        return self.ended

    def says(self, number: int, message: object, error: Exception | None = None) -> None:
        working.send(self.theirs, number, message, None if error is None else failure_of(error, "raised in a test"))


@pytest.fixture
def puppet() -> Puppet:
    return Puppet()


@pytest.fixture
def listening(puppet: Puppet) -> Iterator[Workers]:
    assignment: Any = SimpleNamespace(run=SimpleNamespace(sources=["one"]))
    workers = Workers(assignment, 1, puppet, WorkerTimes(), timeout_s=0.2)
    yield workers
    workers.end()


def test_messages_come_in_order(puppet: Puppet, listening: Workers) -> None:
    puppet.says(0, "first")
    puppet.says(1, "second")
    assert [listening.receive(0), listening.receive(0)] == ["first", "second"]
    assert puppet.theirs.recv(10) == b"++++"  # two ahead, and one for each that was taken


@pytest.mark.parametrize(("numbers", "text"), [((1,), "sent message 1 where message 0"), ((0, 0), "message 0 where")])
def test_a_message_that_is_missing_or_comes_twice_is_a_loss_and_no_data(
    puppet: Puppet, listening: Workers, numbers: tuple[int, ...], text: str
) -> None:
    for number in numbers:
        puppet.says(number, "data")
    for _ in numbers[1:]:
        listening.receive(0)
    with pytest.raises(LostError, match=text):
        listening.receive(0)


def test_what_was_sent_before_a_death_is_good(puppet: Puppet, listening: Workers) -> None:
    puppet.says(0, "data")
    puppet.theirs.close()
    puppet.ended = "was ended by SIGKILL"
    puppet.fileno = lambda: -1  # type: ignore[method-assign]
    assert listening.receive(0) == "data"  # type: ignore[comparison-overlap]
    with pytest.raises(LostError, match="was ended by SIGKILL"):
        listening.receive(0)


def test_silence_is_a_loss(puppet: Puppet, listening: Workers) -> None:
    with pytest.raises(LostError, match="was silent for"):
        listening.receive(0)


def caused_by(error: Exception) -> Exception:
    other = RuntimeError("a library's words")
    other.__cause__ = error
    return other


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError("Unable to allocate 7 GiB"), "no memory is free .*: MemoryError: Unable to allocate 7 GiB"),
        (OSError(errno.ENOMEM, "no memory"), "no memory is free"),
        (OSError(errno.EMFILE, "too many"), "no file descriptor is free .`ulimit -n` allows this process"),
        (OSError(errno.ENFILE, "too many"), "no file descriptor is free on this machine"),
        (RuntimeError("can't start new thread"), "no process or thread can be started"),
        (caused_by(OSError(errno.EMFILE, "too many")), "no file descriptor .*: RuntimeError: a library's words"),
    ],
)
def test_what_says_that_something_is_short_is_a_loss(
    puppet: Puppet, listening: Workers, error: Exception, text: str
) -> None:
    puppet.says(0, None, error)
    with pytest.raises(LostError, match=f"found that {text}"):
        listening.receive(0)


@pytest.mark.parametrize("error", [ValueError("bad"), OSError(errno.ENOENT, "bad"), FileNotFoundError("bad")])
def test_any_other_error_is_raised(puppet: Puppet, listening: Workers, error: Exception) -> None:
    puppet.says(0, None, error)
    with pytest.raises(type(error), match="bad") as caught:
        listening.receive(0)
    assert caught.value.__notes__ == ["raised in a test"]


def test_a_fork_of_the_trainer_has_no_part_in_its_workers(puppet: Puppet, listening: Workers) -> None:
    child = os.fork()
    if child == 0:
        try:
            listening.check_owner()
        except LoaderError as error:
            os._exit("make a PackedDataLoader in each process" not in str(error))
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


def test_a_shortage_is_waited_for_and_named_if_it_lasts(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    left = [OSError(errno.EMFILE, "too many")] * 3

    def do() -> str:
        if left:
            raise left.pop()
        return "done"

    assert shortage.persist(do, "a test") == "done"
    assert len(caplog.records) == 1 and "a test: no file descriptor is free (`ulimit -n`" in caplog.text
    monkeypatch.setattr(shortage, "PATIENCE_S", 0.02)
    left += [OSError(errno.EMFILE, "too many")] * 1000
    with pytest.raises(LoaderError, match="a test: for 0 s no file descriptor is free .`ulimit -n` allows"):
        shortage.persist(do, "a test")


def test_a_program_without_an_interpreter_beside_it_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    serving.check_can_start()
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(ConfigError, match='use multiprocessing_context="fork"'):
        serving.check_can_start()
