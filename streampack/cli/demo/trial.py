"""A training run that is killed and goes on elsewhere, and whether it saw the packs of a run that never stopped.

    Training(folder, ranks=2, workers=2)   torchrun with `streampack.examples.train`; killed after a checkpoint
    Training(folder, ranks=1, workers=3)   the same folder again: goes on from the checkpoint
    make_reference(...)                    the same global packs read in this process, without training or resume
    judge(read_attempts(folder), ...)      every pack that any attempt trained on, against the reference

In:  the demo data and a folder. Out: the example's checkpoints and logs in it, and a `Verdict`.
Never true: that a process of a `Training` outlives its `with`. Nothing is printed here.
"""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Self

import msgspec

from streampack.cli.console import count
from streampack.errors import StreampackError
from streampack.examples.train import (
    PACKS_PER_STEP,
    SHARDS,
    TOKENIZER,
    make_dataset,
    pack_digests,
)
from streampack.loader.loader import PackedDataLoader
from streampack.tokenizers.loading import SentencePieceTokenizer

_STALLED_S = 120.0
"""A training without a new step for so long has failed."""
_POLL_S = 0.05


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank logs of one step; the fields are those of the example's JSON lines."""

    step: int
    ranks: int
    workers: int
    pid: int
    loss: float
    packs: dict[int, str]
    """Digest by global pack number."""
    loader_digest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What the ranks of one training logged, from its start to its end or death."""

    ranks: int
    workers: int
    entries: dict[int, list[Entry]]
    """By step, one of each rank that got so far."""

    @property
    def first_step(self) -> int:
        return min(self.entries)

    @property
    def last_step(self) -> int:
        return max(self.entries)

    def packs(self, step: int) -> dict[int, str]:
        """Digests by global pack number, over all ranks, ascending."""
        return dict(sorted(pack for entry in self.entries.get(step, ()) for pack in entry.packs.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The packs of a run that was never interrupted."""

    packs: list[str]
    """A digest for each global pack number."""
    loader_digest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether the attempts trained on the reference's packs, and on all of them."""

    ok: bool
    resumed: bool
    """Whether each attempt but the first went on from a checkpoint."""
    same_packs: bool
    loss_fell: bool
    num_packs: int
    packs_compared: int
    """More than `num_packs` by what was trained on again after the kill."""
    repeated_steps: list[int]
    differing_packs: list[int]
    missing_packs: list[int]
    loader_digest: str
    """Of the last attempt, carried through its checkpoint; over all ranks."""
    reference_digest: str
    first_loss: float
    last_loss: float


class Training:
    """`torchrun` with the example on one topology, from the start of the `with` until its end at the latest."""

    def __init__(
        self, folder: Path, *, ranks: int, workers: int, num_steps: int, checkpoint_every: int, seed: int
    ) -> None:
        self._folder = folder
        self._ranks = ranks
        self._arguments = [
            *("--steps", str(num_steps), "--checkpoint-every", str(checkpoint_every)),
            *("--workers", str(workers), "--seed", str(seed)),
        ]
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        # Torch leaves log folders where a launcher is killed: give it a place for temporary files that goes away.
        scratch = self._cleanup.enter_context(
            tempfile.TemporaryDirectory(prefix="streampack-", ignore_cleanup_errors=True)
        )
        self._output = Path(scratch, "output.txt")
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 (our own module, with numbers and a folder as arguments)
                [
                    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost"),
                    *("--nproc-per-node", str(self._ranks), "-m", "streampack.examples.train", str(self._folder)),
                    *self._arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": scratch},
                start_new_session=True,
            )
        self._cleanup.callback(self._end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def steps(self) -> Iterator[Entry]:
        """What rank 0 logged last, over and over, until the training has ended well.

        Raises:
            StreampackError: it failed, or stands still.
        """
        newest, moved = None, time.monotonic()
        while True:
            code = self._process.poll()
            for entry in self._entries("rank-0")[-1:]:
                if entry != newest:
                    newest, moved = entry, time.monotonic()
                yield entry
            if code == 0:
                return
            if code is not None or time.monotonic() - moved > _STALLED_S:
                what = f"ended with exit code {code}" if code else f"has made no step for {_STALLED_S:.0f} seconds"
                said = self._output.read_text(errors="replace").strip()
                raise StreampackError(f"the training on {count(self._ranks, 'rank')} {what}; it said:\n{said[-4000:]}")
            time.sleep(_POLL_S)

    def kill(self) -> None:
        """SIGKILL to the launcher, the ranks and their workers, as if the machine were gone."""
        # torchrun puts every rank into a session of its own, so its group alone is not all of it. It goes first: it
        # would notice that its ranks die.
        for leader in (self._process.pid, *{entry.pid for entry in self._entries("rank-*")}):
            with suppress(ProcessLookupError):
                if os.getpgid(leader) == leader:
                    os.killpg(leader, signal.SIGKILL)
        self._process.wait()

    def _entries(self, rank: str) -> list[Entry]:
        logs = sorted(self._folder.glob(f"log-*-{rank}-of-{self._ranks}.jsonl"))
        return [entry for log in logs for entry in _read_log(log)]

    def _end(self) -> None:
        if self._process.poll() is not None:
            return
        self._process.terminate()  # torchrun ends its ranks, and kills those that do not want to
        try:
            self._process.wait(timeout=45)
        except subprocess.TimeoutExpired:
            self.kill()


def read_attempts(folder: Path) -> list[Attempt]:
    """The attempts that left logs in a folder, in the order of their first steps.

    Raises:
        StreampackError: there are none.
    """
    found: dict[tuple[str, str], dict[int, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for log in sorted(folder.glob("log-*.jsonl")):
        attempt, _, ranks = log.stem.partition("-rank-")
        for entry in _read_log(log):
            found[attempt, ranks.partition("-of-")[2]][entry.step].append(entry)
    if not found:
        raise StreampackError(f"{folder} holds no log of a training: `streampack demo --keep {folder}` makes them")
    attempts = []
    for entries in found.values():
        first = next(iter(entries.values()))[0]
        attempts.append(Attempt(ranks=first.ranks, workers=first.workers, entries=dict(entries)))
    return sorted(attempts, key=lambda attempt: attempt.first_step)


def make_reference(num_steps: int, *, seed: int) -> Reference:
    """The packs of so many steps, read in this process from the first to the last."""
    dataset = make_dataset(SHARDS, SentencePieceTokenizer(TOKENIZER), seed=seed)
    with PackedDataLoader(dataset, PACKS_PER_STEP, num_workers=0, dp_rank=0, dp_size=1) as loader:
        packs = [digest for batch in islice(loader, num_steps) for digest in pack_digests(batch)]
        return Reference(packs=packs, loader_digest=loader.digest())


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
    # A tenth of the steps on either side: single steps go up and down.
    share = max(len(losses) // 10, 1)
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


def _read_log(path: Path) -> list[Entry]:
    # Behind the last line break is a line that is still being written, or that a kill has cut off.
    lines, _, _ = path.read_bytes().rpartition(b"\n")
    return [msgspec.json.decode(line, type=Entry) for line in lines.splitlines()]
