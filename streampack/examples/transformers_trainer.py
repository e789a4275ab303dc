"""Transformers: its Trainer, with packs whose documents its own models keep apart by their position ids.

    python -m streampack.examples.transformers_trainer RUN                      (or torchrun ... -m ... RUN)
    python -m streampack.examples.transformers_trainer RUN --format hf_flash

In:  the folder RUN. Out: a line a step, every few steps the loss of what is held out, and the Trainer's checkpoints in
RUN, each with the loader's state in it.
Killed and started again it continues from the newest one.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from streampack import HoldOut, PackedDataLoader, PackedDataset
from streampack.examples.devil import SEQ_LEN, SHARDS, TOKENIZER, VOCAB_SIZE, digest_of, print_step
from streampack.examples.running import has_gpus, print_finished
from streampack.integrations import PackedTrainerMixin


class PackedTrainer(PackedTrainerMixin, Trainer):
    """A Trainer that takes the loader as it is, and whose checkpoints hold its state; and prints each step."""

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, *args, **options)
        if self.is_world_process_zero():
            digest = digest_of(inputs["input_ids"], inputs["labels"])
            print_step(self.state.global_step + 1, loss.item(), digest)
        return loss


def train(run: Path, *, batch_format: str, num_steps: int, checkpoint_every: int, num_workers: int) -> None:
    """Train up to `num_steps` from the newest checkpoint in `run`."""
    arguments = TrainingArguments(
        output_dir=str(run),
        max_steps=num_steps,  # the loader has no end, and so no length
        save_steps=checkpoint_every,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=checkpoint_every,
        learning_rate=2e-3,
        # Or Trainer would read all the batches before the checkpoint again: the loader's state is after them already.
        ignore_data_skip=True,
        ddp_find_unused_parameters=False,
        use_cpu=not has_gpus(),
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",  # print_step shows each step
    )
    done = max((int(path.parent.name.rpartition("-")[2]) for path in run.glob("checkpoint-*/loader.pt")), default=0)
    if done >= num_steps:  # Trainer would end at once, and say nothing
        if arguments.process_index == 0:
            print_finished(run, done, f"--steps {done + checkpoint_every}")
        return
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
    dataset = PackedDataset(SHARDS, TOKENIZER, SEQ_LEN, num_lanes=24, hold_out=HoldOut("train", fraction=0.05))
    held_out = PackedDataset(SHARDS, TOKENIZER, SEQ_LEN, hold_out=HoldOut("val", fraction=0.05))
    # Made after TrainingArguments, which join the process group that the loaders take their rank from.
    with (
        PackedDataLoader(dataset, 4, num_workers=num_workers, format=batch_format, whole_state=True) as loader,
        PackedDataLoader(held_out, 4, num_workers=num_workers, format=batch_format) as eval_loader,
    ):
        trainer = PackedTrainer(LlamaForCausalLM(config), arguments, loader=loader, eval_loader=eval_loader)
        trainer.train(resume_from_checkpoint=True)


def main() -> None:
    """Take the arguments."""
    parser = argparse.ArgumentParser(description="Train with Transformers; the same command continues after a kill.")
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
