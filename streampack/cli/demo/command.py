"""`streampack demo`: a training is killed and goes on with other ranks and workers; did it see the same batches?

    1  the data         the shards that ship with the package, and one pack
    2  the trainings    2 ranks x 2 workers, killed after a checkpoint; 1 rank x 3 workers from there to the end
    3  the comparison   with the same global packs read in one process without a stop

In:  the demo data; nothing from the network. Out: a table, a verdict, and exit code 0 only if every pack was the same,
bit for bit, and the loss went down. Unless `--keep` says so, no file and no process is left.
"""

import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from streampack.cli.arguments import Json
from streampack.cli.console import count, format_bytes, messages, output, print_json
from streampack.cli.demo.trial import (
    Attempt,
    Reference,
    Training,
    Verdict,
    judge,
    make_reference,
    read_attempts,
    step_digest,
)
from streampack.cli.peek.command import peek
from streampack.errors import ConfigError, StreampackError
from streampack.examples.train import DATA, NUM_LANES, PACKS_PER_STEP, SEQ_LEN, SHARDS, TOKENIZER


class _Topology(NamedTuple):
    ranks: int
    workers: int

    def __str__(self) -> str:
        return f"{count(self.ranks, 'rank')} x {count(self.workers, 'worker')}"


_KILLED = _Topology(ranks=2, workers=2)
_RESUMED = _Topology(ranks=1, workers=3)


def demo(
    *,
    steps: Annotated[int, typer.Option(min=12, help="Training steps, over both runs.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the shards.")] = 0,
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="Leave logs and checkpoints there.")] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Train nothing: compare what --keep has left there. Another --seed must fail."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Train on the demo data that ships, with a kill and a resume on another topology; compare every pack."""
    if keep is not None and check is not None:
        raise ConfigError("--keep and --check do not go together: --check trains nothing that could be kept")
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise ConfigError(f"--keep {keep}: the folder must be new or empty, else the training would go on from it")
    begin = time.monotonic()
    console = messages() if json else output()
    console.quiet = json and not console.is_terminal  # with --json, what goes on is for who looks at stderr
    with ExitStack() as stack:
        stack.enter_context(_exit_on_sigterm())
        if check is not None:
            folder = check
        else:
            if not json:
                _show_data(console, seed=seed)
            folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streampack-")))
            _train(console, folder, steps=steps, seed=seed)
        attempts = read_attempts(folder)
        reference = make_reference(max(attempt.last_step for attempt in attempts), seed=seed)
        verdict = judge(attempts, reference)
    seconds = time.monotonic() - begin
    if json:
        print_json(_report(attempts, reference, verdict, seconds))
    else:
        console.print(Text("\n3  The comparison", style="bold"))
        console.print(_table(attempts, reference))
        _show_verdict(console, attempts, verdict, seconds)
    if not verdict.ok:
        raise typer.Exit(1)


def _show_data(console: Console, *, seed: int) -> None:
    """What the shards are, and the first pack of the run."""
    shards = sorted(DATA.glob("devil-*.tar*"))
    size = format_bytes(sum(shard.stat().st_size for shard in shards))
    console.print(Text("1  The data", style="bold"))
    console.print(
        f'"The Devil\'s Dictionary" by Ambrose Bierce: {count(len(shards), "shard")}, {size}; {NUM_LANES} lanes, '
        f"packs of {SEQ_LEN} tokens. The first one:"
    )
    peek([SHARDS], tokenizer=TOKENIZER, seq_len=SEQ_LEN, num=1, num_lanes=NUM_LANES, seed=seed)


def _train(console: Console, folder: Path, *, steps: int, seed: int) -> None:
    """Both trainings, one after the other, in the same folder."""
    checkpoint_every = steps // 3
    kill_at = checkpoint_every + max(checkpoint_every // 3, 2)
    console.print(Text("\n2  The trainings", style="bold"))
    console.print(f"Each step is {PACKS_PER_STEP} packs of {SEQ_LEN} tokens, however many ranks share it.")
    for topology, stop in ((_KILLED, kill_at), (_RESUMED, None)):
        begin = time.monotonic()
        training = Training(
            folder,
            ranks=topology.ranks,
            workers=topology.workers,
            num_steps=steps,
            checkpoint_every=checkpoint_every,
            seed=seed,
        )
        with training, _bar(console, topology, steps) as show:
            for entry in training.steps():
                show(entry.step, entry.loss)
                if stop is not None and entry.step >= stop:
                    training.kill()
                    break
        attempt = read_attempts(folder)[-1]
        came_from = "" if attempt.first_step == 1 else f"from the checkpoint of step {attempt.first_step - 1} on: "
        end = Text("done", style="green") if stop is None else Text("killed with SIGKILL", style="red")
        what = f": {came_from}steps {attempt.first_step} to {attempt.last_step}, "
        console.print(Text.assemble((str(topology), "bold"), what, end, f" ({time.monotonic() - begin:.0f} s)"))
        if stop is not None and attempt.last_step == steps:
            raise StreampackError(
                f"the training was through with its {steps} steps before the kill: ask for more --steps"
            )


@contextmanager
def _bar(console: Console, topology: _Topology, steps: int) -> Iterator[Callable[[int, float], None]]:
    """A function that shows how far a training is, on a bar that goes away; nothing where nobody is looking."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(str(topology), total=steps, loss="starting")
        yield lambda step, loss: bar.update(task, completed=step, loss=f"loss {loss:.3f}")


def _table(attempts: Sequence[Attempt], reference: Reference) -> Table:
    """Step by step: the loss and a digest of the global batch in each training, and the reference's."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("step", justify="right")
    for attempt in attempts:
        table.add_column("loss", justify="right")
        table.add_column(str(_Topology(attempt.ranks, attempt.workers)).replace(" x ", "\n"))
    table.add_column("without\na stop")
    table.add_column("packs")
    last = 0
    for step in _steps_to_show(attempts):
        if step > last + 1:
            table.add_row("⋮")
        last = step
        row = _compare(attempts, reference, step)
        cells: list[str | Text] = [str(step)]
        for loss, digest in zip(row.losses, row.digests):
            cells += ["" if loss is None else f"{loss:.3f}", digest]
        verdict = Text("equal", style="green") if row.same else Text("different", style="bold red")
        table.add_row(*cells, row.reference_digest, verdict)
    return table


class _Row(NamedTuple):
    """One step in all attempts; None and "" where an attempt did not do it."""

    losses: list[float | None]
    digests: list[str]
    reference_digest: str
    same: bool


def _compare(attempts: Sequence[Attempt], reference: Reference, step: int) -> _Row:
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
    return _Row(losses, digests, step_digest(reference.packs[number] for number in numbers), same)


def _steps_to_show(attempts: Sequence[Attempt]) -> list[int]:
    """The first and last steps, and those around each stop."""
    last = max(attempt.last_step for attempt in attempts)
    shown = {1, 2, 3, last - 2, last - 1, last}
    for killed, resumed in pairwise(attempts):
        shown |= set(range(resumed.first_step - 2, killed.last_step + 3))
    # A gap of one step takes the line that the step would.
    shown |= {step + 1 for step in shown if step + 2 in shown}
    return sorted(step for step in shown if 1 <= step <= last)


def _show_verdict(console: Console, attempts: Sequence[Attempt], verdict: Verdict, seconds: float) -> None:
    """What was compared and what came out, in words."""
    repeated = verdict.repeated_steps
    again = f", those of steps {repeated[0]} to {repeated[-1]} twice" if repeated else ""
    console.print(f"\n{verdict.packs_compared:,} packs compared{again}: tokens, labels, positions and segments.")
    if verdict.differing_packs:
        console.print(
            Text(f"{_some(verdict.differing_packs)} differ from those of the run without a stop.", style="bold red")
        )
    if verdict.missing_packs:
        console.print(Text(f"{_some(verdict.missing_packs)} were never trained on.", style="bold red"))
    if verdict.loader_digest != verdict.reference_digest:
        text = f"The loader's digest is {verdict.loader_digest}, without a stop {verdict.reference_digest}."
        console.print(Text(text, style="bold red"))
    if not verdict.resumed:
        console.print(Text("No training went on from a checkpoint.", style="bold red"))
    if verdict.same_packs:
        console.print(Text("The global batches were the same, bit for bit.", style="bold green"))
    style = "bold green" if verdict.loss_fell else "bold red"
    losses = f"from {verdict.first_loss:.2f} to {verdict.last_loss:.2f}"
    console.print(
        Text(f"The loss went {losses}." if verdict.loss_fell else f"The loss did not go down: {losses}.", style=style)
    )
    console.print(f"{seconds:.0f} seconds.")


def _some(packs: Sequence[int]) -> str:
    listed = ", ".join(map(str, packs[:5]))
    return f"{count(len(packs), 'pack')} ({listed}{', ...' if len(packs) > 5 else ''})"


def _report(
    attempts: Sequence[Attempt], reference: Reference, verdict: Verdict, seconds: float
) -> dict[str, Any]:  # Any: JSON
    """All of it as JSON values."""
    steps = range(1, max(attempt.last_step for attempt in attempts) + 1)
    return {
        **asdict(verdict),
        "attempts": [
            {
                "ranks": attempt.ranks,
                "workers": attempt.workers,
                "first_step": attempt.first_step,
                "last_step": attempt.last_step,
            }
            for attempt in attempts
        ],
        "steps": [{"step": step, **_compare(attempts, reference, step)._asdict()} for step in steps],
        "seconds": round(seconds, 1),
    }


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """End in an orderly way when asked to, so that the training ends, too."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
