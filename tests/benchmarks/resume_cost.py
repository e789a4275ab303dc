"""What a resume costs at different places of an epoch: time until the first batch, beside that of a fresh start.

    python tests/benchmarks/resume_cost.py [--megabytes 200]

Writes plain shards of made-up text, walks one epoch with ten saved states, then starts again from each of them, all in
one process and interleaved. The ratio to a fresh start is the result; it must not grow with the position.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterator

from streampack import PackedDataLoader, PackedDataset
from streampack.testing import ByteTokenizer, write_shards


def documents(megabytes: int) -> Iterator[str]:
    """Made-up words, 4 KB a document."""
    words = ["".join(random.Random(i).choices("etaoinshrdlu", k=2 + i % 9)) for i in range(4000)]
    rng = random.Random(0)
    for _ in range(megabytes * 250):
        yield " ".join(rng.choices(words, k=560))[:4000]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(folder, documents(arguments.megabytes), documents_per_shard=5000)

        def loader() -> PackedDataLoader:
            dataset = PackedDataset(shards, ByteTokenizer(), 4096, num_lanes=12, epochs=1)
            return PackedDataLoader(dataset, 8, num_workers=0)

        with loader() as walk:
            states = [walk.state_dict() for _ in walk]
        marks = (10, 30, 50, 70, 90)
        kept = {0: None, **{mark: states[len(states) * mark // 100] for mark in marks}}
        seconds: dict[int, list[float]] = {mark: [] for mark in kept}
        for _ in range(arguments.rounds):
            for mark, state in kept.items():
                with loader() as fresh:
                    begin = time.perf_counter()
                    if state is not None:
                        fresh.load_state_dict(state)
                    next(iter(fresh))
                    seconds[mark].append(time.perf_counter() - begin)
    start = statistics.median(seconds[0])
    print(f"{arguments.megabytes} MB, {len(states)} batches; time to the first batch, median of {arguments.rounds}")
    for mark, values in seconds.items():
        value = statistics.median(values)
        print(f"  at {mark:3d} % of the epoch  {value * 1000:8.1f} ms   {value / start:5.2f} of a fresh start")


if __name__ == "__main__":
    main()
