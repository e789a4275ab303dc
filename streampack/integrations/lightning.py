"""Lightning: a fit that continues from a checkpoint trains on every batch once, wherever the checkpoint was saved.

In:    a `PackedDataLoader` and the Trainer (of `lightning.pytorch` or `pytorch_lightning`) that will train on it.
Out:   what `trainer.fit` takes as its train dataloader.
Never: an import of Lightning.

What Lightning does to a loader, and what is done about it (tried with pytorch-lightning 2.6):

    takes one batch ahead of a loader without a length    the state does not count it as handed out, and it comes again
                                                          in the next epoch or fit
    leaves the state unread in the checkpoint of an       it is loaded when the fit begins
    epoch's end
    saves the state that rank 0 gives                     refused, unless it is that of all ranks (`whole_state`)

The first two need attributes of Lightning's loops that are not documented. They are read in `_Loops` only; where a
release has changed them, a fit is refused before its first batch.
"""

from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any

from streampack.dataset.wrappers import only_rank_0_error
from streampack.errors import ConfigError, LoaderError
from streampack.formats.consumers import Batch
from streampack.loader.loader import PackedDataLoader
from streampack.state.checkpoint import State


class LightningLoader:
    """A loader for `trainer.fit`: `trainer.fit(model, LightningLoader(loader, trainer), ckpt_path=...)`.

    Lightning's checkpoints hold the loader's state, and a fit from one continues after the last batch trained on. It
    is for training; to validate or test, give Lightning the `PackedDataLoader` itself.

    Args:
        loader: with `whole_state=True` on several ranks, as Lightning saves what rank 0 has.
        trainer: the Trainer that trains on it. In a LightningDataModule: `self.trainer`.

    Raises:
        ConfigError: `trainer` is not a Lightning Trainer.
    """

    def __init__(self, loader: PackedDataLoader, trainer: Any) -> None:
        self.loader = loader
        self._loops = _Loops(trainer)

    def __iter__(self) -> Iterator[Batch]:
        """Continue after the last batch that was trained on, or from the checkpoint that the fit begins with.

        Nothing happens before the first batch is asked for: Lightning makes an iterator just to see that it can.

        Raises:
            LoaderError: this release of Lightning does not tell what it has taken ahead, or the caller is not its fit.
            StateError: several ranks, and a loader without `whole_state`.
        """
        if not self._loops.train_on(self):
            raise LoaderError(
                "this LightningLoader is not what its trainer trains on. To validate or test, give Lightning the "
                "PackedDataLoader itself; to train with another trainer, make another LightningLoader."
            )
        if self.loader.dp_size > 1 and not self.loader.whole_state:
            raise only_rank_0_error("Lightning", size=self.loader.dp_size)
        self._load_unread()
        yield from self.loader.iterate(taken_ahead=self._loops.batches_taken_ahead)

    def __len__(self) -> int:
        """Batches of the whole run, where the dataset has a budget: then `max_epochs=1` is the run; else a TypeError.

        Lightning shows it in its progress bar, and takes no batch ahead.
        """
        return len(self.loader)

    def __bool__(self) -> bool:
        """A loader without a length is not empty."""
        return True

    def state_dict(self) -> State:
        """The loader's state after the last batch that was trained on."""
        self._load_unread()
        return self.loader.state_dict()

    def _load_unread(self) -> None:
        state = self._loops.take_unread_state(self)
        if state is not None:
            self.loader.load_state_dict(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the loader continue from a state of any number of ranks and workers."""
        self.loader.load_state_dict(state)


class _Loops:
    """What is read of a Trainer's loops: `trainer.fit_loop` and these attributes of it.

    _data_fetcher.batches             what was taken ahead, a list; absent where training_step takes a dataloader_iter
    _combined_loader.flattened        the loaders of the fit
    _combined_loader_states_to_load   states of the checkpoint that no loader was given yet
    """

    def __init__(self, trainer: Any) -> None:
        self._fit = getattr(trainer, "fit_loop", None)
        if self._fit is None:
            raise ConfigError(f"trainer must be Lightning's Trainer, not {type(trainer).__name__}")

    def train_on(self, wrapper: LightningLoader) -> bool:
        """Whether the fit has taken the wrapper as one of its loaders."""
        return any(each is wrapper for each in self._loaders())

    def take_unread_state(self, wrapper: LightningLoader) -> Mapping[str, Any] | None:
        """The state of the checkpoint from which the fit begins, if it was not loaded; only once."""
        stateful = [
            each for each in self._loaders() if hasattr(each, "state_dict") and hasattr(each, "load_state_dict")
        ]
        index = next((index for index, each in enumerate(stateful) if each is wrapper), None)
        states: list[Any] = self._read(self._fit, "_combined_loader_states_to_load")
        if index is None or len(states) != len(stateful):
            return None
        state: Mapping[str, Any] | None = states[index]
        states[index] = None
        if all(other is None for other in states):
            states.clear()
        return state

    def _loaders(self) -> Sequence[Any]:
        """The loaders of the fit; empty before it has begun."""
        loaders: Sequence[Any] = getattr(getattr(self._fit, "_combined_loader", None), "flattened", ())
        return loaders

    def batches_taken_ahead(self) -> Sized:
        """The list that the fetcher holds in this epoch; it makes another one for the next, so this one stays."""
        fetcher = self._read(self._fit, "_data_fetcher")
        kinds = [base.__name__ for base in type(fetcher).__mro__]
        if "_DataLoaderIterDataFetcher" in kinds:
            return ()
        batches = self._read(fetcher, "batches")
        if not isinstance(batches, list):
            raise self._changed(fetcher, "batches")
        return batches

    def _read(self, owner: object, name: str) -> Any:
        value = getattr(owner, name, None)
        if value is None:
            raise self._changed(owner, name)
        return value

    def _changed(self, owner: object, name: str) -> LoaderError:
        kind = type(owner)
        return LoaderError(
            f"{kind.__module__}.{kind.__name__} does not have {name} as streampack knows it, so it is not known how "
            "many batches this release of Lightning takes ahead, and a checkpoint could lose them. Tried with "
            "pytorch-lightning 2.6."
        )
