"""Questions that several threads ask: answers in order; an error or an interrupt comes at once and ends the others."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.forwarding import ForwardProxy

from streampack.corpus.resolve import resolve_shards
from streampack.storage import threads
from streampack.storage.access import StorageReader
from streampack.storage.options import RetryPolicy
from streampack.storage.threads import StoppedError, side_by_side


class InterruptError(Exception):
    """What the signal handler of a scheduler may raise."""


def test_answers_come_in_the_order_of_the_questions() -> None:
    first = threading.Event()

    def ask(number: int) -> int:
        if number == 0:
            assert first.wait(10)
        first.set()
        return number * 2

    assert list(side_by_side(ask, range(5), num_threads=2)) == [0, 2, 4, 6, 8]


def test_an_error_or_a_close_ends_the_waits_of_all_other_threads_nested_ones_too() -> None:
    ended: list[type] = []

    def wait(_: int) -> None:
        try:
            threads.pause(60)
        except StoppedError as error:
            ended.append(type(error))
            raise

    def nested(number: int) -> None:
        if number == 0:
            raise InterruptError
        list(side_by_side(wait, range(2), num_threads=2))

    before, began = set(threading.enumerate()), time.monotonic()
    with pytest.raises(InterruptError):
        list(side_by_side(nested, range(2), num_threads=2))
    with contextlib.closing(side_by_side(lambda n: wait(n) if n else None, range(4), num_threads=2)) as answers:
        next(answers)
    for left in set(threading.enumerate()) - before:
        left.join(10)
    assert time.monotonic() - began < 5
    assert set(ended) <= {StoppedError}
    threads.pause(0)  # this thread itself was not told to end


@pytest.fixture
def server() -> Iterator[ForwardProxy]:
    running = ForwardProxy(503)
    yield running
    running.close()


@pytest.mark.parametrize("spec", ["/{a,b}.tar", "/*.tar", "/d/"])
def test_an_interrupt_comes_at_once_while_sizes_and_listings_are_asked_for(spec: str, server: ForwardProxy) -> None:
    storage = StorageReader(retry=RetryPolicy(budget_s=60, first_wait_s=0.05, max_wait_s=0.05))
    before = set(threading.enumerate())

    def interrupt(*_: Any) -> None:
        raise InterruptError

    done = threading.Event()

    def send() -> None:
        while not done.wait(0.02):
            if len(server.asked) > 1:
                signal.pthread_kill(main, signal.SIGALRM)
                done.wait(1)  # and again: Python drops what a handler raises while an object is being finalized

    main, began = threading.get_ident(), time.monotonic()
    old: Callable[..., Any] | int | None = signal.signal(signal.SIGALRM, interrupt)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(InterruptError):
            resolve_shards(server.url + spec, storage)
    finally:
        done.set()
        sender.join()
        signal.signal(signal.SIGALRM, old)
    asking = [one for one in set(threading.enumerate()) - before if one.name.startswith("streampack-ask")]
    for thread in asking:
        thread.join(10)
    assert time.monotonic() - began < 20  # far below the budget
