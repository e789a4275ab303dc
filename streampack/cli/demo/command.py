"""`streampack demo`: a training is killed and resumed with other ranks and workers; were the batches the same?

    1  the data         the shards that ship with the package, and one pack
    2  the trainings    2 ranks x 2 workers, killed after a checkpoint; 1 rank x 3 workers from there to the end
    3  the comparison   with the same global packs read in one process without a stop

In:  the demo data; nothing from the network. Out: a table, a verdict, and exit code 0 only if every pack was the same,
bit for bit, and the loss went down.
Invariants: no process is left, and no file unless `--keep` asks for it.
"""

import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from streampack.cli.arguments import Json
from streampack.cli.console import format_bytes, messages, output, plural, print_json
from streampack.cli.demo.attempts import Attempt, read_attempts
from streampack.cli.demo.drawing import Topology, comparison_table, draw_verdict
from streampack.cli.demo.training import Training
from streampack.cli.demo.verdict import Reference, Verdict, compare_step, judge, make_reference
from streampack.cli.peek.command import peek
from streampack.errors import ConfigError, StreampackError
from streampack.examples.train import DATA, NUM_LANES, PACKS_PER_STEP, SEQ_LEN, SHARDS, TOKENIZER

_KILLED = Topology(ranks=2, workers=2)
_RESUMED = Topology(ranks=1, workers=3)


def demo(
    *,
    steps: Annotated[int, typer.Option(min=12, help="Training steps, over both trainings together.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of the shards.")] = 0,
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep logs and checkpoints in this folder.")] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Train nothing: compare the logs that --keep left in this folder.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Train on the demo data, kill the training, resume it on other ranks and workers, and compare every pack."""
    if keep is not None and check is not None:
        raise ConfigError("--keep and --check exclude each other: --check trains nothing that could be kept")
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise ConfigError(
            f"--keep {keep}: the folder must be new or empty, or the training would resume from what it holds"
        )
    begin = time.monotonic()
    console = messages() if json else output()
    console.quiet = json and not console.is_terminal  # with --json, progress is shown on stderr, and only on a terminal
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
        console.print(comparison_table(attempts, reference))
        draw_verdict(console, verdict, seconds)
    if not verdict.ok:
        raise typer.Exit(1)


def _show_data(console: Console, *, seed: int) -> None:
    """Show what the shards are, and the first pack of the run."""
    shards = sorted(DATA.glob("devil-*.tar*"))
    size = format_bytes(sum(shard.stat().st_size for shard in shards))
    console.print(Text("1  The data", style="bold"))
    console.print(
        f'"The Devil\'s Dictionary" by Ambrose Bierce: {plural(len(shards), "shard")}, {size}; {NUM_LANES} lanes, '
        f"packs of {SEQ_LEN} tokens. The first one:"
    )
    peek([SHARDS], tokenizer=TOKENIZER, seq_len=SEQ_LEN, num=1, num_lanes=NUM_LANES, seed=seed)


def _train(console: Console, folder: Path, *, steps: int, seed: int) -> None:
    """Run both trainings, one after the other, in the same folder."""
    checkpoint_every = steps // 3
    kill_at = checkpoint_every + max(checkpoint_every // 3, 2)
    console.print(Text("\n2  The trainings", style="bold"))
    console.print(f"A step is {PACKS_PER_STEP} packs of {SEQ_LEN} tokens, shared by all ranks.")
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
        came_from = "" if attempt.first_step == 1 else f"resumed from the checkpoint of step {attempt.first_step - 1}, "
        end = Text("done", style="green") if stop is None else Text("killed with SIGKILL", style="red")
        what = f": {came_from}steps {attempt.first_step} to {attempt.last_step}, "
        console.print(Text.assemble((str(topology), "bold"), what, end, f" ({time.monotonic() - begin:.0f} s)"))
        if stop is not None and attempt.last_step == steps:
            raise StreampackError(
                f"the training had finished its {steps} steps before it was killed: ask for more --steps"
            )


@contextmanager
def _bar(console: Console, topology: Topology, steps: int) -> Iterator[Callable[[int, float], None]]:
    """Give a function that shows a step on a progress bar; nothing is shown where stderr is not a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(str(topology), total=steps, loss="starting")
        yield lambda step, loss: bar.update(task, completed=step, loss=f"loss {loss:.3f}")


def _report(
    attempts: Sequence[Attempt], reference: Reference, verdict: Verdict, seconds: float
) -> dict[str, Any]:  # Any: JSON
    """Everything as JSON values."""
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
        "steps": [{"step": step, **compare_step(attempts, reference, step)._asdict()} for step in steps],
        "seconds": round(seconds, 1),
    }


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exit, so that the training ends, too."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
