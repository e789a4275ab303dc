"""Which calls of a loader are under way: in other threads, and in the one that a signal handler has interrupted.

In:    the object whose methods are called, and which of them are meant.
Out:   whether a call may take batches now, and whether another one is using workers, which must not be ended then.

A signal handler runs in the main thread between two instructions of whatever that thread does, also of `next(batches)`.
Its calls have the same thread id; what tells them apart is that the interrupted call is further down on the stack. An
exception of a handler may cut a call off before it has said that it leaves, so what it has said is not enough.
"""

import sys
import threading
from collections.abc import Callable, Collection, Iterable
from types import CodeType, FrameType
from typing import Any

from streampack.errors import LoaderError

_TAKER = "taker"


class Calls:
    """The calls of one object's methods, told apart by thread and stack."""

    def __init__(self, *, take: Iterable[Callable[..., Any]], use_workers: Iterable[Callable[..., Any]]) -> None:
        """Of the object's class, the functions that take batches, and those in which workers are used.

        None of the latter calls another of them. No reference to the object is kept, or only a collection would end it.
        """
        self._take = _codes(take)
        self._use_workers = _codes(use_workers)
        self._taking: dict[str, tuple[int]] = {}
        """The thread that takes a batch. A dict, as its `setdefault` is one step for all threads and handlers."""

    def enter(self, owner: object) -> None:
        """The call that is under way is to take batches, until it calls `leave`.

        Raises:
            LoaderError: another one does.
        """
        mine = (threading.get_ident(),)
        taking = self._taking.setdefault(_TAKER, mine)
        if taking is mine:
            return
        if taking != mine:
            raise LoaderError(
                "two threads take batches of one loader at the same time, so none would have the batches in order: "
                "let one thread call next and skip"
            )
        if _number(self._take, owner) > 1:  # else an exception has cut off the call that entered
            raise LoaderError(
                "next or skip was called while the same thread is in another next or skip of this loader, as a signal "
                "handler, a finalizer or a transform may do: one of the two batches would be lost or come twice. Set "
                "a flag there, and take the batch when next has come back; state_dict, stats and close may be called"
            )

    def leave(self) -> None:
        """The call that has entered takes no more batches."""
        self._taking.pop(_TAKER, None)

    def uses_workers(self, owner: object, *, own: int = 0) -> bool:
        """Whether another thread takes batches, or a call that this one has interrupted is using workers.

        `own`: how many functions that use workers this call itself is in.
        """
        taking = self._taking.get(_TAKER)
        if taking is not None and taking != (threading.get_ident(),):
            return True
        return _number(self._use_workers, owner) > own


def _codes(functions: Iterable[Callable[..., Any]]) -> frozenset[CodeType]:
    return frozenset(function.__code__ for function in functions)


def _number(codes: Collection[CodeType], owner: object) -> int:
    """How many calls of these functions are on the stack of this thread."""
    number = 0
    frame: FrameType | None = sys._getframe()  # noqa: SLF001 (the way to the stack)
    while frame is not None:
        number += frame.f_code in codes and frame.f_locals.get("self") is owner
        frame = frame.f_back
    return number
