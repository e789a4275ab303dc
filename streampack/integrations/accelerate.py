"""Accelerate: `save_state` and `load_state` carry a loader's state.

In:    an Accelerator and a `PackedDataLoader`.
Out:   nothing; Accelerate's checkpoints hold the loader from then on.
Never: an import of Accelerate.

`Accelerator.prepare` leaves a `PackedDataLoader` as it is, which is right: the loader knows its ranks. Tried with
accelerate 1.15.
"""

from typing import Any

from streampack.dataset.wrappers import only_rank_0_error
from streampack.loader.loader import PackedDataLoader


def register_for_checkpointing(accelerator: Any, loader: PackedDataLoader) -> None:
    """Let `accelerator.save_state` and `load_state` save and load the loader's state too.

    Args:
        accelerator: an `accelerate.Accelerator`.
        loader: with `whole_state=True` on several ranks, as Accelerate saves what rank 0 has.

    Raises:
        StateError: several ranks, and a loader without `whole_state`.
    """
    if loader.dp_size > 1 and not loader.whole_state:
        raise only_rank_0_error("Accelerate", size=loader.dp_size)
    accelerator.register_for_checkpointing(loader)
