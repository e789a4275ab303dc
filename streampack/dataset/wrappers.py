"""What wraps a dataset: refuse those that would deal its packs over the ranks a second time.

In:  the call stack, at the moment when a dataset that knows its ranks begins to be read or is sent to workers.
Out: nothing, or an error. Never true: that a rank trains on a part of its part without a word.

Accelerate's `prepare`, and so Transformers' Trainer, puts one of two around the dataset of a torch DataLoader. Each
takes the dataset for one that is the same on all ranks:

    IterableDatasetShard    every rank reads all and keeps its share: of what is a share already
    DataLoaderDispatcher    rank 0 reads for all: its share only, and the other ranks' packs are never seen
"""

import sys

from streampack.errors import TopologyError

_DEALERS = ("IterableDatasetShard", "DataLoaderDispatcher")


def check_not_dealt_again(*, rank: int, size: int) -> None:
    """Raise a TopologyError where one of them is reading the dataset of one rank among several.

    Also where torchdata's StatefulDataLoader reads one that deals to several: its second resume would be at the wrong
    place, or the first (torchdata 0.11 counts again what it reads again, Accelerate 1.15 corrects counts, not states).

    A worker that was forked has its parent's stack; for one that was spawned the dataset is pickled below the wrapper.
    """
    dealer, processes, stateful = None, 1, False
    frame = sys._getframe(1)  # noqa: SLF001  # inspect.stack would read every file on the way
    while frame is not None:
        owner = frame.f_locals.get("self") if frame.f_code.co_varnames[:1] == ("self",) else None
        kind = type(owner)
        if kind.__name__ in _DEALERS and str(kind.__module__).partition(".")[0] in ("accelerate", "transformers"):
            dealer = dealer or f"{kind.__module__}.{kind.__name__}"
            processes = max(processes, vars(owner).get("num_processes") or _num_processes())
        stateful = stateful or str(frame.f_globals.get("__name__")).startswith("torchdata.stateful_dataloader")
        frame = frame.f_back  # type: ignore[assignment]  # None at the bottom
    if dealer is not None and size > 1:
        raise TopologyError(
            f"{dealer} deals out the packs of a dataset that is rank {rank} of {size} "
            "already, so packs would be lost. Give PackedDataLoader to the trainer: Accelerate's prepare leaves it "
            "as it is, and for Transformers' Trainer override get_train_dataloader. Or let the wrapper alone deal: "
            "dataset.for_rank(0, 1)"
        )
    if dealer is not None and stateful and processes > 1:
        raise TopologyError(
            f"torchdata's StatefulDataLoader and {dealer} on {processes} processes resume at the wrong place. Use "
            "PackedDataLoader(whole_state=True): Accelerate's prepare leaves it as it is, and "
            "Accelerator.register_for_checkpointing saves and loads its state with all the rest."
        )


def _num_processes() -> int:
    """How many processes Accelerate knows of; several where it does not say."""
    state = getattr(sys.modules.get("accelerate.state"), "PartialState", None)
    number: int = getattr(state, "_shared_state", {}).get("num_processes", 2)
    return number
