"""Time several ways to do the same work in turn, so that what disturbs the machine disturbs all of them alike.

In:  variants, each of which prepares a round's work and then does it.
Out: a reading per variant and round; ratios are taken within a round, and shown as lowest, median and highest.

Invariants: preparation is not timed; the variants take turns in being the first of a round.

    round 0   a b c        not counted: caches are empty, which they are at the start of a run only
    round 1   b c a        ratio of b to a:  b1/a1, b2/a2, b3/a3  ->  lowest, median, highest
    round 2   c a b
    round 3   a b c
"""

import gc
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

Work = Callable[[], int]
"""Does the work of a round and returns how many units (tokens, mostly) it was."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to do the work."""

    name: str
    prepare: Callable[[int], Work]
    """Called with the round's number; not timed."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a piece of work took."""

    units: int
    cpu_s: float
    """Of this process and of the children that ended meanwhile."""
    wall_s: float

    @property
    def per_cpu_s(self) -> float:
        return self.units / max(self.cpu_s, 1e-9)

    @property
    def per_wall_s(self) -> float:
        return self.units / max(self.wall_s, 1e-9)


@dataclass(frozen=True, slots=True)
class Spread:
    """Lowest, median and highest of some values."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        return cls(min(values), median(values), max(values))


def cpu_seconds() -> float:
    """CPU time of this process, all its threads, and the children that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def read(work: Work) -> Reading:
    """Do the work and time it."""
    gc.collect()
    cpu, wall = cpu_seconds(), time.perf_counter()
    units = work()
    return Reading(units, cpu_seconds() - cpu, time.perf_counter() - wall)


def interleave(
    variants: Sequence[Variant], num_rounds: int, *, advance: Callable[[str], None] = lambda name: None
) -> dict[str, list[Reading]]:
    """The readings of each variant, one per round but the first, which counts only where it is the only one.

    `advance` is called with the name of a variant that is done.
    """
    readings: dict[str, list[Reading]] = {variant.name: [] for variant in variants}
    for number in range(num_rounds):
        first = number % len(variants)
        for variant in (*variants[first:], *variants[:first]):
            readings[variant.name].append(read(variant.prepare(number)))
            advance(variant.name)
    return {name: found[1:] or found for name, found in readings.items()}


def cpu_ratio(readings: Sequence[Reading], base: Sequence[Reading]) -> Spread:
    """Units per second of CPU time, as a multiple of `base`'s in the same round."""
    return Spread.of([one.per_cpu_s / other.per_cpu_s for one, other in zip(readings, base, strict=True)])


def wall_ratio(readings: Sequence[Reading], base: Sequence[Reading]) -> Spread:
    """Units per second of the clock, as a multiple of `base`'s in the same round."""
    return Spread.of([one.per_wall_s / other.per_wall_s for one, other in zip(readings, base, strict=True)])
