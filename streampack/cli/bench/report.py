"""What `streampack bench` has measured: plain numbers, for the terminal, JSON, Markdown and the plot."""

from dataclasses import dataclass

from streampack.cli.bench.clocks import Resume, WorkerScale
from streampack.cli.bench.comparison import Comparison
from streampack.cli.bench.stopwatch import Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where it was measured."""

    processor: str
    """Its name; "" where the system does not tell."""
    cores: int
    load: float
    """Load average of the minute before the measures began."""
    python: str
    versions: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that is shown."""

    machine: Machine
    source: str
    """What was read."""
    tokenizer: str
    rounds: int
    bytes: int
    comparison: Comparison
    workers: list[WorkerScale]
    first_batch_s: dict[int, Spread]
    """By number of workers."""
    resume: list[Resume]
