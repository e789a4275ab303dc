"""What `streampack bench` has measured, for its views."""

from dataclasses import dataclass

from streampack.cli.bench.clocks import Resume, Workers
from streampack.cli.bench.measures import Comparison
from streampack.cli.bench.stopwatch import Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where it was measured."""

    cores: int
    load: float
    """Of the last minute, before the measures began."""
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
    workers: list[Workers]
    first_batch_s: dict[int, Spread]
    """By number of workers."""
    resume: list[Resume]
