"""Whether the attempts of a training had the packs of a run that never stopped.

In:  the attempts' logs. Out: a `Reference`, read in this process without training or resume, and a `Verdict`.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import NamedTuple

from streampack.cli.demo.attempts import Attempt
from streampack.examples.train import PACKS_PER_STEP, SHARDS, TOKENIZER, make_dataset, pack_digests
from streampack.loader.loader import PackedDataLoader
from streampack.tokenizers.sentencepiece import SentencePieceTokenizer

LOSS_STEPS = 3
"""The first and last steps whose mean losses are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The packs of a run that was never interrupted."""

    packs: list[str]
    """A digest for each global pack number."""
    loader_digest: int
    """Its 64 bits without a sign."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result of comparing all attempts with the reference."""

    ok: bool
    resumed: bool
    """Whether there was a second attempt, and each attempt after the first continued from a checkpoint."""
    same_packs: bool
    loss_fell: bool
    num_packs: int
    packs_compared: int
    """`num_packs`, and those that were trained on again after the kill."""
    repeated_steps: list[int]
    differing_packs: list[int]
    missing_packs: list[int]
    loader_digest: str
    """Of the last attempt, carried through its checkpoint; over all ranks."""
    reference_digest: str
    first_loss: float
    """Mean of the first steps; of a step that came twice, the loss of the later attempt."""
    last_loss: float
    """Mean of the last steps."""


def make_reference(num_steps: int, *, seed: int) -> Reference:
    """The packs of so many steps, read in this process from the first to the last."""
    dataset = make_dataset(SHARDS, SentencePieceTokenizer(TOKENIZER), seed=seed)
    with PackedDataLoader(dataset, PACKS_PER_STEP, num_workers=0, dp_rank=0, dp_size=1) as loader:
        packs = [digest for batch in islice(loader, num_steps) for digest in pack_digests(batch)]
        return Reference(packs=packs, loader_digest=loader.digest() % 2**64)


def judge(attempts: Sequence[Attempt], reference: Reference) -> Verdict:
    """Whether every pack of every attempt is the reference's, none is missing, and the loss went down."""
    compared = 0
    seen: set[int] = set()
    differing: set[int] = set()
    losses: dict[int, float] = {}
    times: dict[int, int] = defaultdict(int)
    for attempt in attempts:
        for step, entries in attempt.entries.items():
            losses[step] = entries[0].loss
            times[step] += 1
            packs = attempt.packs(step)
            compared += len(packs)
            seen |= packs.keys()
            differing |= {number for number, digest in packs.items() if reference.packs[number] != digest}
    missing = sorted(set(range(len(reference.packs))) - seen)
    last = attempts[-1].entries[attempts[-1].last_step]
    loader_digest = sum(entry.loader_digest for entry in last) % 2**64
    # Some steps on either side, which the table shows: single ones go up and down.
    share = max(min(LOSS_STEPS, len(losses) // 2), 1)
    ordered = [losses[step] for step in sorted(losses)]
    first_loss, last_loss = fmean(ordered[:share]), fmean(ordered[-share:])
    resumed = len(attempts) > 1 and all(attempt.first_step > 1 for attempt in attempts[1:])
    same_packs = not differing and not missing and loader_digest == reference.loader_digest
    return Verdict(
        ok=resumed and same_packs and last_loss < first_loss,
        resumed=resumed,
        same_packs=same_packs,
        loss_fell=last_loss < first_loss,
        num_packs=len(reference.packs),
        packs_compared=compared,
        repeated_steps=sorted(step for step, number in times.items() if number > 1),
        differing_packs=sorted(differing),
        missing_packs=missing,
        loader_digest=f"{loader_digest:016x}",
        reference_digest=f"{reference.loader_digest:016x}",
        first_loss=first_loss,
        last_loss=last_loss,
    )


def step_digest(packs: Iterable[str]) -> str:
    """One digest for the packs of a step, given in their global order."""
    return hashlib.blake2b("".join(packs).encode(), digest_size=6).hexdigest()


class StepComparison(NamedTuple):
    """One step in all attempts; None and "" for an attempt that did not get to it."""

    losses: list[float | None]
    digests: list[str]
    reference_digest: str
    same: bool


def compare_step(attempts: Sequence[Attempt], reference: Reference, step: int) -> StepComparison:
    """Compare what each attempt logged of a step with the reference."""
    numbers = range((step - 1) * PACKS_PER_STEP, step * PACKS_PER_STEP)
    same = True
    losses: list[float | None] = []
    digests = []
    for attempt in attempts:
        packs = attempt.packs(step)
        same = same and all(packs[number] == reference.packs[number] for number in packs)
        losses.append(attempt.entries[step][0].loss if packs else None)
        if packs and packs.keys() != set(numbers):  # the kill came when another rank had not logged the step yet
            digests.append(f"{len(packs)} of {PACKS_PER_STEP} packs")
        else:
            digests.append(step_digest(packs.values()) if packs else "")
    return StepComparison(losses, digests, step_digest(reference.packs[number] for number in numbers), same)
