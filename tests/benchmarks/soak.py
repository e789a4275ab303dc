"""A long run through bad weather: 2 ranks x 2 workers read from a web server whose answers fail at random.

    python tests/benchmarks/soak.py [--seconds 1800] [--seed 0] [--rate 0.3] [--json results.json]

In:  nothing: it writes its shards and their manifest with digests, and serves them through the tests' proxy.
Out: what each rank has done, and a verdict (exit code 1): the digest of its batches is that of a quiet run over the
     files themselves; the memory of each process is flat, its late median at most 10 % and 12 MB above its early one;
     so are its open files, at most 8 more. Early is from a quarter to half of the time, late its last quarter.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections import Counter, deque
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from support.arguments import packed_dataset
from support.processes import Job
from support.proxy import Fault, Proxy

from streampack import PackedDataLoader
from streampack.testing import write_shards

RANKS = 2
MORE_MB, MORE_PART, MORE_FILES = 12.0, 0.10, 8
NUM_SHARDS, DOCUMENTS = 24, 250
DATASET = {"seq_len": 2048, "num_lanes": 24, "buffer_bytes": 3 * 2**22, "document_bytes": 2**18}
"""Small shares of memory, so that there are many small requests."""
LOADER = {"batch_size": 4, "num_workers": 2}
RETRY = {"timeout_s": 1.5, "first_wait_s": 0.02, "max_wait_s": 0.5}


class Weather(deque):  # what `Proxy.faults` is
    """An endless script of faults, as the seed has it."""

    def __init__(self, seed: int, rate: float, size: int) -> None:
        super().__init__([None])
        self.random = random.Random(seed)
        self.rate = rate
        self.size = size
        self.had: Counter[str] = Counter()

    def popleft(self) -> Fault | None:
        chance = self.random
        if chance.random() >= self.rate:
            return None
        after = chance.choice([None, 0, 100, 5000, 100_000])
        fault = chance.choice(
            [
                *(Fault("reset", after), Fault("reset", after), Fault("close", after), Fault("close", after)),
                *(Fault("unsized", after or 1), Fault("length", by=chance.choice([-1000, 1000])), Fault("whole")),
                Fault("status", status=500, body=b"no"),
                Fault("status", status=503, body=b"slow down"),
                Fault("status", status=429, body=b"slow down", headers={"Retry-After": "1"}),
                Fault("delay", seconds=chance.random()),
                Fault("throttle", seconds=0.01),
                Fault("flip", at=chance.randrange(self.size)),
                # Rare, as each costs a time-out.
                Fault("stall", after) if chance.random() < 0.2 else Fault("delay", seconds=0.1),
            ]
        )
        self.had[fault.kind if fault.kind != "status" else str(fault.status)] += 1
        return fault


def main() -> None:
    """Run, compare, say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.3, help="the part of requests that meet a fault")
    parser.add_argument("--pause", type=float, default=0.02, help="seconds after each batch, as a training step")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        local, objects = write(folder / "data", arguments.seed)
        proxy = Proxy(objects=objects)
        proxy.faults = weather = Weather(arguments.seed, arguments.rate, max(map(len, objects.values())))
        job = {"seconds": arguments.seconds, "pause_s": arguments.pause, "retry": RETRY}
        job["loader"] = LOADER
        job["dataset"] = {**DATASET, "data": f"@{proxy.url}/manifest.jsonl"}
        (folder / "job.json").write_text(json.dumps(job), "utf-8")
        with Job("soaking.py", folder / "job.json", folder, ranks=RANKS, log=folder / "log") as running:
            code = running.wait(arguments.seconds + 90)
            if code:
                sys.exit(f"the job ended with {code}; it said:\n{running.output}")
        ranks = [json.loads((folder / f"rank{rank}.json").read_text("utf-8")) for rank in range(RANKS)]
        requests = len(proxy.gets)
        proxy.close()
        results = {"requests": requests, "faults": weather.had, "ranks": [], "wrong": []}
        for rank, found in enumerate(ranks):
            growth = growths(found["curve"], arguments.seconds)
            results["ranks"].append({**found, "growth": growth})
            results["wrong"] += [f"rank {rank}, {what}" for what in wrong(found, growth, quiet(local, rank, found))]
    show(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results), "utf-8")
    sys.exit(bool(results["wrong"]))


def write(folder: Path, seed: int) -> tuple[str, dict[str, bytes]]:
    """The manifest of shards of made-up text, and all files as the server's objects."""
    chance = random.Random(seed)
    words = ["".join(chance.choices("etaoinshrdlu", k=2 + number % 9)) for number in range(4000)]
    count = NUM_SHARDS * DOCUMENTS
    documents = (" ".join(chance.choices(words, k=chance.randint(1, 1200))) for _ in range(count))
    write_shards(folder, documents, documents_per_shard=DOCUMENTS)
    manifest = folder / "manifest.jsonl"
    command = [
        sys.executable,
        "-m",
        "streampack.cli",
        "manifest",
        f"{folder}/",
        "-o",
        str(manifest),
        "--digests",
        "--block-bytes",
        "65536",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return f"@{manifest}", {f"/{path.name}": path.read_bytes() for path in folder.iterdir()}


def quiet(shards: str, rank: int, found: dict[str, Any]) -> int:
    """The digest of as many batches of the rank, in one process and without a network."""
    dataset = packed_dataset(shards, **DATASET)
    with PackedDataLoader(dataset, LOADER["batch_size"], num_workers=0, dp_rank=rank, dp_size=RANKS) as loader:
        for batches, _ in enumerate(loader, 1):
            if batches == found["batches"]:
                break
        return loader.digest()


def growths(curve: list[tuple[float, dict[str, tuple[float, int]]]], seconds: float) -> dict[str, dict[str, float]]:
    """By process: medians of its memory and its most open files, early and late."""
    found = {}
    for pid in curve[-1][1]:
        early = [values[pid] for at, values in curve if seconds / 4 <= at < seconds / 2 and pid in values]
        late = [values[pid] for at, values in curve if at >= seconds * 3 / 4 and pid in values]
        if early and late:
            found[pid] = {
                "early_mb": statistics.median(memory for memory, _ in early),
                "late_mb": statistics.median(memory for memory, _ in late),
                "early_files": max(files for _, files in early),
                "late_files": max(files for _, files in late),
            }
    return found


def wrong(found: dict[str, Any], growth: dict[str, dict[str, float]], digest: int) -> list[str]:
    """What is not as it should be."""
    what = []
    if found["digest"] != digest:
        what.append(f"{found['batches']} batches: the digest is {found['digest']}, that of a quiet run {digest}")
    if len(growth) != 1 + LOADER["num_workers"]:
        what.append(f"only {len(growth)} processes were there early and late")
    for pid, now in growth.items():
        if now["late_mb"] > now["early_mb"] * (1 + MORE_PART) + MORE_MB:
            what.append(f"process {pid}: {now['early_mb']:.1f} MB early, {now['late_mb']:.1f} MB late")
        if now["late_files"] > now["early_files"] + MORE_FILES:
            what.append(f"process {pid}: {now['early_files']} open files early, {now['late_files']} late")
    return what


def show(results: dict[str, Any]) -> None:
    faults = ", ".join(f"{count} {kind}" for kind, count in sorted(results["faults"].items()))
    print(f"{results['requests']} requests, {sum(results['faults'].values())} faults: {faults}")
    for rank, found in enumerate(results["ranks"]):
        stats = found["stats"]
        done = f"{found['batches']} batches, {stats['retries']} retries, {stats['worker_restarts']} restarts"
        print(f"rank {rank}: {done}")
        for pid, now in found["growth"].items():
            files = f"{now['early_files']} to {now['late_files']} files"
            print(f"  process {pid}: {now['early_mb']:.1f} to {now['late_mb']:.1f} MB, {files}")
    print("\n".join(results["wrong"]) or "as in a quiet run; memory and open files are flat")


if __name__ == "__main__":
    main()
