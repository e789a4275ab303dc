"""Jobs of programs/training.py: what they are told, and what they leave."""

import json
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np

from support.processes import Job


def written(folder: Path, rank: int) -> tuple[int, list[dict[str, Any]], int | None]:
    """What a rank wrote: the global pack that it began with, its batches, its digest if it came to its end."""
    with (folder / f"rank{rank}.packs").open("rb") as file:
        values = []
        while True:
            try:
                values.append(pickle.load(file))
            except (EOFError, pickle.UnpicklingError):  # the last one may be cut short by the kill
                break
    batches = [value for value in values if isinstance(value, dict)]
    return values[0], batches, None if isinstance(values[-1], dict) else values[-1]


def handed_out(folder: Path, rank: int) -> tuple[int, dict[str, Any], int | None]:
    """The same, the batches as one array [batches, ...] for each key."""
    begin, batches, digest = written(folder, rank)
    return begin, {key: np.stack([batch[key] for batch in batches]) for key in batches[0]} if batches else {}, digest


def complete(folder: Path) -> list[Path]:
    """Checkpoints that were written to their end, oldest first."""
    return sorted(path.parent for path in folder.glob("step*/.metadata"))


def write_job(folder: Path, **given: Any) -> None:
    given = {"every": 3, "load": None, "batches": None, "pause_after": None, **given}
    (folder / "job.json").write_text(json.dumps(given))


def await_checkpoint(running: Job, folder: Path, number: int = 1) -> None:
    """Wait for so many."""
    deadline = time.monotonic() + 60
    while len(complete(folder)) < number:
        assert time.monotonic() < deadline, f"no checkpoint; the job said:\n{running.output}"
        time.sleep(0.02)
