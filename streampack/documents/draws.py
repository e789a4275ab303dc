"""The global random generators of `random`, numpy and torch (its CPU generator), around what the user's code does.

Libraries draw from them unasked. So they are seeded for each document by its place, before a transform and before
a chat template that may draw. A process that is the trainer's, too, puts `own_draws` around that.

Never: torch, where nothing else has imported it.
"""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np

from streampack import hashing

_Item = TypeVar("_Item")


def seed_generators(place: tuple[int, ...]) -> None:
    """Seed all of them with a number of this place: the run's seed, and where the document stands."""
    seed = hashing.hash_words(hashing.Purpose.GLOBAL_GENERATORS, *place)
    random.seed(seed)
    with suppress(TypeError):  # the user has put another bit generator there, which numpy cannot seed
        np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 (the global one is what is meant)
    if (torchs := _torch_generator()) is not None:
        torchs.manual_seed(seed)


@contextmanager
def own_draws() -> Iterator[None]:
    """Leave the generators as they were, for a trainer that draws from them in the same process."""
    torchs = _torch_generator()
    ours, torch_state = random.getstate(), None if torchs is None else torchs.get_state()
    numpys = np.random.get_state(legacy=False)  # noqa: NPY002 (the global one is what is meant)
    try:
        yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)  # noqa: NPY002 (the global one is what is meant)
        if torchs is not None:
            torchs.set_state(torch_state)


def undisturbed(items: Iterator[_Item]) -> Iterator[_Item]:
    """The same items, whose making leaves the generators as they were."""
    while True:
        with own_draws():
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


def _torch_generator() -> Any:
    """Torch's generator for the CPU, or None where nothing has imported torch."""
    return getattr(sys.modules.get("torch"), "default_generator", None)
