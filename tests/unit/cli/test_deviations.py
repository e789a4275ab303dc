"""How far packs are from their shares: the order of a run is near them, and the measure sees one that is not."""

import numpy as np
import pytest

from streampack.cli.plan.deviations import deviations
from streampack.corpus.shares import Shares


@pytest.mark.parametrize("num_lanes", [24, 60, 480])
@pytest.mark.parametrize(
    "weights", [[0.7, 0.25, 0.05], [0.9999, 0.0001], [1] * 50, [0.0001] * 10 + [0.499, 0.5]], ids=str
)
def test_prefixes_rounds_and_lanes_have_their_shares(weights: list[float], num_lanes: int) -> None:
    found = deviations(Shares.of(weights), num_lanes, 40_000)
    assert found.prefix <= 24
    assert found.round <= 6
    assert found.lane <= 8


def test_a_deviation_is_seen_where_there_is_one() -> None:
    """The measure, of an order that is wrong: each lane gives one source alone."""

    class Lanes(Shares):
        def sources(self, lanes: np.ndarray, packs: np.ndarray) -> np.ndarray:
            return (lanes + 0 * packs) % 2

    found = deviations(Lanes(*Shares.of([1, 1])), 24, 240)
    assert (found.prefix, found.round, found.lane) == (0.5, 0, 120)
    none = deviations(Shares.of([1]), 24, 240)
    assert (none.prefix, none.round, none.lane, none.packs) == (0, 0, 0, 240)
