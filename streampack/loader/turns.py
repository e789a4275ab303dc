"""What is under way in a delivery: whose turn it is to take batches, and which pass makes them.

In:    settings, and what is committed.
Out:   records that `Delivery` keeps and compares; the log says when nothing is left.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sized

from streampack.formats.consumers import Batch
from streampack.loader.commits import Standing
from streampack.loader.passes import Pass, PassSettings

_log = logging.getLogger(__name__)


@dataclasses.dataclass(slots=True)
class Turn:
    """What makes an iterator the one that may take batches."""

    settings: PassSettings
    first_epoch: int
    """Of its pass: once the commits have another one, the pass has ended."""
    begun_at: int
    """Batches that were handed out before."""
    taken_ahead: Callable[[], Sized] | None
    """Called when the first batch is asked for; None afterwards."""
    is_over: bool = False
    """Whether it has come to the end of its pass or of the run."""


@dataclasses.dataclass(slots=True)
class Running:
    """A pass, and where it stands."""

    each: Pass
    settings: PassSettings
    at: int | None
    """The global pack after the last batch that it gave; None while it makes one, and for ever if that fails."""
    taken_from: Standing
    """What was committed when its last batch was asked for."""


class BatchIterator(Iterator[Batch]):
    """What `iter(loader)` gives. After an error, the next call goes on from what is committed."""

    def __init__(self, take: Callable[[Turn], Batch], turn: Turn) -> None:
        self._take = take
        self._turn = turn

    def __next__(self) -> Batch:
        return self._take(self._turn)


def tell_of_end(turn: Turn, next_epoch: int | None, *, at: int, is_spent: bool) -> None:
    """Log that an iterator has no batch at all, or that the run has ended though no budget says so.

    Args:
        turn: the iterator's.
        next_epoch: in a run of passes, the epoch with which the next one begins.
        at: the global pack that is reached.
        is_spent: whether that is the end of the budget.
    """
    if next_epoch is not None:
        what = "no batch is left of the pass that began with epoch %d; the next iteration begins with epoch %d"
        _log.warning(what, turn.first_epoch, next_epoch)
        return
    why = (
        "its budget is used up. A larger num_tokens or num_packs"
        if is_spent
        else "its sources have been read as often as they may. A larger max_epochs"
    )
    _log.warning("no batch is left of the run, at global pack %d: %s may be given when it is resumed", at, why)
