"""Lightning: its own checkpoints carry the loader's state, and `ckpt_path="last"` brings it back.

    python -m streampack.examples.lightning_trainer RUN --devices 2

In:  the folder RUN. Out: a line a step, and RUN/last.ckpt every few steps: model, optimizer and loader in one.
Killed and started again it continues from there. (`lightning.pytorch` is the same as `pytorch_lightning`.)
"""

import argparse
from pathlib import Path

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from streampack import PackedDataLoader, PackedDataset
from streampack.examples.devil import SEQ_LEN, SHARDS, TOKENIZER, VOCAB_SIZE, digest_of, print_step
from streampack.examples.running import print_finished
from streampack.examples.train import Transformer
from streampack.integrations import LightningLoader

GLOBAL_BATCH = 8


class Packs(lightning.LightningDataModule):
    """The data; Lightning asks for the loader when it has its ranks, and its checkpoints hold the loader's state."""

    def __init__(self, num_workers: int) -> None:
        super().__init__()
        self.num_workers = num_workers

    def train_dataloader(self) -> LightningLoader:
        dataset = PackedDataset(SHARDS, TOKENIZER, SEQ_LEN, num_lanes=24)
        batch_size = GLOBAL_BATCH // self.trainer.world_size
        # Lightning saves the state that the first rank's loader gives, so it has to be that of all ranks.
        self.loader = PackedDataLoader(dataset, batch_size, num_workers=self.num_workers, whole_state=True)
        return LightningLoader(self.loader, self.trainer)

    def teardown(self, stage: str) -> None:
        self.loader.close()


class Model(lightning.LightningModule):
    """A tiny decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Transformer(VOCAB_SIZE, SEQ_LEN)

    has_trained = False

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.has_trained = True
        logits = self.decoder(batch)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
        # Ranks hold different numbers of targets: divide by all of them. DDP averages gradients over the ranks, so
        # multiply by those; then each target weighs the same on any number of ranks.
        mean_loss: Tensor = loss / self.total(batch["num_targets"].sum()) * self.trainer.world_size
        self.show(mean_loss.detach(), batch)
        return mean_loss

    def show(self, loss: Tensor, batch: dict[str, Tensor]) -> None:
        mean_loss = self.total(loss.clone()) / self.trainer.world_size  # of what DDP averages
        digest = self.total(torch.tensor(digest_of(batch["tokens"], batch["labels"]), device=self.device))
        if self.trainer.is_global_zero:
            print_step(self.trainer.global_step + 1, mean_loss.item(), int(digest))

    def total(self, value: Tensor) -> Tensor:
        """The sum over all ranks; it may be made in place."""
        result: Tensor = self.trainer.strategy.reduce(value, reduce_op="sum")
        return result

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def train(run: Path, *, num_steps: int, checkpoint_every: int, num_workers: int, devices: int) -> None:
    """Train up to `num_steps` from the checkpoint in `run`."""
    lightning.seed_everything(0, verbose=False)
    trainer = lightning.Trainer(
        max_steps=num_steps,
        callbacks=[ModelCheckpoint(run, every_n_train_steps=checkpoint_every, save_top_k=0, save_last=True)],
        gradient_clip_val=1.0,
        accelerator="gpu" if torch.cuda.device_count() >= devices else "cpu",
        devices=devices,
        logger=False,  # show() prints each step
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Model()
    trainer.fit(model, datamodule=Packs(num_workers), ckpt_path="last")
    if not model.has_trained and trainer.is_global_zero:
        print_finished(run, trainer.global_step, f"--steps {trainer.global_step + checkpoint_every}")


def main() -> None:
    """Take the arguments."""
    parser = argparse.ArgumentParser(description="Train with Lightning; the same command continues after a kill.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=20, help="steps of the whole run (default: 20)")
    parser.add_argument("--checkpoint-every", type=int, default=5, metavar="STEPS", help="(default: 5)")
    parser.add_argument("--workers", type=int, default=2, help="loader processes of each rank (default: 2)")
    parser.add_argument("--devices", type=int, default=1, help="ranks (default: 1)")
    options = parser.parse_args()
    train(
        options.run,
        num_steps=options.steps,
        checkpoint_every=options.checkpoint_every,
        num_workers=options.workers,
        devices=options.devices,
    )


if __name__ == "__main__":
    main()
