"""Two ranks under Lightning's DDP: fits that save, and fits that go on from what was saved.

In:  arguments FOLDER (of shards) and PLACE. Out: PLACE/rank0.json, ...: what each fit trained on, by global numbers.
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
import torch._dynamo  # what DDP imports, once for all ranks
import torch.distributed as dist
from pytorch_lightning.callbacks import ModelCheckpoint

import streampack
from streampack.integrations import LightningLoader
from streampack.testing import ByteTokenizer

warnings.simplefilter("ignore")


class Watching(lightning.LightningModule):
    """Trains on nothing much and remembers the global numbers of its packs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[list[int]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.seen.append(batch["pack_numbers"].tolist())
        return self.layer(torch.ones(1, 1)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TakingItself(Watching):
    """Takes from the iterator as many batches as it wants, here two a step."""

    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        for _ in range(2):
            batch, _, _ = next(dataloader_iter)
            loss = super().training_step(batch, 0)
        return loss


class Validating(Watching):
    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.validated = batch["pack_numbers"].tolist()


def fit(
    loader: Any, *, checkpoint: str | None = None, place: Path | None = None, bare: bool = False, **options: Any
) -> tuple[lightning.Trainer, list[list[int]]]:
    """What was trained on in a fit, which saves every second step in `place`; `bare`: without the adapter."""
    saves = [] if place is None else [ModelCheckpoint(place, filename="{step}", save_top_k=-1, every_n_train_steps=2)]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        accelerator="cpu", callbacks=saves, enable_checkpointing=bool(saves), **quiet, **options
    )
    model = Watching()
    trainer.fit(model, loader if bare else LightningLoader(loader, trainer), ckpt_path=checkpoint)
    return trainer, model.seen


def main(folder: str, place: Path) -> None:
    def loader(**options: Any) -> streampack.PackedDataLoader:
        dataset = streampack.PackedDataset(f"{folder}/*.tar", ByteTokenizer(), 32, num_lanes=4)
        return streampack.PackedDataLoader(dataset, 2, **{"num_workers": 0, **options}, provenance=True)

    options: dict[str, Any] = {"strategy": "ddp", "devices": 2}
    # The loader is made before there is a process group, as scripts for Lightning do.
    with loader(whole_state=True, num_workers=1, multiprocessing_context="fork") as first:
        trainer, seen = fit(first, place=place / "saved", max_steps=5, **options)
        trainer.save_checkpoint(place / "end.ckpt")
    outcome: dict[str, Any] = {"first": seen}
    for name in ("saved/step=2.ckpt", "end.ckpt"):
        with loader(whole_state=True) as second:
            outcome[name] = fit(second, checkpoint=str(place / name), max_steps=7, **options)[1]
    with loader() as alone:
        try:
            fit(alone, place=place / "never", max_steps=5, **options)
        except streampack.StreampackError as error:
            outcome["refused"] = f"{type(error).__name__}: {error}"
    (place / f"rank{os.environ['RANK']}.json").write_text(json.dumps(outcome))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
