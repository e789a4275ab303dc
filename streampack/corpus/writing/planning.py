"""Which ranges of the inputs are written by which piece of work. Pure: no input is read.

    inputs            |------ a.jsonl ------|-b.gz-|- c.gz -|     end to end, by the bytes that are expected of each
    portions          |= 0 =|= 1 =|= 2 =|= 3 =|= 4 =|= 5 =|       of equal size
    begins in them      a     a     a     a,b   c                 b and c cannot be cut: each goes where it begins

In:  units: ranges of inputs with the bytes that are expected of them. Out: portions, in the order of the inputs.
Invariants: every position of every unit is in exactly one portion; the number of processes changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Unit:
    """A range of an input: bytes of a file, row groups of a Parquet file, rows of a dataset."""

    input: int
    """The index of its input."""
    start: int
    stop: int
    num_bytes: int
    """Bytes of documents that are expected of it."""
    can_be_cut: bool


@dataclass(frozen=True, slots=True)
class Range:
    """The positions `start` to `stop` of an input."""

    input: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Portion:
    """What one piece of work writes."""

    number: int
    ranges: tuple[Range, ...]
    num_bytes: int = 0
    """Bytes of documents that are expected of it."""


def plan(units: Sequence[Unit], portion_bytes: int) -> list[Portion]:
    """The portions, of at most about `portion_bytes` each, but for units that cannot be cut.

    >>> [portion.ranges for portion in plan([Unit(0, 0, 10, 10, True), Unit(1, 0, 3, 4, False)], 5)]
    [(Range(input=0, start=0, stop=4),), (Range(input=0, start=4, stop=9),), (Range(input=0, start=9, stop=10), \
Range(input=1, start=0, stop=3))]
    """
    total = sum(unit.num_bytes for unit in units)
    count = max(-(-total // portion_bytes), 1)
    found: list[list[Range]] = [[] for _ in range(count)]
    sizes = [0] * count
    begin = 0
    for unit in units:
        end = begin + unit.num_bytes
        first = min(begin * count // max(total, 1), count - 1)
        if not unit.can_be_cut or not unit.num_bytes or unit.start == unit.stop:
            _append(found[first], Range(unit.input, unit.start, unit.stop))
            sizes[first] += unit.num_bytes
        else:
            for number in range(first, count):
                cuts = [min(max(each * total // count, begin), end) for each in (number, number + 1)]
                low, high = (unit.start + (cut - begin) * (unit.stop - unit.start) // unit.num_bytes for cut in cuts)
                if low < high:
                    _append(found[number], Range(unit.input, low, high))
                    sizes[number] += cuts[1] - cuts[0]
                if (number + 1) * total // count >= end:
                    break
        begin = end
    filled = [(tuple(ranges), size) for ranges, size in zip(found, sizes, strict=True) if ranges]
    return [Portion(number, ranges, size) for number, (ranges, size) in enumerate(filled)]


def _append(ranges: list[Range], more: Range) -> None:
    """Append a range; where it continues the last one, both are one: a Parquet file is opened once for each."""
    if ranges and (ranges[-1].input, ranges[-1].stop) == (more.input, more.start):
        more = Range(more.input, ranges.pop().start, more.stop)
    ranges.append(more)
