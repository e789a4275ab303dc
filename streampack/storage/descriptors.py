"""File descriptors of this process: the few that are kept for later, and what is done when there are no more.

In: whoever keeps something open that it can open again. Out: at most `MOST_KEPT` of them; those not used for longest
are closed.
Never: one descriptor for each lane, as a rank may have thousands of lanes and `ulimit -n` is often 1024; a descriptor
that is closed while it is read from: who uses one takes it out first.

A process that has none left fails in many ways: a name cannot be looked up, a module not be imported, a certificate not
be read. So after any failure `are_used_up` tries whether one can be had.
"""

import errno
import os
import resource
from collections import OrderedDict
from contextlib import suppress
from typing import Protocol

MOST_KEPT = 64
_SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE})


class Keeper(Protocol):
    """Has a descriptor open that it can open again."""

    def let_go(self) -> None:
        """Close it."""


_kept: OrderedDict[Keeper, None] = OrderedDict()  # used last at the end; its calls are atomic, so it needs no lock


def take(keeper: Keeper) -> None:
    """Keep others from closing it: it is being used, or closed for good."""
    _kept.pop(keeper, None)


def keep(keeper: Keeper) -> None:
    """It is not in use now, and may be closed when others are used."""
    _kept[keeper] = None
    if len(_kept) > MOST_KEPT:
        _let_one_go()


def let_all_go() -> None:
    """Close all that are not in use."""
    while _kept:
        _let_one_go()


def _let_one_go() -> None:
    with suppress(KeyError):  # another thread has taken the last one
        _kept.popitem(last=False)[0].let_go()


def are_used_up() -> bool:
    """Whether this process can open nothing more."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno in _SHORTAGE
    return False


def limit() -> int:
    """How many this process may have: `ulimit -n`."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
