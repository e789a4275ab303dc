"""Trains a small transformer on streamed packs, with checkpoints that move to any number of ranks.

On GPUs where there is one for each rank: FlexAttention, which leaves out what no row may see. Else on the CPU.

    torchrun --standalone --nproc-per-node 2 -m streampack.examples.train RUN --steps 60 --workers 2

In:  shards and a tokenizer (by default the demo data that ship with the package), and the folder RUN.
Out: in RUN a checkpoint every few steps, and a log per rank with the loss and a digest of every pack trained on.

Started again with the same RUN it continues from the newest whole checkpoint, on as many ranks and workers as it is
given then: the global batches stay the same, and `streampack demo` runs this program to show it. Never: a folder
named `step-...` that is half a checkpoint.
"""

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from streampack import PackedDataLoader, PackedDataset, SentencePieceTokenizer
from streampack.examples.running import backend_for, local_device, on_device, print_finished
from streampack.formats import block_causal_mask, document_mask

DATA = Path(__file__).parent / "data"
SHARDS = str(DATA / "devil-*.tar*")
TOKENIZER = str(DATA / "devil.model")
SEQ_LEN = 128
NUM_LANES = 24
"""The run fits 1, 2, 3, 4, 6, 8, 12 or 24 ranks."""
PACKS_PER_STEP = 8
"""The global batch: what the optimizer sees does not depend on how many ranks share it."""
PACK_FIELDS = ("tokens", "labels", "position_ids", "segment_ids")


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From query, key and value [B, heads, T, width of a head] to what each row attends to, of the same shape."""


def attention_by_mask(segments: Tensor) -> Attend:
    """Attention in which a row sees its own document up to itself, by a mask of all pairs of rows."""
    return partial(nn.functional.scaled_dot_product_attention, attn_mask=block_causal_mask(segments)[:, None])


def attention_by_blocks(segments: Tensor) -> Attend:
    """The same by FlexAttention, which skips each block of pairs in which no row sees another."""
    num_packs, seq_len = segments.shape
    mask = create_block_mask(document_mask(segments), num_packs, None, seq_len, seq_len, device=str(segments.device))
    return partial(compiled_flex_attention(), block_mask=mask)


@cache
def compiled_flex_attention() -> Callable[..., Tensor]:
    """Compiled once; uncompiled it would make all pairs."""
    return torch.compile(flex_attention)


class Block(nn.Module):
    """Attention inside each document of a pack, then a perceptron."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: Tensor, attend: Attend) -> Tensor:
        """From [B, T, width] to [B, T, width]."""
        projected = self.query_key_value(self.attention_norm(hidden)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        attended = attend(query, key, value)
        hidden = hidden + self.attention_out(attended.transpose(1, 2).flatten(2))
        result: Tensor = hidden + self.perceptron(hidden)
        return result


class Transformer(nn.Module):
    """A decoder-only language model that knows about packs: no row looks into another document."""

    def __init__(
        self, vocab_size: int, seq_len: int, *, width: int = 128, num_layers: int = 2, num_heads: int = 4
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(seq_len, width)
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits [B, T, vocab_size] of a batch of packs."""
        segments = batch["segment_ids"]
        attend = attention_by_blocks(segments) if segments.is_cuda else attention_by_mask(segments)
        # Positions restart in every document, so a document looks the same wherever it stands in a pack.
        hidden = self.token_embedding(batch["tokens"]) + self.position_embedding(batch["position_ids"])
        for block in self.blocks:
            hidden = block(hidden, attend)
        logits: Tensor = self.norm(hidden) @ self.token_embedding.weight.T
        return logits


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Mapping[str, Tensor]) -> float:
    """One step over the global batch; the mean loss of its targets, equal on all ranks.

    Ranks hold different numbers of targets. Dividing by all of them, and adding gradients up rather than averaging
    them, gives every target the same weight on any number of ranks.
    """
    num_targets = batch["num_targets"].sum()
    dist.all_reduce(num_targets)
    logits = model(batch)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum") / num_targets
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    total = loss.detach()
    dist.all_reduce(total)
    return float(total)


def save(run: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, loader: PackedDataLoader) -> None:
    """Write a checkpoint under another name, and give it its own once all ranks have written."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"step": step, "model": model_state, "optimizer": optimizer_state, "loader": loader}
    unfinished = run / f"unfinished-{step:06d}"
    # The loader is `Stateful`: dcp asks it for its lanes. Rank 0 comes back when the parts of all ranks are on disk.
    dcp.save(state, checkpoint_id=unfinished)  # type: ignore[attr-defined]  # torch's types leave it out
    if dist.get_rank() == 0:
        unfinished.rename(run / f"step-{step:06d}")


def resume(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, loader: PackedDataLoader) -> int:
    """Load the newest whole checkpoint, of any number of ranks; returns its step, 0 without a checkpoint."""
    checkpoints = sorted(run.glob("step-*"))
    if not checkpoints:
        return 0
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"step": 0, "model": model_state, "optimizer": optimizer_state}
    dcp.load(state, checkpoint_id=checkpoints[-1])  # type: ignore[attr-defined]  # as above
    # Each lane of this rank is read from whichever rank wrote it, with all that it has skipped.
    loader.load_checkpoint(checkpoints[-1])
    set_state_dict(model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)
    return int(state["step"])


def pack_digests(batch: Mapping[str, Tensor]) -> list[str]:
    """A digest of each pack of a batch, exactly as the model gets it."""
    rows = zip(*(batch[name].numpy() for name in PACK_FIELDS))
    return [hashlib.blake2b(b"".join(row.tobytes() for row in pack), digest_size=8).hexdigest() for pack in rows]


def make_dataset(shards: str, tokenizer: SentencePieceTokenizer, *, seed: int) -> PackedDataset:
    """The packs of the run: the same for every number of ranks and workers."""
    return PackedDataset(shards, tokenizer, SEQ_LEN, num_lanes=NUM_LANES, seed=seed)


def train(
    run: Path,
    device: torch.device,
    *,
    shards: str,
    tokenizer_path: str,
    num_steps: int,
    checkpoint_every: int,
    num_workers: int,
    seed: int,
) -> None:
    """Train up to `num_steps` on this rank, from the newest checkpoint in `run`; needs a process group."""
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    if PACKS_PER_STEP % num_ranks:
        raise SystemExit(f"{PACKS_PER_STEP} packs a step cannot be shared equally by {num_ranks} ranks")
    tokenizer = SentencePieceTokenizer(tokenizer_path)
    torch.manual_seed(seed)  # every rank begins with the same weights
    model = Transformer(tokenizer.vocab_size, SEQ_LEN).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    dataset = make_dataset(shards, tokenizer, seed=seed)
    with PackedDataLoader(dataset, PACKS_PER_STEP // num_ranks, num_workers=num_workers) as loader:
        first_step = resume(run, model, optimizer, loader) + 1
        if first_step > num_steps:
            if rank == 0:
                print_finished(run, first_step - 1, f"--steps {first_step - 1 + checkpoint_every}")
            return
        # A file of its own for each attempt: what was trained on before a crash stays on record.
        name = f"log-from-{first_step:06d}-rank-{rank}-of-{num_ranks}.jsonl"
        with (run / name).open("a") as log:
            # The range comes first, so that no batch is taken after the last step.
            for step, batch in zip(range(first_step, num_steps + 1), loader):
                loss = train_step(model, optimizer, on_device(batch, device))
                # Pack j of this rank's batch: ranks take the global packs in turn.
                first_pack = (step - 1) * PACKS_PER_STEP + rank
                entry = {
                    "step": step,
                    "ranks": num_ranks,
                    "workers": num_workers,
                    "pid": os.getpid(),
                    "loss": loss,
                    "packs": {first_pack + j * num_ranks: digest for j, digest in enumerate(pack_digests(batch))},
                    "loader_digest": loader.digest(),
                }
                print(json.dumps(entry), file=log, flush=True)
                if rank == 0:
                    print(f"step {step:4d}  loss {loss:.3f}", flush=True)
                if step % checkpoint_every == 0 or step == num_steps:
                    save(run, step, model, optimizer, loader)


def main() -> None:
    """Take the arguments and join the process group that torchrun describes."""
    parser = argparse.ArgumentParser(description="Train a small transformer on streamed packs; start it with torchrun.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of checkpoints and logs; again: continue")
    parser.add_argument("--shards", default=SHARDS, help="a glob, braces, a folder or @manifest.jsonl")
    parser.add_argument("--tokenizer", default=TOKENIZER, help="a SentencePiece model")
    parser.add_argument("--steps", type=int, default=60, help="steps of the whole run (default: 60)")
    parser.add_argument("--checkpoint-every", type=int, default=20, metavar="STEPS", help="(default: 20)")
    parser.add_argument("--workers", type=int, default=2, help="loader processes of each rank (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of shards and of the weights (default: 0)")
    options = parser.parse_args()
    device = local_device()
    dist.init_process_group(backend_for(device))
    try:
        options.run.mkdir(parents=True, exist_ok=True)
        if dist.get_rank() == 0:
            for unfinished in options.run.glob("unfinished-*"):  # a crash in the middle of a checkpoint
                shutil.rmtree(unfinished)
        train(
            options.run,
            device,
            shards=options.shards,
            tokenizer_path=options.tokenizer,
            num_steps=options.steps,
            checkpoint_every=options.checkpoint_every,
            num_workers=options.workers,
            seed=options.seed,
        )
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
