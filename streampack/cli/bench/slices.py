"""What a benchmark reads: slices of a corpus, each in shards of its own on the local disk.

In:  shards of any storage, how many slices, and how large.
Out: `Slice`s. Each round of a benchmark takes another one, so that no cache has seen a round's text before.

A slice is cut out of the shards' own bytes between two samples, so it has their headers, members and compression:

    shard    |s0 s1 s2 s3|s4 s5 s6|s7 s8 ...        slice 0: s0 s1 s2 s3 + zero blocks
                                                    slice 1: s4 s5 s6    + zero blocks
Invariants: of the shards only what the slices need is read, and at most one range more.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from streampack.dataset.dataset import PackedDataset
from streampack.errors import ConfigError
from streampack.tar.codecs import compress, decompress, suffix_of
from streampack.tar.format import ZERO_BLOCK
from streampack.tar.reader import read_samples


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of the corpus."""

    shards: tuple[str, ...]
    """Paths, in order."""
    num_bytes: int
    """Of the tars, decompressed."""


def cut_slices(dataset: PackedDataset, folder: Path, *, num_slices: int, slice_bytes: int) -> list[Slice]:
    """The first samples of the dataset's shards in up to `num_slices` slices of about `slice_bytes` each.

    Raises:
        ConfigError: there is not a sample for each slice.
    """
    slices: list[Slice] = []
    paths: list[str] = []
    size = 0
    for part, suffix in _parts(dataset, slice_bytes):
        path = folder / f"{len(slices):03d}-{len(paths):05d}{suffix}"
        path.write_bytes(compress(part + 2 * ZERO_BLOCK, url=path.name))
        paths.append(str(path))
        size += len(part)
        if size >= slice_bytes:
            slices.append(Slice(tuple(paths), size))
            paths, size = [], 0
            if len(slices) == num_slices:
                return slices
    if size > slice_bytes / 2 or (paths and not slices):
        slices.append(Slice(tuple(paths), size))
    if not slices:
        raise ConfigError("there are no samples in the shards")
    return slices


def _parts(dataset: PackedDataset, part_bytes: int) -> Iterator[tuple[bytes, str]]:
    """The tars' bytes in parts of whole samples, the last one of a shard smaller, with the suffix of the shard."""
    pipeline = dataset.pipeline
    for shard in dataset.list_shards():
        suffix = suffix_of(shard.url) or ".tar"
        held = bytearray()
        begin = 0  # offset in the tar of what is held
        stored = pipeline.storage.chunks(shard.url, size=shard.size if shard.size_known else None)

        def keep(chunks: Iterator[bytes], held: bytearray = held) -> Iterator[bytes]:
            for chunk in chunks:
                held += chunk
                yield chunk

        sample = None
        for sample in read_samples(
            keep(decompress(stored, url=shard.url)),
            url=shard.url,
            wanted=pipeline.documents.field.wanted,
            max_member_bytes=pipeline.documents.member_bytes,
        ):
            if sample.position - begin >= part_bytes:
                yield bytes(held[: sample.position - begin]), suffix
                del held[: sample.position - begin]
                begin = sample.position
        if sample is not None:
            yield bytes(held), suffix
