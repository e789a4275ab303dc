"""Transformers: a Trainer that trains and evaluates on loaders, and whose checkpoints hold the state of the training.

In:    a `PackedDataLoader`, maybe others to evaluate on, and what a `transformers.Trainer` is made from.
Out:   a base class to put before `transformers.Trainer`, or before a subclass of it.
Never: an import of Transformers before a Trainer is made.

Tried with transformers 5.24. Only documented methods are used.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from streampack.dataset.dataset import PackedDataset
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
    """`class PackedTrainer(PackedTrainerMixin, transformers.Trainer)`: a Trainer that takes loaders.

    It trains on the loader's batches as they are. Each checkpoint gets the loader's state in `loader.pt`, and
    `train(resume_from_checkpoint=...)` loads it. A folder without that file is not taken for a
    checkpoint: it was not written to its end.

    `evaluate()` and `eval_strategy` read all of `eval_loader`. Its loss is the sum over the targets of all batches and
    ranks, divided by their number: Trainer's own would be the mean of the batches' means.

    Args:
        loader: made with `format="hf"` or `"hf_flash"`, after TrainingArguments, which join the process group; with
            `whole_state=True` on several ranks, as what rank 0 has is saved.
        eval_loader: of a validation set (`HoldOut("val", ...)`) or with `epochs`, in the same formats; or several by
            name, as Trainer takes datasets. `evaluate(another_loader)` works, too.

    Raises:
        ConfigError: TrainingArguments without `ignore_data_skip=True`: then Trainer would skip the batches before the
            checkpoint a second time, as the loader's state is after them already. An `eval_loader` that has no end.
        StateError: several ranks and a loader without `whole_state`; on resuming, a checkpoint without `loader.pt`.
    """

    def __init__(
        self,
        *args: Any,
        loader: PackedDataLoader,
        eval_loader: PackedDataLoader | dict[str, PackedDataLoader] | None = None,
        **options: Any,
    ) -> None:
        if eval_loader is not None:
            for each in eval_loader.values() if isinstance(eval_loader, dict) else [eval_loader]:
                _check_evaluation(each)
            options["eval_dataset"] = eval_loader
        self._sums: list[torch.Tensor] | None = None
        """[2] for each batch of the evaluation that is under way: its summed loss, and its targets."""
        self._is_finished = False
        """Whether the run that `train` resumes has all of its steps: Trainer would make one more."""
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

    def get_train_dataloader(self) -> PackedDataLoader | list[Any]:
        """The loader; nothing where the run that is resumed has all of its `max_steps`.

        Trainer's own method would deal out a dataset's packs over the ranks a second time.
        """
        return [] if self._is_finished else self.loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The loader to evaluate on: the argument, or the one of that name, or `eval_loader`; else Trainer's own."""
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(chosen, str):
            chosen = self.eval_dataset[chosen]
        if isinstance(chosen, PackedDataLoader | PackedDataset):
            _check_evaluation(chosen)
            return chosen
        return super().get_eval_dataloader(eval_dataset)

    def num_examples(self, dataloader: Any) -> int:
        """Packs of all ranks, fillers among them."""
        if not isinstance(dataloader, PackedDataLoader):
            return int(super().num_examples(dataloader))
        return len(dataloader) * dataloader.batch_size * dataloader.dp_size

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **options: Any) -> Any:
        """As Trainer's own, with the loss of a target instead of the mean of the batches' means."""
        sums: list[torch.Tensor] = []
        self._sums = sums if isinstance(dataloader, PackedDataLoader) else None
        try:
            output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **options)
        finally:
            self._sums = None
        if sums:  # on all ranks, which have as many batches
            loss, targets = self.accelerator.reduce(torch.stack(sums).sum(dim=0)).tolist()
            output.metrics[f"{metric_key_prefix}_loss"] = loss / targets if targets else float("nan")
        return output

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        """As Trainer's own; in an evaluation the mean of this rank's targets, which are counted."""
        if self._sums is None:
            return super().compute_loss(model, inputs, *args, **options)
        targets = inputs["num_targets"].sum()
        # Without the number of targets, which counts those of all ranks, a model gives the mean of its own.
        found = super().compute_loss(model, inputs, *args, **{**options, "num_items_in_batch": None})
        mean = (found[0] if isinstance(found, tuple) else found).detach().mean().float()
        # A batch of fillers has no targets, and the mean of none is no number.
        self._sums.append(torch.stack([torch.where(targets > 0, mean * targets, 0.0), targets.float()]))
        return found

    def train(self, resume_from_checkpoint: "str | bool | None" = None, *args: Any, **options: Any) -> Any:
        """As Trainer's own; loads the loader's state from the checkpoint first.

        True takes the newest checkpoint in `output_dir` that is whole, and begins a new run where there is none. A
        checkpoint of a run that has made `max_steps` ends at once, without a step more.
        """
        self._is_finished = False
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
            self._is_finished = 0 < self.args.max_steps <= _steps_of(path.parent)
        return super().train(resume_from_checkpoint, *args, **options)


def _check_evaluation(loader: PackedDataLoader | PackedDataset) -> None:
    """Refuse what Trainer could not read to its end."""
    if isinstance(loader, PackedDataset):
        raise ConfigError(
            "Trainer cannot evaluate on a PackedDataset: give PackedTrainerMixin eval_loader=PackedDataLoader(dataset, "
            'batch_size, format="hf")'
        )
    if loader.dataset.epochs is None:
        raise ConfigError(
            f"an evaluation reads eval_loader to its end each time, and {loader!r} has none: make its dataset with "
            'hold_out=HoldOut("val", fraction=...), or with epochs=1 from shards that are not trained on'
        )


def _steps_of(checkpoint: Path) -> int:
    """How many steps the run of a checkpoint had made."""
    from transformers import TrainerState

    return int(TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).global_step)


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
