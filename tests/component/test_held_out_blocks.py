"""Blocks that are held out: every sample in exactly one part, whatever the tar; val asks for little besides."""

import gzip
import json
from pathlib import Path
from random import Random

import pytest
from support.proxy import Proxy
from support.tars import read, some_tars, write_tar, write_webdataset
from support.thorough import nightly

from streampack import HoldOut, PackedDataset, Shuffle
from streampack.corpus import spans
from streampack.errors import ConfigError
from streampack.testing import ByteTokenizer


@pytest.fixture
def small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "CELL_BYTES", 5000)


def dataset(urls: list[str], part: str, fraction: float = 0.4, **changes: object) -> PackedDataset:
    arguments = {"seq_len": 64, "num_lanes": 3, "hold_out": HoldOut(part, fraction, by="block"), **changes}
    return PackedDataset(urls, ByteTokenizer(), **arguments)


def write(folder: Path, seed: int) -> tuple[list[str], list[tuple[int, str]]]:
    """Shards of every kind, and (shard, key) of all their samples."""
    tars = some_tars(Random(seed))
    tars.append(tars[-1])
    urls, wanted = [], []
    for index, data in enumerate(tars):
        is_last = index == len(tars) - 1
        path = folder / (f"{seed}-{index}.tar" + ".gz" * is_last)
        path.write_bytes(gzip.compress(data) if is_last else data)
        urls.append(str(path))
        wanted += [(index, sample.key) for sample in read(data)]
    return urls, wanted


def samples_of(data: PackedDataset, epoch: int = 0) -> list[tuple[int, str]]:
    corpus, table = data.corpus(), data.list_shards()
    return [
        (piece.shard, sample.key)
        for lane in range(corpus.num_lanes)
        for piece in corpus.pieces(epoch, lane)
        for sample in data.pipeline.samples(table[piece.shard], piece, resume=-1, max_range_bytes=2**23)
    ]


@pytest.mark.usefixtures("small_cells")
@pytest.mark.parametrize("seed", [0, 1, *nightly(range(2, 5))])
def test_every_sample_is_in_one_part(tmp_path: Path, seed: int) -> None:
    """Whatever the order and the size of a block; those of val are the same in each, and each epoch trains the rest."""
    urls, wanted = write(tmp_path, seed)
    val = samples_of(dataset(urls, "val"))
    assert val == sorted(val, key=lambda each: each[0]), "as listed"
    assert 0 < len(val) < len(wanted)
    for shuffle in (False, "shards", Shuffle(block_bytes=4096, window=2), Shuffle(block_bytes=7777, window=3)):
        for num_lanes in (1, 4):
            train = samples_of(dataset(urls, "train", num_lanes=num_lanes, shuffle=shuffle, seed=seed), epoch=seed)
            assert sorted(train + val) == sorted(wanted)


@pytest.mark.usefixtures("small_cells")
@pytest.mark.parametrize("shuffle", [Shuffle(block_bytes=4096, window=2), "shards"], ids=str)
def test_the_packs_of_both_parts_hold_every_document_once(tmp_path: Path, shuffle: Shuffle | str) -> None:
    texts = [f"{index:03d}|" + "x" * Random(index).randrange(1500) for index in range(100)]
    (tmp_path / "0.tar").write_bytes(write_webdataset({"__key__": text[:3], "txt": text} for text in texts))
    found: list[str] = []
    for part in ("train", "val"):
        data = dataset(
            [str(tmp_path / "0.tar")], part, epochs=1, num_lanes=1, shuffle=shuffle, add_bos=False, packing="wrap"
        )
        tokens = [t for pack in data for t, s in zip(pack["tokens"].tolist(), pack["segment_ids"].tolist()) if s]
        ids = data.pipeline.tokenizer.encode("x"), data.pipeline.tokenizer.eos_id
        offset = int(ids[0][0]) - ord("x")
        text = "".join("\n" if token == ids[1] else chr(token - offset) for token in tokens)
        found += text.strip("\n").split("\n")
    assert sorted(found) == texts


@pytest.mark.usefixtures("small_cells")
def test_training_asks_for_no_byte_of_cells_that_are_held_out(tmp_path: Path) -> None:
    """But for the end of a sample that begins before one, and the headers after it."""
    tar = write_tar([(f"{index:04d}.txt", b"x" * 200) for index in range(400)])
    url = tmp_path / "0.tar"
    url.write_bytes(tar)
    data = dataset([str(url)], "train", num_lanes=1, shuffle=Shuffle(block_bytes=4096))
    corpus, shard = data.corpus(), data.list_shards()[0]
    assert corpus.total_bytes < 0.75 * len(tar)
    for piece in corpus.pieces(0, 0):
        samples = data.pipeline.samples(shard, piece, resume=-1, max_range_bytes=2**23)
        assert all(piece.begin <= sample.position < piece.end + 2048 for sample in samples)


def five_kb_tar(num_bytes: int) -> bytes:
    random = Random(7)
    sizes = [min(int(random.expovariate(1 / 5000)), 60_000) for _ in range(num_bytes // 6100)]
    return write_tar([(f"{index:06d}.txt", bytes([97 + index % 26]) * size) for index, size in enumerate(sizes)])


def test_val_asks_for_the_bytes_of_its_documents_and_not_for_the_corpus(tmp_path: Path) -> None:
    """A hundredth of 200 shards: at most 3 times the bytes of its documents."""
    tar = five_kb_tar(2 * 2**20)
    proxy = Proxy(objects={f"/{index:05d}.tar": tar for index in range(200)})
    try:
        lines = (json.dumps({"url": f"{proxy.url}/{index:05d}.tar", "size": len(tar)}) for index in range(200))
        (tmp_path / "m.jsonl").write_text("\n".join(lines))
        data = dataset([f"@{tmp_path}/m.jsonl"], "val", 0.01, seq_len=2**15)
        num_bytes = sum(int((pack["segment_ids"] > 0).sum()) for pack in data)
        asked = sum(get.last + 1 - get.first for get in proxy.gets)
    finally:
        proxy.close()
    assert 2 * 2**20 < num_bytes < 8 * 2**20
    assert asked < 3 * num_bytes


@pytest.mark.usefixtures("small_cells")
def test_a_part_that_is_empty_is_an_error_when_the_shards_are_listed(tmp_path: Path) -> None:
    urls, _ = write(tmp_path, 0)
    with pytest.raises(ConfigError, match=r"holds out none of the .* A fraction of at least .* would do"):
        dataset(urls, "val", 1e-9)


@pytest.mark.usefixtures("small_cells")
def test_the_fingerprint_names_what_is_held_out_together_by_block_only(tmp_path: Path) -> None:
    urls, _ = write(tmp_path, 0)
    assert dataset(urls, "train").fingerprint()["hold_out_by"] == "block"
    assert "hold_out_by" not in dataset(urls, "train", hold_out=HoldOut("train", 0.4)).fingerprint()
    assert "hold_out_by" not in dataset(urls, "train", hold_out=None).fingerprint()
