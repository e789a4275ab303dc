"""Transformers: a Trainer that trains on a loader, and whose checkpoints hold the loader's state.

In:    a `PackedDataLoader`, and what a `transformers.Trainer` is made from.
Out:   a base class to put before `transformers.Trainer`, or before a subclass of it.
Never: an import of Transformers before a Trainer is made.

Tried with transformers 5.24. Only documented methods are used.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from streampack.dataset.wrappers import only_rank_0_error
from streampack.errors import ConfigError, StateError
from streampack.loader.loader import PackedDataLoader

LOADER_FILE = "loader.pt"
"""The loader's state in a checkpoint's folder. It is written last, and there as a whole or not at all."""

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


class PackedTrainerMixin(_Base):
    """`class PackedTrainer(PackedTrainerMixin, transformers.Trainer)`: a Trainer with one more argument, `loader`.

    It trains on the loader's batches as they are. Each checkpoint gets the loader's state in `loader.pt`, and
    `train(resume_from_checkpoint=...)` loads it. A folder without that file is not taken for a
    checkpoint: it was not written to its end.

    Args:
        loader: made with `format="hf"` or `"hf_flash"`, after TrainingArguments, which join the process group; with
            `whole_state=True` on several ranks, as what rank 0 has is saved.

    Raises:
        ConfigError: TrainingArguments without `ignore_data_skip=True`: then Trainer would skip the batches before the
            checkpoint a second time, as the loader's state is after them already.
        StateError: several ranks and a loader without `whole_state`; on resuming, a checkpoint without `loader.pt`.
    """

    def __init__(self, *args: Any, loader: PackedDataLoader, **options: Any) -> None:
        super().__init__(*args, **options)
        if not self.args.ignore_data_skip:
            raise ConfigError(
                "PackedTrainerMixin loads the loader's state, so batches before the checkpoint must not be read again: "
                "set ignore_data_skip=True in TrainingArguments"
            )
        if loader.dp_size > 1 and not loader.whole_state:
            raise only_rank_0_error("Trainer", size=loader.dp_size)
        self.loader = loader
        self.add_callback(_save_loader(loader))

    def get_train_dataloader(self) -> PackedDataLoader:
        """The loader. Trainer's own method would deal out a dataset's packs over the ranks a second time."""
        return self.loader

    def train(self, resume_from_checkpoint: "str | bool | None" = None, *args: Any, **options: Any) -> Any:
        """As Trainer's own; loads the loader's state from the checkpoint first.

        True takes the newest checkpoint in `output_dir` that is whole, and begins a new run where there is none.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = _newest_checkpoint(self.args.output_dir)
        if resume_from_checkpoint:
            path = Path(resume_from_checkpoint, LOADER_FILE)
            if not path.exists():
                raise StateError(
                    f"{path} does not exist: the checkpoint was not written to its end, or by another Trainer. "
                    "resume_from_checkpoint=True takes the newest whole checkpoint."
                )
            self.loader.load_state_dict(torch.load(path))
        return super().train(resume_from_checkpoint, *args, **options)


def _newest_checkpoint(output_dir: str | Path) -> str | None:
    """The newest checkpoint in `output_dir` that is whole, the loader's state included; None: there is none."""
    whole = (path.parent for path in Path(output_dir).glob(f"checkpoint-*/{LOADER_FILE}"))
    newest = max(whole, key=lambda folder: int(folder.name.removeprefix("checkpoint-")), default=None)
    return None if newest is None else str(newest)


def _save_loader(loader: PackedDataLoader) -> Any:
    """A callback that puts the loader's state into each checkpoint that Trainer has just written."""
    from transformers import TrainerCallback

    class SaveLoader(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **options: Any) -> None:
            saved = loader.state_dict()  # on all ranks, which make it together (`whole_state`)
            if state.is_world_process_zero:
                path = Path(args.output_dir, f"checkpoint-{state.global_step}", LOADER_FILE)
                unfinished = path.with_suffix(".unfinished")
                torch.save(saved, unfinished)
                unfinished.rename(path)

    return SaveLoader()
