"""Fillers of one epoch where shards differ by 15 % in tokens for each byte, by shards and by blocks, and by `plan`.

    python tests/benchmarks/fillers.py [--lanes 24] [--blocks 300] [--block-bytes 65536]      minutes, 0.5 GB of disk

In:  nothing. Documents of 256 to 512 bytes stand for such of 4 KB, and blocks are smaller by as much: 64 KiB hold 64 of
     them, as 256 KiB hold 64 of 4 KB.
Out: for each order the share of fillers in the packs of a real run, beside the estimate of `streampack plan`.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from streampack import PackedDataLoader, PackedDataset, Shuffle
from streampack.cli.plan.making import make_plan
from streampack.cli.replay import Replay
from streampack.testing import ByteTokenizer, write_shards

SHARDS = 96
SPREAD = 0.15
SAMPLE_BYTES = 1024
"""Of a document in a tar: a header, and its content in full blocks."""


def documents(per_shard: int) -> Iterator[bytes]:
    """JSON of 256 to 512 bytes; the text is about half of it, and more or less by shard."""
    rng = np.random.default_rng(0)
    for _ in range(SHARDS):
        share = 0.5 * np.exp(rng.normal(0, SPREAD))
        for size in rng.integers(256, 512, per_shard).tolist():
            text = min(max(round(share * size), 1), size - 30)
            yield json.dumps({"text": "t" * text, "rest": "r" * (size - text - 26)}).encode()


def main() -> None:
    """Write the shards, run an epoch by each order, print both shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, default=24)
    parser.add_argument("--blocks", type=int, default=300, help="of each lane")
    parser.add_argument("--block-bytes", type=int, default=64 * 1024)
    arguments = parser.parse_args()
    per_shard = arguments.lanes * arguments.blocks * arguments.block_bytes // SHARDS // SAMPLE_BYTES
    orders: list[Any] = ["shards", Shuffle(block_bytes=arguments.block_bytes)]
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(
            folder, documents(per_shard), field="json:text", documents_per_shard=per_shard, format="ustar"
        )
        for order in orders:
            begin = time.monotonic()
            dataset = PackedDataset(
                shards, ByteTokenizer(), 1024, field="json:text", num_lanes=arguments.lanes, epochs=1, shuffle=order
            )
            given: dict[str, Any] = {"batch_size": 8, "num_workers": 0}
            start = Replay.of(dataset)
            plan = make_plan("", dataset, start, given, ranks=1, tokens_per_second=1e4, bytes_per_token=None)
            with PackedDataLoader(dataset, **given) as loader:
                packs = sum(len(batch["tokens"]) for batch in loader)
                fillers = loader.stats()["fillers"] / packs
            print(
                f"{order}: {fillers:.2%} fillers of {packs:,} packs; plan says {plan.lanes.filler_share:.2%} "
                f"({time.monotonic() - begin:.0f} s)",
                flush=True,
            )


if __name__ == "__main__":
    main()
