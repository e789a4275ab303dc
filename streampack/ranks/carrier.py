"""A thread that carries exchanges out: each is some collectives, of which one begins when the one before is over.

In:    exchanges, and what is to be done when one fails.
Out:   for each a wait until it is over, or its error.
Never: two exchanges at once; another one after one that has failed; torch's code in this thread while Python ends.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial

import torch.distributed as dist

from streampack.ranks.torch_private import TIMEOUT_S

_FIRST_NAP_S, _LONGEST_NAP_S = 0.0001, 0.01
_LONGEST_STEP_S = 10.0
"""For which the end of the program waits: what is done between two collectives takes milliseconds."""

Wait = Callable[[], object]
"""Waits until an exchange is over.

Raises:
    RuntimeError: as torch does, where a connection breaks or time is up.
"""


class Carrier:
    """Carries exchanges out in the order in which they are asked for, until one fails.

    The thread begins with the first one. The end of the program must not find it inside of torch: Python would unwind
    it there, which C++ does not survive. So it asks whether a collective is over, sleeps in Python, and is asked to
    `end` first. It is a daemon thread, as Python would wait for any other one before it asks.
    """

    def __init__(self, fail: Callable[[BaseException], None]) -> None:
        """`fail`: called in the thread with the error of the exchange that fails."""
        self._fail = fail
        self._asked: queue.SimpleQueue[tuple[Iterator[dist.Work], Future[None]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._is_ending = False

    def carry(self, works: Iterator[dist.Work]) -> Wait:
        """Have an exchange carried out; does not wait.

        Raises:
            RuntimeError: the thread cannot be started.
        """
        over: Future[None] = Future()
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="streampack-ranks", daemon=True)
                thread.start()
                self._thread = thread
            self._asked.put((works, over))
        return partial(_result, over)

    def end(self) -> None:
        """End the thread between two of its steps, whatever it waits for."""
        self._is_ending = True
        if self._thread is not None:
            self._asked.put(None)
            self._thread.join(_LONGEST_STEP_S)

    def _run(self) -> None:
        while self._carry_next():  # a function of its own: what it holds does not live until the next one
            pass

    def _carry_next(self) -> bool:
        asked = self._asked.get()
        if asked is None:
            return False
        works, over = asked
        if self._error is None:
            try:
                self._carry_out(works)
            except BaseException as error:  # noqa: BLE001 (raised where the exchange is waited for)
                # Its frames hold the collective, which holds the connections.
                self._error = error.with_traceback(None)
                if not self._is_ending:
                    self._fail(self._error)
        if self._error is None:
            over.set_result(None)
        else:
            over.set_exception(self._error)
        return True

    def _carry_out(self, works: Iterator[dist.Work]) -> None:
        for work in works:
            nap_s = _FIRST_NAP_S
            while not work.is_completed():
                self._check_going_on()
                time.sleep(nap_s)
                nap_s = min(2 * nap_s, _LONGEST_NAP_S)
            work.wait()
            self._check_going_on()

    def _check_going_on(self) -> None:
        if self._is_ending:
            raise RuntimeError("the program ends")


def _result(over: "Future[None]") -> None:
    try:
        over.result(TIMEOUT_S)
    except TimeoutError as error:
        raise RuntimeError(f"an exchange between the ranks is not over after {TIMEOUT_S:.0f} s") from error
