"""Errors for trainers that would lose data silently, where only the call stack shows that such a trainer is used.

In:    the call stack, when iteration begins, when a dataset is pickled for workers, or when a state is asked for.
Out:   nothing, or an error that says what to use instead.
Never: a look at the stack for each batch; an import of one of these libraries.

    Accelerate, Transformers    IterableDatasetShard     a rank keeps a share of what is its own share already
                                DataLoaderDispatcher     rank 0 reads for all: other ranks' packs are never seen
                                save_custom_state        saves the state of rank 0 only
    torchdata with these two    StatefulDataLoader       its second resume is at the wrong place, or the first
    Lightning                   fit with a bare loader   takes a batch ahead, which a checkpoint would count as
                                                         trained on, and saves the state of rank 0 only

They are recognised by the names of their classes and modules. Tried with accelerate 1.15, transformers 5.24, torchdata
0.11 and pytorch-lightning 2.6; tests/integrations run each case with the real library, so a release with other names
fails.
`streampack.integrations` has the adapters, which need none of this.
"""

import sys
from collections.abc import Iterator
from types import FrameType

from streampack.errors import LoaderError, StateError, TopologyError

_DEALERS = ("IterableDatasetShard", "DataLoaderDispatcher")
_LIGHTNING = ("lightning", "pytorch_lightning")


class RebuiltLoaderError(LoaderError, AttributeError):
    """Somebody wants to make a torch DataLoader of a PackedDataLoader's dataset; an AttributeError, too.

    It is raised for an attribute that torch's DataLoader has, so that `hasattr` answers as for any missing one.
    """

    def __init__(self) -> None:
        super().__init__(
            "a PackedDataLoader is not a torch DataLoader and has no drop_last. accelerate.skip_first_batches asks for "
            "it to make a torch DataLoader of this loader's dataset, which would give other batches in another order. "
            "Load the loader's state instead (load_state_dict, or streampack.integrations), or go past batches with "
            "loader.skip(n). With Transformers' Trainer set ignore_data_skip=True."
        )


def check_not_dealt_again(*, rank: int, size: int) -> None:
    """Raise a `TopologyError` where a wrapper reads the dataset of one of several ranks, to deal out its packs.

    Also where torchdata's StatefulDataLoader reads a dataset for a wrapper that deals to several ranks: torchdata 0.11
    counts twice what it reads twice, and Accelerate 1.15 corrects counts, not states.

    A worker that was forked has its parent's stack; for a spawned worker the dataset is pickled while the
    wrapper is on the stack.
    """
    dealer, processes, stateful = None, 1, False
    for frame in _frames():
        owner = _owner(frame)
        kind = type(owner)
        if kind.__name__ in _DEALERS and str(kind.__module__).partition(".")[0] in ("accelerate", "transformers"):
            dealer = dealer or f"{kind.__module__}.{kind.__name__}"
            processes = max(processes, vars(owner).get("num_processes") or _num_processes())
        stateful = stateful or str(frame.f_globals.get("__name__")).startswith("torchdata.stateful_dataloader")
    if dealer is not None and size > 1:
        raise TopologyError(
            f"{dealer} deals out the packs of a dataset that is rank {rank} of {size} "
            "already, so packs would be lost. Give PackedDataLoader to the trainer: Accelerate's prepare leaves it "
            "as it is, and for Transformers' Trainer there is streampack.integrations.PackedTrainerMixin. Or let the "
            "wrapper alone deal: dataset.for_rank(0, 1)"
        )
    if dealer is not None and stateful and processes > 1:
        raise TopologyError(
            f"torchdata's StatefulDataLoader and {dealer} on {processes} processes resume at the wrong place. Use "
            "PackedDataLoader(whole_state=True): Accelerate's prepare leaves it as it is, and "
            "streampack.integrations.register_for_checkpointing lets it save and load its state with all the rest."
        )


def check_lightning_adapter() -> None:
    """Raise a `LoaderError` where Lightning's fit begins to read a loader itself; validation and testing may.

    The fit makes a first iterator only to see that it can, and an error from there ends the fit cleanly.
    """
    asks = False
    for frame in _frames():
        names = _lightning_classes(frame)
        asks = asks or "_DataFetcher" in names or frame.f_code.co_name == "_check_dataloader_iterable"
        if asks and "_EvaluationLoop" in names:
            return
        if asks and not names.isdisjoint(("_FitLoop", "_TrainingEpochLoop")):
            raise LoaderError(
                "Lightning takes a batch ahead of a loader, which its checkpoints would count as trained on, and does "
                "not load the state of an epoch's end. To train, give it "
                "streampack.integrations.LightningLoader(loader, trainer), whose state is exact."
            )


def check_every_rank_saves(frame: FrameType | None, *, size: int) -> None:
    """Raise a `StateError` where `frame` asks for the state of one of several ranks, to save that of rank 0 only.

    What a user's own method asks for, to join the states of all ranks, is not looked at.
    """
    while frame is not None and frame.f_code.co_name.startswith("<"):  # a comprehension (before Python 3.12)
        frame = frame.f_back
    if frame is None:
        return
    module = str(frame.f_globals.get("__name__"))
    if frame.f_code.co_name == "save_custom_state" and module.startswith("accelerate."):
        raise only_rank_0_error(module, size=size)


def only_rank_0_error(saver: str, *, size: int) -> StateError:
    """The error for a loader without `whole_state` whose state only rank 0 would save."""
    return StateError(
        f"{saver} saves the state of rank 0 only, and this loader's is that of one rank of {size}, so the lanes "
        "of the others would be lost. Make the loader with PackedDataLoader(whole_state=True): then its state is "
        "that of all ranks."
    )


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  # inspect.stack would read every file on the way
    while frame is not None:
        yield frame
        frame = frame.f_back


def _owner(frame: FrameType) -> object:
    """The object whose method the frame is, else None."""
    return frame.f_locals.get("self") if frame.f_code.co_varnames[:1] == ("self",) else None


def _lightning_classes(frame: FrameType) -> set[str]:
    """Lightning's classes of the object whose method the frame is."""
    mro = type(_owner(frame)).__mro__
    return {base.__name__ for base in mro if str(base.__module__).partition(".")[0] in _LIGHTNING}


def _num_processes() -> int:
    """How many processes Accelerate has; 2, which stands for several, where it does not say."""
    state = getattr(sys.modules.get("accelerate.state"), "PartialState", None)
    number: int = getattr(state, "_shared_state", {}).get("num_processes", 2)
    return number
