"""The comparison of a demo on the terminal: a table of steps, and the verdict in words."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from streampack.cli.console import plural
from streampack.cli.demo.attempts import Attempt
from streampack.cli.demo.verdict import LOSS_STEPS, Reference, Verdict, compare_step


class Topology(NamedTuple):
    """What a training runs on."""

    ranks: int
    workers: int

    def __str__(self) -> str:
        return f"{plural(self.ranks, 'rank')} x {plural(self.workers, 'worker')}"


def comparison_table(attempts: Sequence[Attempt], reference: Reference) -> Table:
    """For each step the loss and a digest of the global batch in each training, and the reference's digest."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("step", justify="right")
    for attempt in attempts:
        table.add_column("loss", justify="right")
        table.add_column(str(Topology(attempt.ranks, attempt.workers)).replace(" x ", "\n"))
    table.add_column("without\na stop")
    table.add_column("packs")
    last = 0
    for step in _steps_to_show(attempts):
        if step > last + 1:
            table.add_row("⋮")
        last = step
        row = compare_step(attempts, reference, step)
        cells: list[str | Text] = [str(step)]
        for loss, digest in zip(row.losses, row.digests):
            cells += ["" if loss is None else f"{loss:.3f}", digest]
        verdict = Text("equal", style="green") if row.same else Text("different", style="bold red")
        table.add_row(*cells, row.reference_digest, verdict)
    return table


def _steps_to_show(attempts: Sequence[Attempt]) -> list[int]:
    """The first and last steps, and those around each stop."""
    last = max(attempt.last_step for attempt in attempts)
    shown = {*range(1, LOSS_STEPS + 1), *range(last - LOSS_STEPS + 1, last + 1)}
    for killed, resumed in pairwise(attempts):
        shown |= set(range(resumed.first_step - 2, killed.last_step + 3))
    # A single step that is left out would save no line.
    shown |= {step + 1 for step in shown if step + 2 in shown}
    return sorted(step for step in shown if 1 <= step <= last)


def draw_verdict(console: Console, verdict: Verdict, seconds: float) -> None:
    """What was compared, and with what result."""
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
        console.print(Text("No training resumed from a checkpoint.", style="bold red"))
    if verdict.same_packs:
        console.print(Text("The global batches were the same, bit for bit.", style="bold green"))
    style = "bold green" if verdict.loss_fell else "bold red"
    losses = f"from {verdict.first_loss:.3f} to {verdict.last_loss:.3f}, means of the first and last {LOSS_STEPS} steps"
    console.print(
        Text(f"The loss fell {losses}." if verdict.loss_fell else f"The loss did not go down: {losses}.", style=style)
    )
    console.print(f"{seconds:.0f} seconds.")


def _some(packs: Sequence[int]) -> str:
    listed = ", ".join(map(str, packs[:5]))
    return f"{plural(len(packs), 'pack')} ({listed}{', ...' if len(packs) > 5 else ''})"
