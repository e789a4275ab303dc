"""How much memory the lanes of a worker need, known before the run.

In:    a run's arguments and shards; how many lanes and workers a rank has.
Out:   bytes; or a `ConfigError` that says how many are needed and what to do.
"""

from typing import NamedTuple

from streampack.corpus.epochs import Corpus
from streampack.errors import ConfigError
from streampack.lanes.pipeline import Pipeline

MIN_SHARE_BYTES = 64 * 2**10
"""What a lane needs besides its windows."""
_PER_RECORD_BYTE = 1.25
"""Memory for a byte of records, with the objects around them."""
_PER_BLOCK_BYTE = 1.15
"""Bytes that are asked for, for a byte of a block."""


class WindowBytes(NamedTuple):
    """About how many bytes a lane holds for its windows."""

    shuffle: int = 0
    packing: int = 0


def window_bytes(pipeline: Pipeline, corpus: Corpus) -> WindowBytes:
    """What a lane of a run holds.

    Of a shuffle it is the records of one window, and the bytes of a block, or of all blocks of the next window where
    the storage is remote. Shards that are read whole may hold more text than the window's blocks have bytes, up to the
    bound of a window.
    """
    blocks = corpus.window * corpus.block_bytes
    if not blocks:
        return WindowBytes(0, pipeline.window_bytes)
    text = max(corpus.window_bytes, blocks) if corpus.table.whole.any() else blocks
    is_remote = len(corpus.table) > 0 and pipeline.storage.is_remote(corpus.table.urls[0])
    fetched = blocks if is_remote else corpus.block_bytes
    return WindowBytes(int(_PER_RECORD_BYTE * text + _PER_BLOCK_BYTE * fetched), pipeline.window_bytes)


def check_budget(*, budget_bytes: int, num_lanes: int, num_workers: int = 1, windows: WindowBytes) -> None:
    """Refuse a budget with which a lane has less than 64 KiB, and what its windows take.

    Args:
        budget_bytes: of the rank; it is divided over the workers.
        num_lanes: of the rank; they are divided over the workers, too.
        num_workers: 0 counts as 1.
        windows: what a lane holds for its windows, besides.

    Raises:
        ConfigError: it says how many bytes these lanes and workers need.
    """
    num_workers = max(min(num_workers, num_lanes), 1)
    most_lanes, part_bytes = -(-num_lanes // num_workers), budget_bytes // num_workers
    needed = most_lanes * (MIN_SHARE_BYTES + sum(windows))
    if part_bytes >= needed:
        return
    held = ", ".join(f"{size:,} bytes for the {name} window" for name, size in windows._asdict().items() if size)
    remedies = ["use more ranks"]
    if windows.packing:
        remedies.append("choose a smaller Packing(window=...)")
    if windows.shuffle:
        remedies.append("begin a new run with fewer lanes (num_lanes), a smaller Shuffle(block_bytes=..., window=...)")
        remedies.append('shuffle="shards"')
    in_all = f" For {num_workers} workers that is {needed * num_workers:,}." if num_workers > 1 else ""
    raise ConfigError(
        f"limits.buffer_bytes leaves a worker {part_bytes:,} bytes for {most_lanes} lanes, less than 64 KiB each"
        f"{f' and {held} of each' if held else ''}. Raise limits.buffer_bytes to at least {needed:,} per worker"
        f", or {', or '.join(remedies)}.{in_all}"
    )
