"""How well batches are mixed by several orders, at a scale at which nothing can be read: 100,000 shards of 1 GB.

    python tests/benchmarks/order_quality.py [--batches 300] [--only blocks]                 some minutes

In:  nothing. Shards hold documents of 4 KiB, a pack 8 of them, a batch 4,096 packs. A hash gives each site one of 20
     labels (of shares 1, 1/2, ... 1/20 together); a site is a shard, or a run of 1,000 documents.
Out: a table. Streampack's orders are computed by its own functions; others' by how their documentation describes them.

    variance       of a label's share in a batch, in times that of independent documents
    correlation    of a label's share in a batch with that in the batch that has the next packs of the same lanes
    mean of all    variance of the mean of all batches, in times that of as many independent documents
    neighbours     pairs of documents in a pack that are of one site; 1 for packs of neighbours

Two numbers stand for shards of one label each, and for runs of 1,000 alike documents.
"""

import argparse
import time
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from streampack.corpus.blocks import BlockLine
from streampack.corpus.partition import lane_share, shard_order
from streampack.hashing import Bijection, Purpose, hash_range, permutation

SHARDS, DOCUMENTS, PACK, BATCH = 100_000, 244_140, 8, 4096
DOCUMENT_BYTES = 4096
LABELS = 20
BEGIN = 10_000
"""Packs of each lane before the first batch."""

Places = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Shard and document in it: each int64 [BATCH, PACK]."""
Order = Callable[[int], Places]
"""The documents of batch t."""

RNG = np.random.default_rng(0)
SHARE = 1 / np.arange(1, LABELS + 1)
SHARE /= SHARE.sum()


def packs_of(batch: int, num_lanes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(lane, pack of the lane) of each pack of a batch, int64 [BATCH] each: the global order."""
    number = batch * BATCH + np.arange(BATCH)
    return number % num_lanes, number // num_lanes + BEGIN


def full_shuffle(_: int) -> Places:
    """Documents from anywhere."""
    return RNG.integers(0, SHARDS, (BATCH, PACK)), RNG.integers(0, DOCUMENTS, (BATCH, PACK))


def full_shuffle_of_packs(_: int) -> Places:
    """Packs of neighbours from anywhere."""
    shards, packs = RNG.integers(0, SHARDS, BATCH), RNG.integers(0, DOCUMENTS // PACK, BATCH)
    return np.repeat(shards[:, None], PACK, 1), packs[:, None] * PACK + np.arange(PACK)


def shards_only(num_lanes: int) -> Order:
    """shuffle="shards": a lane reads its stretch of the line of shuffled shards."""
    order = shard_order(seed=0, epoch=0, num_shards=SHARDS, shuffle=True)

    def batch(number: int) -> Places:
        lane, pack = packs_of(number, num_lanes)
        first, _ = lane_share(lane, num_lanes, SHARDS * DOCUMENTS)  # type: ignore[arg-type]  # arrays do as well
        place = first[:, None] + pack[:, None] * PACK + np.arange(PACK)
        return order[place // DOCUMENTS % SHARDS], place % DOCUMENTS

    return batch


def blocks_and_windows(num_lanes: int, block_bytes: int, window: int) -> Order:
    """shuffle=Shuffle(block_bytes, window): blocks in the order of the bijection, the records of windows permuted."""
    shard_bytes = DOCUMENTS * DOCUMENT_BYTES
    sizes = np.full(SHARDS, shard_bytes)
    line = BlockLine(sizes, np.zeros(SHARDS, bool), block_bytes)
    order = Bijection(Purpose.BLOCK_ORDER, 0, 0, count=line.num_blocks)
    per_shard = -(-shard_bytes // block_bytes)
    in_block = block_bytes // DOCUMENT_BYTES
    in_window = window * in_block

    @lru_cache(maxsize=2**18)
    def window_order(lane: int, number: int) -> NDArray[np.int32]:
        words = Purpose.WINDOW_ORDER, 0, 0, lane, number * window, -1, 0
        return permutation(*words, count=in_window).astype(np.int32)

    def batch(number: int) -> Places:
        lane, pack = packs_of(number, num_lanes)
        place = pack[:, None] * PACK + np.arange(PACK)
        numbers = (place // in_window)[:, 0] if in_window % PACK == 0 else None
        assert numbers is not None, "a pack lies in one window"
        orders = np.stack([window_order(*each) for each in zip(lane.tolist(), numbers.tolist(), strict=True)])
        record = np.take_along_axis(orders, place % in_window, 1)
        first, _ = lane_share(lane, num_lanes, line.num_blocks)  # type: ignore[arg-type]
        blocks = first[:, None] + numbers[:, None] * window + record // in_block
        blocks = order.of(blocks.ravel() % line.num_blocks).reshape(blocks.shape)
        document = blocks % per_shard * in_block + record % in_block
        return blocks // per_shard, np.minimum(document, DOCUMENTS - 1)

    return batch


def webdataset(buffer: int, workers: int = 4) -> Order:
    """Each of 4,096 ranks with 4 workers that read their shards in turn through a shuffle buffer of documents."""
    order = RNG.permutation(SHARDS)
    phase = RNG.integers(0, 2 * DOCUMENTS, BATCH * workers)
    per_worker = SHARDS // (BATCH * workers)

    def batch(number: int) -> Places:
        worker = np.arange(BATCH) * workers + number % workers
        place = phase[worker][:, None] + 3 * buffer + number // workers * PACK + np.arange(PACK)
        place = place - RNG.geometric(1 / buffer, place.shape)
        return order[(worker[:, None] * per_worker + place // DOCUMENTS) % SHARDS], place % DOCUMENTS

    return batch


def mosaicml(nodes: int = 512, block: int = 262_144) -> Order:
    """MosaicML's py1e: packs of neighbours, written before, each moved by at most half a block of 262,144 packs."""
    order, packs = RNG.permutation(SHARDS), DOCUMENTS // PACK

    def batch(number: int) -> Places:
        per_node = BATCH // nodes
        node = np.repeat(np.arange(nodes), per_node)
        place = 200_000 + number * per_node + np.tile(np.arange(per_node), nodes)
        place = node * (SHARDS * packs // nodes) + place + RNG.integers(-block // 2, block // 2, BATCH)
        shards, pack = order[place // packs % SHARDS], RNG.integers(0, packs, BATCH)
        return np.repeat(shards[:, None], PACK, 1), pack[:, None] * PACK + np.arange(PACK)

    return batch


MANY = 61_440
ORDERS: dict[str, tuple[int, Callable[[], Order]]] = {
    "full shuffle of documents": (0, lambda: full_shuffle),
    "full shuffle of packs": (0, lambda: full_shuffle_of_packs),
    "shards, 8,192 lanes": (8192, lambda: shards_only(8192)),
    "shards, 61,440 lanes": (MANY, lambda: shards_only(MANY)),
    "webdataset, buffer of 1,000": (0, lambda: webdataset(1000)),
    "webdataset, buffer of 10,000": (0, lambda: webdataset(10_000)),
    "MosaicML py1e": (0, mosaicml),
    "blocks of 256 KiB, windows of 8": (MANY, lambda: blocks_and_windows(MANY, 2**18, 8)),
    "blocks of 256 KiB, windows of 16": (MANY, lambda: blocks_and_windows(MANY, 2**18, 16)),
    "blocks of 256 KiB, windows of 32": (MANY, lambda: blocks_and_windows(MANY, 2**18, 32)),
    "blocks of 8 MiB, windows of 1": (MANY, lambda: blocks_and_windows(MANY, 2**23, 1)),
}
"""Each with its number of lanes; 0: it has none."""


def measure(order: Order, run: int, batches: int, lag: int) -> tuple[float, float, float, float]:
    """(variance, correlation after `lag` batches, variance of the mean, neighbours).

    Sites are runs of so many documents; 0: shards.
    """
    edges = np.cumsum(SHARE)
    label_of = hash_range(1, count=SHARDS)
    shares = np.empty((batches, LABELS))
    together = []
    for number in range(batches):
        shards, documents = order(number)
        sites = shards if not run else shards * 1000 + documents // run
        words = label_of[shards] if not run else _mixed(sites)
        labels = np.searchsorted(edges, (words >> np.uint64(11)) / 2.0**53)
        shares[number] = np.bincount(labels.ravel(), minlength=LABELS)[:LABELS] / labels.size
        if number % 10 == 0:
            pairs = (sites[:, :, None] == sites[:, None, :]).sum() - sites.size
            together.append(pairs / (sites.size * (PACK - 1)))
    true = SHARE
    if not run:
        true = np.bincount(np.searchsorted(edges, (label_of >> np.uint64(11)) / 2.0**53), minlength=LABELS) / SHARDS
    independent = SHARE * (1 - SHARE) / (BATCH * PACK)
    z = (shares - true) / np.sqrt(independent)
    correlation = float("nan")
    if 0 < lag < batches:
        correlation = float(((z[:-lag] * z[lag:]).mean(0) / (z**2).mean(0)).mean())
    return float((z**2).mean()), correlation, float((z.mean(0) ** 2).mean() * batches), float(np.mean(together))


def _mixed(sites: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A hash of each number."""
    words = sites.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(32))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(29))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--only", default="", help="orders that have this in their names")
    arguments = parser.parse_args()
    print(f"shards of one label / runs of 1,000 documents; {arguments.batches} batches")
    print(f"{'order':34}{'variance':>16}{'correlation':>16}{'mean of all':>16}{'neighbours':>16}")
    for name, (lanes, make) in ORDERS.items():
        if arguments.only in name:
            begin = time.monotonic()
            both = [measure(make(), run, arguments.batches, lanes // BATCH) for run in (0, 1000)]
            shown = [f"{one:.2f} / {other:.2f}".replace("nan / nan", "") for one, other in zip(*both, strict=True)]
            took = f"{time.monotonic() - begin:6.0f} s"
            print(f"{name:34}" + "".join(f"{text:>16}" for text in shown) + took, flush=True)


if __name__ == "__main__":
    main()
