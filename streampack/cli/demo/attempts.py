"""What a training left in its logs: for each step and rank the loss, and a digest of each pack.

In:  the folder that `streampack.examples.train` wrote its logs to. Out: an `Attempt` for each start of it.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import msgspec

from streampack.errors import StreampackError


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


def read_attempts(folder: Path) -> list[Attempt]:
    """The attempts that left logs in a folder, in the order of their first steps.

    Raises:
        StreampackError: there are no logs.
    """
    found: dict[tuple[str, str], dict[int, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for log in sorted(folder.glob("log-*.jsonl")):
        attempt, _, ranks = log.stem.partition("-rank-")
        for entry in read_log(log):
            found[attempt, ranks.partition("-of-")[2]][entry.step].append(entry)
    if not found:
        raise StreampackError(f"{folder} holds no log of a training: `streampack demo --keep {folder}` makes them")
    attempts = []
    for entries in found.values():
        first = next(iter(entries.values()))[0]
        attempts.append(Attempt(ranks=first.ranks, workers=first.workers, entries=dict(entries)))
    return sorted(attempts, key=lambda attempt: attempt.first_step)


def read_log(path: Path) -> list[Entry]:
    """The whole lines of one log."""
    # What follows the last line break is still being written, or was cut off by a kill.
    lines, _, _ = path.read_bytes().rpartition(b"\n")
    return [msgspec.json.decode(line, type=Entry) for line in lines.splitlines()]
