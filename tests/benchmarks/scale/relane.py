"""What another number of lanes costs, and that it loses nothing: 8,192 lanes become 9,198 in the middle of an epoch.

    python tests/benchmarks/scale/relane.py [--lanes 8192 9198] [--megabytes 12]
    python tests/benchmarks/scale/relane.py costs

Prints seconds and bytes of the state; fails where a row of a document is missing or comes twice. `costs`: of one source
in 61,440 lanes of 6,510 blocks each, made up, with a window half out in each; and of the call itself, by blocks.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from random import Random
from time import process_time

sys.path.insert(0, str(Path(__file__).parents[2]))

from support.jobs import write_tar
from support.relaning import Found, Lanes, total

from streampack import PackedDataset
from streampack.corpus.leftovers import Leftover, Leftovers
from streampack.state.checkpoint import Committed
from streampack.state.relaning import relaned
from streampack.testing import ByteTokenizer


def corpus(folder: Path, megabytes: int) -> list[str]:
    choose = Random(0)
    urls = []
    for shard in range(megabytes):
        texts = [b"x" * choose.randint(100, 3000) for _ in range(2**20 // 2600)]
        members = [(f"{number}.txt", text) for number, text in enumerate(texts)]
        urls.append(str(write_tar(folder / f"{shard:04d}.tar", members)))
    return urls


def costs() -> None:
    choose, lanes = Random(0), 61_440
    rows = []
    for lane in range(lanes):
        first = choose.randrange(800) * 8
        begun = {"place": choose.randrange(500), "row": choose.randrange(4000)}
        rows.append(Leftover(lanes, lane, 3, 0, first, first + 8, 6510, **begun))
    left = Leftovers.of(3, rows)
    begin = process_time()
    left.dealt(range(0, 73_728, 4096), 73_728, window=8, unit=lambda _: 2**18)
    print(f"{len(left.text):,} bytes in the state, {process_time() - begin:.2f} s of CPU for a rank to find its part")
    with tempfile.TemporaryDirectory() as folder:
        for shard in range(40):
            with (Path(folder) / f"{shard:02d}.tar").open("wb") as file:
                file.truncate(64 * 2**30)  # of which no byte is read
        for before, after in ((8192, 9198), (lanes, 73_728)):
            run = PackedDataset(folder, ByteTokenizer(), 4096, num_lanes=before).run()
            committed = Committed.fresh(range(before), before, run.names, run.schedule.stages)
            committed.rows[:, 1] = [choose.randrange(8, 40) for _ in range(before)]
            begin = process_time()
            relaned(committed, run, after)
            print(f"{before:,} -> {after:,} lanes of 2.5 TiB: {process_time() - begin:.1f} s of CPU")


def main() -> None:
    if sys.argv[1:] == ["costs"]:
        costs()
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lanes", type=int, nargs=2, default=[8192, 9198])
    parser.add_argument("--megabytes", type=int, default=12)
    given = parser.parse_args()
    before, after = given.lanes
    with tempfile.TemporaryDirectory() as folder:
        urls = corpus(Path(folder), given.megabytes)
        data = PackedDataset(urls, ByteTokenizer(), 512, num_lanes=before, epochs=1, shuffle="shards")
        whole, found = Found(), Found()
        Lanes.of(data).take(10**7, whole)
        lanes = Lanes.of(data).take(before + before // 2, found)
        size = len(json.dumps(lanes.committed.to_state({}, {})["leftovers"]))
        begin = process_time()
        lanes = lanes.again(after)
        seconds = process_time() - begin
        text = str(lanes.committed.to_state({}, {})["leftovers"])
        lanes.take(10**7, found)
        assert total(found) == total(whole), (total(found), total(whole))
        grown = f"{len(text) - size:,} bytes in the state"
        print(f"{before:,} -> {after:,} lanes: {seconds:.1f} s of CPU, {grown}; {total(found)}")


if __name__ == "__main__":
    main()
