"""What trainers do with a loader behind its back, so that a resume in them is exact or refused.

In:    the call stack, at the moment when a trainer iterates a loader, asks for its state or takes it apart.
Out:   what the loader must reckon with, or an error.
Never: an import of a trainer, or a look at the stack for every batch.

    Lightning    takes one batch ahead of a loader without a length: that one is not trained on when it saves
                 leaves a loader's state in the checkpoint unread where the checkpoint is of an epoch's end
                 saves the loader's state of rank 0
    Accelerate   saves the state of a registered object of rank 0
                 skip_first_batches makes a torch DataLoader out of a loader's dataset

They are known by names inside of them; a test with the real packages says when those have changed.
"""

import sys
from collections.abc import Iterator, Mapping, Sized
from types import FrameType
from typing import Any

from streampack.errors import LoaderError, StateError

_LIGHTNING = ("lightning", "pytorch_lightning")


def batches_taken_ahead() -> Sized:
    """What a trainer that is taking a batch just now holds unused; it goes on telling so from now on.

    Lightning's prefetcher empties its list by making a new one, so the list of this iteration stays what it was.
    """
    for frame in _frames():
        fetcher = _owner(frame, "_PrefetchDataFetcher")
        if fetcher is not None:
            batches: object = getattr(fetcher, "batches", None)
            if not isinstance(batches, list):
                raise LoaderError(
                    f"{type(fetcher).__module__}.{type(fetcher).__name__} takes batches ahead, and this release of "
                    "streampack does not know how many: a checkpoint would lose them. Write training_step(self, "
                    "dataloader_iter), with which Lightning takes none ahead."
                )
            return batches
    return ()


def state_left_unread(loader: object) -> Mapping[str, Any] | None:
    """The loader's state in the checkpoint from which Lightning begins a fit, if it was not loaded; only once."""
    for frame in _frames():
        fit_loop = _owner(frame, "_FitLoop") if frame.f_code.co_name == "setup_data" else None
        if fit_loop is None:
            continue
        states: list[Any] = getattr(fit_loop, "_combined_loader_states_to_load", [])
        loaders = getattr(getattr(fit_loop, "_combined_loader", None), "flattened", [])
        stateful = [each for each in loaders if hasattr(each, "state_dict") and hasattr(each, "load_state_dict")]
        place = next((index for index, each in enumerate(stateful) if each is loader), None)
        if place is None or len(states) != len(stateful) or states[place] is None:
            return None
        state: Mapping[str, Any] = states[place]
        states[place] = None
        if all(other is None for other in states):
            states.clear()
        return state
    return None


def check_every_rank_saves(frame: FrameType | None, *, size: int) -> None:
    """Raise a `StateError` where `frame` asks for the state of one of several ranks, to save that of rank 0 only.

    What a user's own method asks for, to join the states of all ranks, is not looked at.
    """
    while frame is not None and frame.f_code.co_name.startswith("<"):  # a comprehension (before Python 3.12)
        frame = frame.f_back
    if frame is None:
        return
    name, module = frame.f_code.co_name, str(frame.f_globals.get("__name__"))
    by_lightning = name == "_state_dicts" and _owner(frame, "CombinedLoader") is not None
    if by_lightning or (name == "save_custom_state" and module.startswith("accelerate.")):
        raise StateError(
            f"{module} saves the state of rank 0 only, and this loader's is that of one rank of {size}, so the lanes "
            "of the others would be lost. Make the loader with PackedDataLoader(whole_state=True): then its state is "
            "that of all ranks."
        )


def refuse_rebuilding(frame: FrameType) -> None:
    """Raise a `LoaderError` where `frame` is Accelerate's `skip_first_batches`, asking for the dataset of a loader."""
    if frame.f_code.co_name == "skip_first_batches" and str(frame.f_globals.get("__name__")).startswith("accelerate."):
        raise LoaderError(
            "accelerate.skip_first_batches makes a torch DataLoader out of this loader's dataset, which gives other "
            "batches in another order. Load the loader's state instead (load_state_dict, or "
            "Accelerator.register_for_checkpointing and load_state), or go past batches with loader.skip(n). With "
            "Transformers' Trainer set ignore_data_skip=True and load the state in a callback."
        )


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  # inspect.stack would read every file on the way
    while frame is not None:
        yield frame
        frame = frame.f_back


def _owner(frame: FrameType, kind: str) -> object:
    """The object of Lightning's class `kind` whose method the frame is, else None."""
    owner: object = frame.f_locals.get("self") if frame.f_code.co_varnames[:1] == ("self",) else None
    names = [base.__name__ for base in type(owner).__mro__ if str(base.__module__).partition(".")[0] in _LIGHTNING]
    return owner if kind in names else None
