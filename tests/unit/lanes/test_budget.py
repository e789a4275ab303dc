"""What a worker may hold: the number that was asked for, or one that the lanes need."""

import gzip
import tarfile
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.runs import one_source

from streampack import PackedDataset
from streampack.corpus.epochs import Corpus
from streampack.corpus.options import Shuffle
from streampack.documents.fields import parse_field
from streampack.errors import ConfigError
from streampack.lanes import budget
from streampack.lanes.budget import MIN_SHARE_BYTES, source_needs
from streampack.lanes.reader import LaneReader
from streampack.records import Cursor, Limits
from streampack.testing import ByteTokenizer

GB, GIB, MIB = 10**9, 2**30, 2**20


def corpus(total: int, num_lanes: int, *, whole: bool = False, shuffle: Any = None) -> Corpus:
    table: Any = SimpleNamespace(sizes=np.array([total]), whole=np.array([whole]), total_bytes=total, is_remote=False)
    return Corpus(table=table, num_lanes=num_lanes, seed=0, shuffle=Shuffle() if shuffle is None else shuffle)


def worker_bytes(asked: int | None, pipeline: Any, corpus: Corpus, **arguments: int) -> int:
    return budget.worker_bytes(asked, one_source(pipeline, corpus), **arguments)


def pipeline(field: str = "txt") -> Any:
    return SimpleNamespace(window_bytes=0, documents=SimpleNamespace(field=parse_field(field)))


def test_the_default_is_what_the_lanes_need_from_512_mib_to_4_gib() -> None:
    assert Limits().buffer_bytes is None
    few, many = corpus(2 * GB, 24), corpus(2 * GB, 240)
    assert worker_bytes(None, pipeline(), few, num_lanes=24) == 512 * MIB
    assert worker_bytes(None, pipeline(), few, num_lanes=24, num_workers=4) == 128 * MIB
    lane = source_needs([pipeline()], many).shuffle
    assert 2.7 * MIB < lane < 3 * MIB
    for workers in (0, 7):  # of 7, some have a lane more than others, and all have the same part
        part = worker_bytes(None, pipeline(), many, num_lanes=240, num_workers=workers)
        assert lane < part / -(-240 // max(workers, 1)) <= lane + MIB
    assert worker_bytes(None, pipeline(), corpus(2 * GB, 1200), num_lanes=1200) < 4 * GIB
    assert worker_bytes(None, pipeline(), corpus(10 * GB, 1300), num_lanes=1300) == 4 * GIB  # less than a good share
    assert worker_bytes(None, pipeline(), corpus(GB, 9000, shuffle="shards"), num_lanes=9000) == 9000 * MIN_SHARE_BYTES


def test_more_than_4_gib_must_be_asked_for() -> None:
    large = corpus(200 * GB, 7680)
    with pytest.raises(ConfigError, match="the 3840 lanes of this rank need") as caught:
        worker_bytes(None, pipeline(), large, num_lanes=3840, num_workers=2)
    needed = 3840 * (source_needs([pipeline()], large).shuffle + MIN_SHARE_BYTES)
    assert f"Set limits.buffer_bytes to at least {needed:,}, or use more ranks, or begin a new run with " in str(
        caught.value
    )
    assert "num_lanes=1920, the most of the automatic choices that fit, a smaller Shuffle" in str(caught.value)
    assert worker_bytes(None, pipeline(), corpus(200 * GB, 1920), num_lanes=960, num_workers=2)
    assert worker_bytes(needed, pipeline(), large, num_lanes=3840, num_workers=2) == needed // 2
    with pytest.raises(ConfigError, match="leaves a worker"):
        worker_bytes(needed - 1, pipeline(), large, num_lanes=3840, num_workers=2)


def test_what_may_be_compressed_has_windows_of_twice_the_blocks() -> None:
    blocks = 8 * 256 * 2**10
    cut, whole = (source_needs([pipeline()], corpus(10 * GB, 60, whole=each)).shuffle for each in (False, True))
    assert whole - cut == 0.75 * blocks
    for field, bound in {"jsonl:text": 2, ".jsonl:text": 1.25, ".a.jsonl.gz:text": 2, "json:text": 1.25}.items():
        assert source_needs([pipeline(field)], corpus(10 * GB, 60)).shuffle - cut == (bound - 1.25) * blocks, field


MEMBERS = {
    "short lines": ("jsonl:text", "jsonl", b"\n".join(b'{"text": "%06d"}' % index for index in range(500))),
    "compressed lines": ("jsonl:text", "jsonl.gz", gzip.compress(b'{"text": "' + b"abcdefgh" * 60 + b'"}\n' * 100)),
    "large documents": ("txt", "txt", b"abcd efg" * 2**13),
    "tiny documents": ("txt", "txt", b"abcdefgh"),
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_a_lane_holds_what_is_said_and_one_document(tmp_path: Path, kind: str) -> None:
    field, extension, content = MEMBERS[kind]
    info = tarfile.TarInfo()
    info.size = len(content)
    body = content + bytes(-len(content) % 512)
    members = []
    for index in range(2**21 // (512 + len(body))):
        info.name = f"{index:05d}.{extension}"
        members.append(info.tobuf(tarfile.USTAR_FORMAT) + body)
    (tmp_path / "0.tar").write_bytes(b"".join(members) + bytes(1024))
    order = Shuffle(block_bytes=2**15, window=8)
    data = PackedDataset([str(tmp_path / "0.tar")], ByteTokenizer(), 512, field=field, num_lanes=1, shuffle=order)
    layout = data.corpus()
    assert layout.block_bytes == 2**15
    reader = LaneReader(data.pipeline, layout, 0, Cursor(), frozenset(), end_epoch=1, max_range_bytes=2**15)
    reader.next()
    tracemalloc.start()
    try:
        held = 0
        for _ in range(150):
            if reader.next() is None:
                break
            held = max(held, tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        reader.close()
    said = source_needs([data.pipeline], layout).shuffle
    one = len(gzip.decompress(content) if extension.endswith("gz") else content)
    # A document of several blocks is in what was asked for with its block, in a range of that, and in the window.
    assert said / 4 < held <= 1.1 * said + (8 if kind == "large documents" else 2) * one
