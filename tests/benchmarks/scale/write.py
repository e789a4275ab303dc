"""What a shuffle of `streampack write` costs as the data grow: files opened, bytes read and CPU time.

    python tests/benchmarks/scale/write.py [--megabytes 16 64 256]

Everything is a 4,096th of its size: runs of 32 KiB, shards of 64 KiB, at most 64 runs read at once (of 1,024), so that
64 MB here stand for 256 GB. `files` are sorted runs that are opened, by merges and by shards, over the number of
shards; `read` are the bytes of them that are read, over those of the data. CPU time is mostly per file at this size.
"""

import argparse
import json
import random
import resource
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from streampack import write_shards
from streampack.corpus.writing import runs, sorting

RUN_BYTES, SHARD_BYTES, MOST_RUNS = 2**15, 2**16, 64
counts: Counter[str] = Counter()


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[16, 64, 256])
    arguments = parser.parse_args()
    sorting._RUN_BYTES, sorting.MOST_RUNS = RUN_BYTES, MOST_RUNS  # type: ignore[attr-defined]
    read, write_run = runs._read, sorting.write_run

    def counted(*given: Any) -> Any:
        found = read(*given)
        counts["files"] += 1
        counts["bytes"] += 16 * len(found[0]) + len(found[2])
        return found

    def counted_write(*given: Any) -> None:
        counts["runs"] += 1
        write_run(*given)

    runs._read, sorting.write_run = counted, counted_write
    print(f"{'MB':>6} {'runs':>7} {'shards':>7} {'files/shard':>12} {'read/byte':>10} {'CPU s/GB':>9}")
    for megabytes in arguments.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder, "a.jsonl")
            num_bytes = make(data, megabytes * 10**6)
            counts.clear()
            before = cpu_seconds()
            told = write_shards(data, f"{folder}/out", shard_bytes=SHARD_BYTES, shuffle=True)
            seconds = cpu_seconds() - before
        print(
            f"{megabytes:>6} {counts['runs']:>7,} {told.num_shards:>7,} {counts['files'] / told.num_shards:>12,.0f} "
            f"{counts['bytes'] / num_bytes:>10.2f} {seconds * 1e9 / num_bytes:>9,.0f}",
            flush=True,
        )


def make(path: Path, num_bytes: int) -> int:
    """JSON lines of so many bytes, of 0 to 4 kB each."""
    rng, size = random.Random(0), 0
    text = "".join(rng.choices("abcdefgh ", k=8000))
    with path.open("w") as file:
        while size < num_bytes:
            start = rng.randrange(4000)
            size += file.write(json.dumps({"text": text[start : start + rng.randrange(4000)]}) + "\n")
    return size


def cpu_seconds() -> float:
    """Of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
