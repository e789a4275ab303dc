"""What tests of `streampack write` give to it, and what it has written, read again by tarfile."""

import json
import random
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

SMALL = 2**16
"""Bytes of a shard."""


def texts(count: int, *, name: str = "") -> list[str]:
    rng = random.Random(name)
    return [f"{name} {number} {'ä word ' * rng.randrange(1, 120)}" for number in range(count)]


def as_lines(documents: Sequence[object], key: str = "text") -> bytes:
    records = [{"id": number, key: text} for number, text in enumerate(documents)]
    lines = [json.dumps(each, ensure_ascii=number % 2 == 0) for number, each in enumerate(records)]
    return "".join(f"{line}\n" for line in lines).encode()


def written(folder: Path) -> list[dict[str, object]]:
    """The records, by tarfile, in the order of the manifest."""
    found: list[dict[str, object]] = []
    keys = []
    for line in (folder / "manifest.jsonl").read_text().splitlines():
        row = json.loads(line)
        path = folder / row["url"]
        assert path.stat().st_size == row["size"]
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            records = [json.loads(each) for member in members for each in tar.extractfile(member) or ()]
        assert (len(members), len(records)) == (row["num_samples"], row["num_documents"])
        found += records
        keys += [member.name for member in members]
    assert keys == sorted(set(keys))
    return found


def content(folder: Path) -> Mapping[str, bytes]:
    """The files of a finished folder."""
    assert sorted(path.name for path in folder.glob("_*")) == []
    return {path.name: path.read_bytes() for path in folder.iterdir()}
