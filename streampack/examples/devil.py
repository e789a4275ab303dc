"""What the trainers' examples share: the demo corpus, and the line that each prints for a step.

    step 7 loss 5.283192157745361 batch d2a09e57

Nothing in here is needed to use streampack: point `SHARDS` and `TOKENIZER` at your own, and log as your trainer does.
"""

import xxhash
from torch import Tensor

from streampack.examples.train import SHARDS, TOKENIZER

__all__ = ["SEQ_LEN", "SHARDS", "TOKENIZER", "VOCAB_SIZE", "digest_of", "print_step"]

SEQ_LEN = 128
VOCAB_SIZE = 2048
"""Of the demo tokenizer."""


def digest_of(*fields: Tensor) -> int:
    """A digest of what a step trained on; the ranks' add up, modulo 2**32, to the global batch's.

    Args:
        fields: the batch's tokens, labels, ..., each [packs, rows] (or [rows], which counts as one pack).
    """
    packs = zip(*(field.detach().reshape(-1, field.shape[-1]).cpu().numpy() for field in fields))
    return sum(xxhash.xxh32_intdigest(b"".join(row.tobytes() for row in pack)) for pack in packs) % 2**32


def print_step(step: int, loss: float, digest: int) -> None:
    """One line, with all digits of the loss: two runs are the same run if their lines are."""
    # The line and its end at once: torchrun's processes write unbuffered, and another one's line could come between.
    print(f"step {step} loss {loss!r} batch {digest % 2**32:08x}\n", end="", flush=True)
