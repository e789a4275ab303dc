"""What it costs to add up the parts of `verify` and `count` of many shards: seconds and peak memory of `merge`.

    python tests/benchmarks/scale/parts.py --shards 100000 --parts 2000

The parts are made up: no shard is read.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import streampack
from streampack.cli.count.command import Found as Counts
from streampack.cli.count.counted import Counted
from streampack.cli.count.tally import Tally
from streampack.cli.packings import Packed
from streampack.cli.parts.work import Kept, plain
from streampack.cli.verify.command import Found as Verdicts
from streampack.cli.verify.verdict import Verdict
from streampack.corpus.parts import Part, PartsFolder, PartsJob, shards_of
from streampack.packing.options import PackingKind


def verdicts(shards: range) -> Verdicts:
    found = [
        Verdict(
            name=f"{shard:06d}.tar", url=f"s3://bucket/corpus/{shard:06d}.tar", key="0" * 32, version='"' + "e" * 32,
            size=10**9, digest=None, reading="1" * 32, samples=90_000, documents=90_000, num_passed_over=0,
            passed_over="", num_problems=0, problems=[],
        )
        for shard in shards
    ]  # fmt: skip
    return Verdicts(verdicts=found, num_read=len(found))


def counts(shards: range) -> Counts:
    tally = Tally(samples=9, documents=9, packed={kind: Packed(1, 2, 3, 4) for kind in PackingKind})
    tally.lengths.documents[50:200] = len(shards) * 90_000 // 150
    tally.lengths.units[50:200] = len(shards) * 10**9 // 150
    counted = Counted(
        num_shards=100_000, num_estimated=0, shard_bytes=10**14, field="txt", seq_len=4096, ends=["BOS"], tally=tally,
        has_tokens=True, seconds=1.0, num_processes=1,
    )  # fmt: skip
    return Counts(sources={"": counted})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--parts", type=int, default=2000)
    asked = parser.parse_args()
    sizes = np.full(asked.shards, 10**9, dtype=np.int64)
    makers: dict[str, Any] = {"verify": verdicts, "count": counts}
    for command, make in makers.items():
        job = PartsJob(command=command, num_parts=asked.parts, about={"streampack": streampack.__version__})
        with tempfile.TemporaryDirectory() as folder:
            parts = PartsFolder(folder)
            for index in range(asked.parts):
                found = plain(make(shards_of(sizes, Part(index, asked.parts))))
                parts.keep(job, index, plain(Kept(files="0" * 16, found=found)))
            num_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
            begin = time.perf_counter()
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            merge = [sys.executable, "-m", "streampack.cli", "merge", folder, "--json"]
            subprocess.run(merge, check=True, stdout=subprocess.DEVNULL)
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
            told = {
                "command": command,
                "shards": asked.shards,
                "parts": asked.parts,
                "MB of parts": round(num_bytes / 1e6, 1),
                "seconds": round(time.perf_counter() - begin, 1),
                "cpu seconds": round(cpu, 1),
                "peak MB": round(used.ru_maxrss / 1e3),
            }
            print(json.dumps(told))


if __name__ == "__main__":
    main()
