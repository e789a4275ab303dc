"""Which sorted runs are merged into which, so that at most a few are left. Pure.

    runs                                      |0|1|2|3|4|
    2 become one, until 2 are left            |0|1 2|3 4|
                                              |0|1 2 3 4|

In:  how many runs there are. Out: steps, of which each merges neighbours only, since equal keys have the order of the
runs. A record is read and written once a step, and there are about log(runs) / log(`most`) steps.
"""

from itertools import pairwise
from typing import TypeAlias

Span: TypeAlias = tuple[int, int]
"""(first, stop): the runs from `first` to before `stop`, as one run."""
Step: TypeAlias = dict[Span, tuple[Span, ...]]
"""Merges that can be done side by side: each run that is made, and the runs that it is made of."""


def plan_merges(num_runs: int, *, left: int, most: int) -> tuple[list[Step], list[Span]]:
    """The steps, in turn, and what is left after them.

    Args:
        num_runs: how many there are.
        left: how many there may be at the end.
        most: about how many become one in a merge.

    >>> steps, rest = plan_merges(5, left=2, most=2)
    >>> steps
    [{(1, 3): ((1, 2), (2, 3)), (3, 5): ((3, 4), (4, 5))}, {(1, 5): ((1, 3), (3, 5))}]
    >>> rest
    [(0, 1), (1, 5)]
    """
    steps: list[Step] = []
    spans: list[Span] = [(run, run + 1) for run in range(num_runs)]
    while len(spans) > left:
        count = max(left, -(-len(spans) // most))
        cuts = [number * len(spans) // count for number in range(count + 1)]
        groups = [tuple(spans[low:high]) for low, high in pairwise(cuts)]
        spans = [(group[0][0], group[-1][1]) for group in groups]
        steps.append({span: group for span, group in zip(spans, groups, strict=True) if len(group) > 1})
    return steps, spans
