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

    A worker that was forked has its parent's stack; for one that was spawned the dataset is pickled below the wrapper.
    """
    if size == 1:
        return
    frame = sys._getframe(1)  # noqa: SLF001  # inspect.stack would read every file on the way
    while frame is not None:
        owner = frame.f_locals.get("self") if frame.f_code.co_varnames[:1] == ("self",) else None
        kind = type(owner)
        if kind.__name__ in _DEALERS and kind.__module__.partition(".")[0] in ("accelerate", "transformers"):
            raise TopologyError(
                f"{kind.__module__}.{kind.__name__} deals out the packs of a dataset that is rank {rank} of {size} "
                "already, so packs would be lost. Give PackedDataLoader to the trainer: Accelerate's prepare leaves it "
                "as it is, and for Transformers' Trainer override get_train_dataloader. Or let the wrapper alone deal: "
                "PackedDataset(..., dp_rank=0, dp_size=1)"
            )
        frame = frame.f_back  # type: ignore[assignment]  # None at the bottom
