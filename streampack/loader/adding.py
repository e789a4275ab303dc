"""A count of this rank that all ranks can see the sum of, without waiting for each other.

In:    how much this rank has counted since the count began.
Out:   how much all ranks have, as far as they have told. Without other ranks, or when their store has gone: its own.
Never: a collective.
"""

from collections.abc import Callable

AddUp = Callable[[int], int]
"""Adds a rank's share to the sum of all ranks, and gives the sum."""


class SharedCount:
    """The sum of the ranks in the store of torch.distributed."""

    def __init__(self, add_up: AddUp | None) -> None:
        """`add_up`: None where no other rank can be told."""
        self.is_alone = add_up is None
        self.told = 0
        """What the others know of this rank."""
        self._add_up = add_up

    def tell(self, number: int) -> int:
        """Let the ranks know how much this one has; returns how much all of them have."""
        if self._add_up is None:
            return number
        try:
            total = self._add_up(number - self.told)
        except (RuntimeError, ValueError):  # the store has gone, or torch.distributed has ended: the job ends soon
            return number
        self.told = number
        return total
