"""Transformers: its Trainer, with packs whose documents its own models keep apart by their position ids.

    python -m streampack.examples.transformers_trainer RUN                      (or torchrun ... -m ... RUN)
    python -m streampack.examples.transformers_trainer RUN --format hf_flash

In:  the folder RUN. Out: a line a step, and the Trainer's checkpoints in RUN, each with the loader's state in it.
Killed and started again it goes on from the newest one.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from streampack import PackedDataLoader, PackedDataset
from streampack.examples.devil import SEQ_LEN, SHARDS, TOKENIZER, VOCAB_SIZE, digest_of, print_step

LOADER_FILE = "loader.pt"


class PackedTrainer(Trainer):
    """A Trainer that takes the loader as it is: it knows its rank, its batch size and where it stands."""

    def __init__(self, *args: Any, loader: PackedDataLoader, **options: Any) -> None:
        super().__init__(*args, **options)
        self.loader = loader
        self.add_callback(SaveLoader(loader))

    def get_train_dataloader(self) -> PackedDataLoader:
        # Trainer's own method would put a DataLoader and Accelerate's dispatcher around a dataset, which deal the packs
        # out a second time.
        return self.loader

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, *args, **options)
        if self.is_world_process_zero():
            digest = digest_of(inputs["input_ids"], inputs["labels"])
            print_step(self.state.global_step + 1, loss.item(), digest)
        return loss


class SaveLoader(TrainerCallback):
    """Puts the loader's state into each checkpoint that the Trainer has just written."""

    def __init__(self, loader: PackedDataLoader) -> None:
        self.loader = loader

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **options: Any) -> None:
        loader_state = self.loader.state_dict()  # on all ranks, which make it together (`whole_state`)
        if state.is_world_process_zero:
            path = Path(args.output_dir, f"checkpoint-{state.global_step}", LOADER_FILE)
            unfinished = path.with_suffix(".unfinished")
            torch.save(loader_state, unfinished)
            # The last file of a checkpoint, there as a whole or not at all: a kill in the middle leaves a folder
            # without it, which is no checkpoint.
            unfinished.rename(path)


def newest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    whole = (path.parent for path in run.glob(f"checkpoint-*/{LOADER_FILE}"))
    return max(whole, key=lambda folder: int(folder.name.removeprefix("checkpoint-")), default=None)


def train(run: Path, *, batch_format: str, num_steps: int, checkpoint_every: int, num_workers: int) -> None:
    """Train up to `num_steps` from the newest checkpoint in `run`."""
    arguments = TrainingArguments(
        output_dir=str(run),
        max_steps=num_steps,  # the loader has no end, and so no length
        save_steps=checkpoint_every,
        save_total_limit=2,
        learning_rate=2e-3,
        # Or Trainer would read all the batches before the checkpoint once more, to pass over them: the loader stands
        # behind them already.
        ignore_data_skip=True,
        ddp_find_unused_parameters=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",  # print_step shows each step
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=SEQ_LEN,
        attn_implementation="sdpa",  # on a GPU, for hf_flash: "flash_attention_2"
    )
    dataset = PackedDataset(SHARDS, TOKENIZER, SEQ_LEN, num_lanes=24)
    # Made behind TrainingArguments, which join the process group that the loader takes its rank from.
    with PackedDataLoader(
        dataset, batch_size=4, num_workers=num_workers, format=batch_format, whole_state=True
    ) as loader:
        trainer = PackedTrainer(LlamaForCausalLM(config), arguments, loader=loader)
        checkpoint = newest_checkpoint(run)
        if checkpoint is not None:
            loader.load_state_dict(torch.load(checkpoint / LOADER_FILE))
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))


def main() -> None:
    """Take the arguments."""
    parser = argparse.ArgumentParser(description="Train with Transformers; the same command goes on after a kill.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the checkpoints")
    parser.add_argument("--format", default="hf", choices=["hf", "hf_flash"], help="(default: hf)")
    parser.add_argument("--steps", type=int, default=20, help="steps of the whole run (default: 20)")
    parser.add_argument("--checkpoint-every", type=int, default=5, metavar="STEPS", help="(default: 5)")
    parser.add_argument("--workers", type=int, default=2, help="loader processes of each rank (default: 2)")
    options = parser.parse_args()
    train(
        options.run,
        batch_format=options.format,
        num_steps=options.steps,
        checkpoint_every=options.checkpoint_every,
        num_workers=options.workers,
    )


if __name__ == "__main__":
    main()
