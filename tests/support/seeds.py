"""Good input for the targets of fuzzing, small and of every kind, to begin with."""

import gzip
import io
import json
from random import Random

import numpy as np
import zstandard

from support.tars import END, entry, header, pax, random_members, write_tar, write_webdataset


def _npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version)
    return stream.getvalue()


TARS = [
    *(
        write_tar(random_members(Random(seed), 5, form, max_bytes=700), form)
        for seed, form in enumerate(["ustar", "gnu", "pax"])
    ),
    write_webdataset({"__key__": f"{number:05d}", "txt": "some text", "json": {"n": number}} for number in range(4)),
    pax(size="700", path="long/name.txt") + header("a.txt", 0) + bytes(1024) + pax(b"g", comment="c") + END,
    entry("inner.tar", write_tar([("x.txt", b"1"), ("y.txt", b"2")])) + entry("z.txt", b"3") + END,
]
LINES = b"".join(
    json.dumps({"text": f"line {number}", "meta": {"text": "é\n\\u00e9"}}).encode() + b"\n" for number in range(9)
)
CONFIG = b"""\
dataset: &all
  data: ["s3://b/{000..127}.tar", './x.tar']
  tokenizer: package://streampack.examples/data/devil.model
  seq_len: 4_096
  boundary: {replace: 7}
  limits: {buffer_bytes: 512MiB}
  hold_out: {part: train, fraction: 1.0e-3}
  packing: {kind: next_fit, overflow: truncate}
  storage:
    options: {a: &x [1, 2.5, ~, "t", 2001-01-01], b: {<<: {k: *x}}}
    retry: {timeout_s: 3}
loader: {batch_size: 8, pin_memory: auto, multiprocessing_context: fork}
"""
MANIFEST = (
    b'{"url": "en/b.tar", "size": 7, "etag": "v1",'
    b' "digest": "xxh3:ab12cd34ef56ab78", "num_samples": 3, "whole": true}\n'
    b'{"url": "s3://b/c.tar.gz", "size": 8, "count": 4}\n\n{"url": "../a.tar"}\n'
)
SEEDS: dict[str, list[bytes]] = {
    "tar": TARS,
    "compressed": [
        gzip.compress(TARS[0]),
        gzip.compress(TARS[0][:512]) + gzip.compress(TARS[0][512:]) + bytes(9),
        zstandard.compress(TARS[1]),
        zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(TARS[2]),
        b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstandard.compress(bytes(200_000)),
    ],
    "text": ["text, é, 漢字".encode()],
    "json": [b'{"text": "t", "beside": [1, {"a": null}]}', '{"text": "\\u00e9é\\ud83d\\ude00"}'.encode()],
    "messages": [
        b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho", "x": [1]}]}'
    ],
    "lines": [LINES],
    "lines.gz": [gzip.compress(LINES), gzip.compress(LINES) * 2],
    "lines.zst": [zstandard.compress(LINES), zstandard.compress(LINES) * 2],
    "npy": [
        _npy(np.arange(9, dtype="<i4")),
        _npy(np.arange(9, dtype=">u2"), (2, 0)),
        _npy(np.zeros(0, "<i8"), (3, 0)),
        _npy(np.zeros((2, 2), "<i8")),
    ],
    "manifest": [MANIFEST],
    "braces": [b"s3://b/{a,b{1..3},{08..11..2}}/x.tar", b"{a..e}\\{,}.tgz"],
    "config": [CONFIG, b"dataset: {data: a.tar, tokenizer: null}\n"],
}
