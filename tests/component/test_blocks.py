"""Blocks as a lane reads them: every sample once, whatever the tar; little more is asked for than what is read."""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from support import servers
from support.proxy import Fault, Proxy
from support.tars import read, some_tars, write_tar

from streampack import PackedDataset, RetryPolicy, Shuffle, Storage
from streampack.corpus.partition import Piece
from streampack.errors import CorruptShardError, StorageError, WrongCutError
from streampack.records import Sample
from streampack.storage.digests import BLOCK_BYTES, BlockDigester
from streampack.testing import ByteTokenizer

RANGE_BYTES = 8 * 2**20


def dataset(urls: list[str], **changes: object) -> PackedDataset:
    arguments = {"num_lanes": 3, "shuffle": Shuffle(block_bytes=4096, window=3), **changes}
    return PackedDataset(urls, ByteTokenizer(), 64, **arguments)


def read_group(data: PackedDataset, pieces: list[Piece], resume: int = -1) -> list[list[Sample]]:
    """The samples of each piece of a group; `resume`: where the first one begins."""
    table = data.list_shards()
    parts = [(table[piece.shard], piece, -1 if index else resume) for index, piece in enumerate(pieces)]
    fetched = data.pipeline.fetch(parts)
    found = [
        list(data.pipeline.samples(shard, piece, resume=first, max_range_bytes=RANGE_BYTES, fetched=fetched))
        for shard, piece, first in parts
    ]
    fetched.close()
    return found


def read_epoch(data: PackedDataset, epoch: int = 0) -> Iterator[tuple[int, Sample]]:
    """(shard, sample) as all lanes meet them."""
    corpus = data.corpus()
    for lane in range(corpus.num_lanes):
        pieces = corpus.pieces(epoch, lane)
        for first in range(0, len(pieces), corpus.window):
            group = pieces[first : first + corpus.window]
            for piece, samples in zip(group, read_group(data, list(group)), strict=True):
                yield from ((piece.shard, sample) for sample in samples)


def write(folder: Path, tars: list[bytes]) -> list[str]:
    paths = [folder / f"{index}.tar" for index in range(len(tars))]
    for path, data in zip(paths, tars, strict=True):
        path.write_bytes(data)
    return [str(path) for path in paths]


@pytest.mark.parametrize("seed", range(6))
def test_every_sample_is_in_one_block_and_comes_as_it_is(tmp_path: Path, seed: int) -> None:
    tars = some_tars(Random(seed))
    wanted = [(shard, sample) for shard, data in enumerate(tars) for sample in read(data)]
    for changes in ({}, {"num_lanes": 1, "shuffle": Shuffle(block_bytes=8192, window=7)}, {"seed": seed + 1}):
        data = dataset(write(tmp_path, tars), **changes)
        found = sorted(read_epoch(data, epoch=seed), key=lambda each: (each[0], each[1].position))
        assert [(shard, each.key, each.position, each.sizes) for shard, each in found] == [
            (shard, each.key, each.position, each.sizes) for shard, each in wanted
        ]
        text = [each.members["txt"] for _, each in wanted if "txt" in each.members and "txt" not in each.flaws]
        assert [each.members["txt"] for _, each in found if "txt" in each.members] == text


def test_a_group_goes_on_from_any_sample_of_its_first_piece(tmp_path: Path) -> None:
    data = dataset(write(tmp_path, some_tars(Random(1))))
    for lane in range(3):
        group = list(data.corpus().pieces(0, lane)[:3])
        for order in (group, sorted(group), sorted(group, reverse=True)):
            first, *others = read_group(data, order)
            for index, sample in enumerate(first):
                assert read_group(data, order, resume=sample.position) == [first[index:], *others]


def test_a_tar_inside_the_tar_is_detected_or_harmless(tmp_path: Path) -> None:
    """When its first or its last block is read: all others are right by themselves."""
    random = Random(0)
    num_right = num_refused = 0
    for _ in range(40):
        inner = write_tar([(f"in{i}.txt", b"1" * random.randrange(4000)) for i in range(random.randrange(2, 12))])
        members = [(f"{i:03d}.txt", b"2" * random.randrange(6000)) for i in range(8)]
        members.insert(random.randrange(9), ("999.tar", inner))
        tar = write_tar(members)
        data = dataset(write(tmp_path, [tar]), num_lanes=1)
        found, refused = [], 0
        for piece in data.corpus().pieces(0, 0):
            try:
                found += read_group(data, [piece])[0]
            except WrongCutError:
                refused += 1
        if not refused:
            assert sorted(each.position for each in found) == [each.position for each in read(tar)]
        num_right, num_refused = num_right + (not refused), num_refused + bool(refused)
    assert min(num_right, num_refused) >= 5


# --- what is asked for


def five_kb(count: int = 900, seed: int = 0) -> bytes:
    random = Random(seed)
    sizes = [min(int(random.expovariate(1 / 5000)), 60_000) for _ in range(count)]
    return write_tar([(f"{index:06d}.txt", bytes([97 + index % 26]) * size) for index, size in enumerate(sizes)])


LARGE = {"shuffle": Shuffle(), "num_lanes": 1}


def asked(data: PackedDataset, total: int) -> float:
    """Bytes asked for in an epoch, as a multiple of the shards' bytes."""
    before = data.pipeline.storage.bytes_read
    assert sum(1 for _ in read_epoch(data)) == 3600
    return (data.pipeline.storage.bytes_read - before) / total


@pytest.fixture(scope="module")
def tars() -> list[bytes]:
    return [five_kb(seed=seed) for seed in range(4)]


@pytest.fixture
def proxy(tars: list[bytes]) -> Iterator[Proxy]:
    running = Proxy(objects={f"/{index}.tar": data for index, data in enumerate(tars)})
    yield running
    running.close()


def manifest(folder: Path, url: str, tars: list[bytes], digest_bytes: int = 0) -> list[str]:
    lines = []
    for index, data in enumerate(tars):
        line: dict[str, object] = {"url": f"{url}/{index}.tar", "size": len(data)}
        if digest_bytes:
            digester = BlockDigester(block_bytes=digest_bytes)
            digester.update(data)
            line["digest"] = digester.text()
        lines.append(json.dumps(line))
    (folder / "m.jsonl").write_text("\n".join(lines))
    return [f"@{folder}/m.jsonl"]


def test_little_more_is_asked_for_than_what_is_read(tmp_path: Path, tars: list[bytes], proxy: Proxy) -> None:
    total = sum(map(len, tars))
    assert asked(dataset(write(tmp_path, tars), **LARGE), total) < 1.2
    data = dataset(manifest(tmp_path, proxy.url, tars), **LARGE)
    assert asked(data, total) < 1.2
    num_blocks = len(data.corpus().pieces(0, 0))
    assert len(proxy.gets) < 1.15 * num_blocks, "a request for each block, and few more"
    assert sum(get.last + 1 - get.first for get in proxy.gets) < 1.2 * total
    assert proxy.most_under_way > 1, "the blocks of a group are asked for side by side"


def test_digests_of_small_blocks_add_little(tmp_path: Path, tars: list[bytes], proxy: Proxy) -> None:
    total = sum(map(len, tars))
    assert asked(dataset(manifest(tmp_path, proxy.url, tars, 2**15), **LARGE), total) < 1.25


def test_digests_of_large_blocks_are_checked_and_warned_of(tmp_path: Path, tars: list[bytes], proxy: Proxy) -> None:
    with pytest.warns(UserWarning, match=r"262,144 bytes: about 2\.0 times the bytes .* Write digests of smaller"):
        data = dataset(manifest(tmp_path, proxy.url, tars, 2**18), **LARGE)
    pieces = data.corpus().pieces(0, 0)[:2]
    proxy.always = Fault("flip", at=pieces[0].begin + 10_000)
    proxy.objects = {f"/{index}.tar": tars[pieces[0].shard] for index in range(4)}
    with pytest.raises(CorruptShardError, match="not what the manifest says"):
        read_group(data, pieces[:1])


def test_digests_as_the_command_makes_them_are_good_for_a_corpus_whose_blocks_are_small(
    tmp_path: Path, tars: list[bytes], proxy: Proxy
) -> None:
    """No warning, which would be an error here: nothing could be done about it."""
    small = {"num_lanes": 96, "shuffle": Shuffle()}
    data = dataset(manifest(tmp_path, proxy.url, tars, BLOCK_BYTES), **small)
    assert data.corpus().block_bytes < BLOCK_BYTES
    with pytest.warns(UserWarning, match="digests of blocks of 65,536 bytes"):
        dataset(manifest(tmp_path, proxy.url, tars, 2 * BLOCK_BYTES), **small)


def test_a_cache_does_not_multiply_what_is_asked_for(tmp_path: Path, tars: list[bytes], proxy: Proxy) -> None:
    """A node that has some of the lanes asks for little more than they read; all lanes together for each byte once."""
    storage = Storage(cache_dir=str(tmp_path / "cache"))
    urls = manifest(tmp_path, proxy.url, tars, 2**15)
    data = dataset(urls, storage=storage, num_lanes=2, shuffle=Shuffle())
    pieces = data.corpus().pieces(0, 0)
    for first in range(0, len(pieces), 8):
        read_group(data, pieces[first : first + 8])
    assert data.pipeline.storage.bytes_read < 1.2 * sum(piece.end - piece.begin for piece in pieces)
    asked(data, 1)
    assert data.pipeline.storage.bytes_read < 1.02 * sum(map(len, tars))  # two requests at once may want one chunk
    assert asked(data, 1) == 0, "all is in the cache"


def test_neighbours_are_one_request(tmp_path: Path, tars: list[bytes], proxy: Proxy) -> None:
    data = dataset(manifest(tmp_path, proxy.url, tars), **LARGE)
    blocks = [Piece(0, begin, begin + 2**17, whole=False) for begin in range(0, 2**20, 2**17)]
    other = Piece(1, 2**20, 2**20 + 2**17, whole=False)
    read_group(data, [blocks[5], blocks[1], other, blocks[0], blocks[2]])
    ranges = sorted((get.path, get.first, get.last + 1) for get in proxy.gets)
    assert [each[:2] for each in ranges] == [("/0.tar", 0), ("/0.tar", 5 * 2**17), ("/1.tar", 2**20)]
    assert 3 * 2**17 < ranges[0][2] < 4 * 2**17


def test_a_fault_costs_a_request_and_nothing_else(tmp_path: Path, tars: list[bytes], proxy: Proxy) -> None:
    storage = Storage(retry=RetryPolicy.immediate())
    data = dataset(manifest(tmp_path, proxy.url, tars), storage=storage, **LARGE)
    pieces = data.corpus().pieces(0, 0)[:8]
    wanted = read_group(data, pieces)
    for fault in (Fault("reset", 100_000), Fault("status", status=503), Fault("close", 0)):
        proxy.script([None, fault, None, fault])
        assert read_group(data, pieces) == wanted
    proxy.always = Fault("status", status=403)
    with pytest.raises(StorageError, match="403"):
        read_group(data, pieces)


def test_altered_bytes_are_not_served_again_from_memory(tmp_path: Path, tars: list[bytes], proxy: Proxy) -> None:
    data = dataset(manifest(tmp_path, proxy.url, tars), **LARGE)
    table, piece = data.list_shards(), Piece(0, 2**18, 2**19, whole=False)
    (wanted,) = read_group(data, [piece])
    proxy.always = Fault("flip", at=wanted[9].position + 150)
    fetched = data.pipeline.fetch([(table[0], piece, -1)])

    def again() -> list[Sample]:
        how = {"resume": -1, "max_range_bytes": RANGE_BYTES, "fetched": fetched}
        return list(data.pipeline.samples(table[0], piece, **how))

    with pytest.raises(CorruptShardError, match="a number in a header is not octal"):
        again()
    proxy.always = None
    assert again() == wanted


def test_a_document_of_many_blocks_is_read_by_one_of_them(tmp_path: Path) -> None:
    members = [(f"{index}.txt", bytes([97 + index]) * size) for index, size in enumerate([10, 5_000_000, 20, 70, 9])]
    data = dataset(write(tmp_path, [write_tar(members)]), num_lanes=1, shuffle=Shuffle())
    pieces = data.corpus().pieces(0, 0)
    found = [sample for piece in pieces for sample in read_group(data, [piece])[0]]
    assert sorted((each.key, len(each.members["txt"])) for each in found) == [
        (name.partition(".")[0], len(content)) for name, content in members
    ]


def test_a_closed_group_has_let_its_bytes_go(tmp_path: Path, tars: list[bytes], proxy: Proxy) -> None:
    data = dataset(manifest(tmp_path, proxy.url, tars), **LARGE)
    table = data.list_shards()
    fetched = data.pipeline.fetch([(table[piece.shard], piece, -1) for piece in data.corpus().pieces(0, 0)[:4]])
    assert not fetched.is_local
    fetched.close()
    fetched.close()
    assert dataset(write(tmp_path, tars)).pipeline.fetch([]).is_local


def test_blocks_of_s3(tmp_path: Path, tars: list[bytes]) -> None:
    server = servers.s3()
    urls = [servers.put_s3(f"blocks/{index}.tar", data) for index, data in enumerate(tars)]
    total = sum(map(len, tars))
    data = dataset(urls, storage=Storage(options=server.options), **LARGE)
    assert asked(data, total) < 1.2
