"""How far the packs of a run are from the shares asked for: by simulation of the function that a run uses.

    python tests/benchmarks/shares.py [--mixes 6] [--packs 4000000]      a minute or two, 0.5 GB of memory

In:  nothing. For each number of lanes some mixes that are hard by their form, then random ones of 2 to 50 sources with
     weights from 0.01 % on.
Out: for each number of lanes the largest deviations, in packs, of any source in any prefix of the global order, in any
     round, and in any prefix of a lane; and the mix of the largest one in prefixes.
"""

import argparse
import time
from collections.abc import Iterator

import numpy as np

from streampack.cli.plan.deviations import deviations
from streampack.corpus.shares import SHIFT, Shares

LANES = (24, 60, 120, 480, 1_920, 7_680, 15_360, 61_440)
LEAST = 1e-4
BOUNDS = {"prefix": 24, "round": 6, "lane": 8}


def worst_of_any_weights(num_lanes: int) -> float:
    """The largest deviation in a round of any interval of any mix: the discrepancy of its points on the circle."""
    points = np.sort(np.arange(num_lanes, dtype=np.uint64) * np.uint64(SHIFT)) / 2.0**64
    lags = points * num_lanes - np.arange(num_lanes)
    return float(lags.max() - lags.min() + 1)


def mixes(count: int, rng: np.random.Generator) -> Iterator[tuple[str, list[float]]]:
    """Named weights: some that are hard by their form, then random ones."""
    yield "70/30", [0.7, 0.3]
    yield "0.01 % first", [LEAST, 1 - LEAST]
    yield "0.01 % in the middle", [0.5, LEAST, 0.5 - LEAST]
    yield "50 equal", [1.0] * 50
    yield "49 of 0.01 %", [LEAST] * 49 + [1 - 49 * LEAST]
    yield "halves of halves", [2.0**-n for n in range(1, 13)]
    for _ in range(count):
        size = int(rng.integers(2, 51))
        parts = rng.dirichlet(np.full(size, rng.choice([0.1, 0.5, 1.0, 5.0])))
        yield f"random, {size} sources", (LEAST + parts * (1 - LEAST * size)).tolist()


def main() -> None:
    """Simulate, print a line for each number of lanes, and what was largest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixes", type=int, default=6, help="random ones for each number of lanes")
    parser.add_argument("--packs", type=int, default=4_000_000)
    arguments = parser.parse_args()
    begin = time.monotonic()
    largest = dict.fromkeys(BOUNDS, 0.0)
    print(f"{'lanes':>7} {'prefix':>7} {'round':>7} {'lane':>7}   round, any weights; the mix of the largest prefix")
    for num_lanes in LANES:
        rng = np.random.default_rng(num_lanes)
        found = {
            name: deviations(Shares.of(weights), num_lanes, arguments.packs)
            for name, weights in mixes(arguments.mixes, rng)
        }
        row = {each: max(getattr(of_mix, each) for of_mix in found.values()) for each in BOUNDS}
        name = max(found, key=lambda each: found[each].prefix)
        print(
            f"{num_lanes:>7,} {row['prefix']:>7.1f} {row['round']:>7.1f} {row['lane']:>7.1f}   "
            f"{worst_of_any_weights(num_lanes):.1f}; {name}",
            flush=True,
        )
        largest = {each: max(largest[each], row[each]) for each in BOUNDS}
    for each, bound in BOUNDS.items():
        print(f"{each}: at most {largest[each]:.1f}, {'within' if largest[each] <= bound else 'NOT WITHIN'} {bound}")
    print(f"{time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
