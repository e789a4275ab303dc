"""Digests of a manifest: altered bytes are asked for again, and are never data."""

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from support.proxy import Fault, Proxy
from support.thorough import nightly

from streampack import Limits, PackedDataLoader, PackedDataset, RetryPolicy, Storage
from streampack.errors import CorruptShardError
from streampack.storage.access import StorageReader
from streampack.storage.digests import BlockDigester, parse_digest
from streampack.testing import ByteTokenizer, write_shards

BLOCK = 2**16
DATA = random.Random(0).randbytes(5 * BLOCK + 1234)
SIZE = len(DATA)


def block_digest(data: bytes, block_bytes: int = BLOCK) -> str:
    digester = BlockDigester(block_bytes=block_bytes)
    digester.update(data)
    return digester.text()


DIGEST = block_digest(DATA)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    running = Proxy(objects={"/a.tar": DATA})
    yield running
    running.close()


def read(proxy: Proxy, start: int = 0, stop: int | None = None, digest: str = DIGEST, **how: Any) -> bytes:
    storage = StorageReader(retry=RetryPolicy.immediate())
    chunks = storage.chunks(f"{proxy.url}/a.tar", start, stop, size=SIZE, digest=digest, **how)
    return b"".join(chunks)


class TestText:
    """The form of a digest."""

    @given(st.binary(max_size=2000), st.integers(1, 300), st.lists(st.integers(1, 400), max_size=20))
    def test_it_is_the_same_however_the_bytes_come(self, data: bytes, block: int, cuts: list[int]) -> None:
        digester, at = BlockDigester("sha256", block), 0
        for cut in [*cuts, len(data)]:
            digester.update(data[at : at + cut])
            at += cut
        blocks = [data[begin : begin + block] for begin in range(0, len(data), block)]
        assert digester.text() == f"sha256/{block}:" + "".join(hashlib.sha256(each).hexdigest() for each in blocks)
        if data:
            parsed = parse_digest(digester.text(), size=len(data))
            assert parsed.expected(len(blocks) - 1) == hashlib.sha256(blocks[-1]).hexdigest()


class TestBlocks:
    """Every range of a shard, over a web server that alters bytes."""

    @pytest.mark.parametrize("first_bytes", [1000, BLOCK, *nightly([10 * BLOCK])])
    @pytest.mark.parametrize("max_bytes", [BLOCK + 1, *nightly([1000, 10 * BLOCK])])
    def test_any_range_is_given_exactly(self, proxy: Proxy, first_bytes: int, max_bytes: int) -> None:
        for start, stop in [(0, SIZE), (0, 1), (BLOCK - 1, BLOCK + 1), (BLOCK, 2 * BLOCK), (SIZE - 1, SIZE), (5, 5)]:
            found = read(proxy, start, stop, first_bytes=first_bytes, max_bytes=max_bytes)
            assert found == DATA[start:stop]

    def test_no_more_is_asked_for_than_the_blocks_of_the_range(self, proxy: Proxy) -> None:
        read(proxy, BLOCK + 5, 2 * BLOCK + 5, first_bytes=100)
        assert min(get.first for get in proxy.gets) == BLOCK
        assert max(get.last for get in proxy.gets) == 3 * BLOCK - 1
        assert len(proxy.gets) == 2

    @pytest.mark.parametrize("at", [0, 3 * BLOCK - 1, 3 * BLOCK, SIZE - 1])
    def test_a_byte_that_was_altered_on_its_way_is_asked_for_again(self, proxy: Proxy, at: int) -> None:
        proxy.script([None] * (at // BLOCK) + [Fault("flip", at=at)])  # a request for each block
        storage = StorageReader(retry=RetryPolicy.immediate())
        chunks = storage.chunks(f"{proxy.url}/a.tar", size=SIZE, digest=DIGEST, first_bytes=BLOCK, max_bytes=BLOCK)
        assert b"".join(chunks) == DATA
        assert storage.num_retries == 1

    def test_a_byte_that_stays_altered_is_an_error_that_names_url_and_block(self, proxy: Proxy) -> None:
        proxy.always = Fault("flip", at=2 * BLOCK + 77)
        given_out: list[bytes] = []
        chunks = StorageReader(retry=RetryPolicy.immediate()).chunks(
            f"{proxy.url}/a.tar", size=SIZE, digest=DIGEST, first_bytes=1000
        )
        with pytest.raises(
            CorruptShardError,
            match=rf"/a\.tar, byte {2 * BLOCK}: the block of {BLOCK} bytes from here on is not what the manifest says "
            r"\(xxh3 [0-9a-f]{16}, expected [0-9a-f]{16}; asked for 3 times\)",
        ) as raised:
            given_out.extend(chunks)
        assert b"".join(given_out) == DATA[: 2 * BLOCK]  # what is right before it, and nothing of it
        assert raised.value.offset == 2 * BLOCK

    def test_blocks_before_and_behind_the_altered_one_are_good(self, proxy: Proxy) -> None:
        proxy.always = Fault("flip", at=2 * BLOCK + 77)
        assert read(proxy, 0, 2 * BLOCK) == DATA[: 2 * BLOCK]
        assert read(proxy, 3 * BLOCK) == DATA[3 * BLOCK :]

    def test_local_files_are_checked_alike(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tar"
        damaged = bytearray(DATA)
        damaged[4 * BLOCK] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CorruptShardError, match=rf"byte {4 * BLOCK}: "):
            list(StorageReader(retry=RetryPolicy.immediate()).chunks(str(path), size=SIZE, digest=DIGEST))


class TestWhole:
    """A digest of a whole shard is checked where all of it is read."""

    def test_the_last_bytes_go_out_only_if_it_is_right(self, proxy: Proxy) -> None:
        digest = "sha256:" + hashlib.sha256(DATA).hexdigest()
        assert read(proxy, digest=digest) == DATA
        proxy.always = Fault("flip", at=7)
        found: list[bytes] = []
        chunks = StorageReader(retry=RetryPolicy.immediate()).chunks(
            f"{proxy.url}/a.tar", size=SIZE, digest=digest, first_bytes=BLOCK
        )
        with pytest.raises(CorruptShardError, match=r"byte 0: the shard is not what the manifest says \(sha256 "):
            found.extend(chunks)
        assert 0 < len(b"".join(found)) < SIZE

    def test_a_part_of_the_shard_is_read_without_it(self, proxy: Proxy) -> None:
        assert read(proxy, 1, digest="xxh3:" + "0" * 16) == DATA[1:]


class TestRuns:
    """From the shard to packs."""

    @pytest.fixture
    def shard(self, tmp_path: Path) -> bytes:
        texts = [f"{number} " * (1 + 97 * number % 400) for number in range(165)]
        (path,) = write_shards(tmp_path / "shards", texts, documents_per_shard=1000)
        return Path(path).read_bytes()

    def digest_of_packs(
        self, tmp_path: Path, proxy: Proxy, data: bytes, digest: str | None, name: str = "a.tar"
    ) -> int:
        line = {"url": f"{proxy.url}/{name}", "size": len(data), "digest": digest}
        (tmp_path / "m.jsonl").write_text(json.dumps({key: value for key, value in line.items() if value}))
        dataset = PackedDataset(
            f"@{tmp_path}/m.jsonl",
            ByteTokenizer(),
            256,
            num_lanes=3,
            epochs=1,
            shuffle="shards",  # blocks of a shuffle, of which a digest's block has many here, are in test_blocks.py
            limits=Limits(document_bytes=BLOCK, buffer_bytes=8 * BLOCK),
            storage=Storage(retry=RetryPolicy.immediate()),
        )
        with PackedDataLoader(dataset, batch_size=8, num_workers=0) as loader:
            for _ in loader:
                pass
            return loader.digest()

    def test_a_flipped_byte_of_a_text_is_other_data_without_digests_and_none_with_them(
        self, shard: bytes, tmp_path: Path
    ) -> None:
        with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
            texts = [member for member in tar.getmembers() if member.size > 1000]
        at = texts[len(texts) // 2].offset_data + 500
        digest = block_digest(shard)
        proxy = Proxy(objects={"/a.tar": shard})
        try:
            quiet = self.digest_of_packs(tmp_path, proxy, shard, None)
            assert self.digest_of_packs(tmp_path, proxy, shard, digest) == quiet
            proxy.script([Fault("flip", at=at)] * 100)
            assert self.digest_of_packs(tmp_path, proxy, shard, None) != quiet  # nobody notices
            proxy.reset()
            proxy.script([Fault("flip", at=at, last=True)] * 100)
            assert self.digest_of_packs(tmp_path, proxy, shard, digest) == quiet
            proxy.reset()
            proxy.always = Fault("flip", at=at)
            with pytest.raises(CorruptShardError, match=rf"a\.tar, byte {at // BLOCK * BLOCK}: the block of"):
                self.digest_of_packs(tmp_path, proxy, shard, digest)
        finally:
            proxy.close()

    def test_a_compressed_shard_with_a_digest_of_the_whole_ends_with_an_error_not_with_its_last_document(
        self, shard: bytes, tmp_path: Path
    ) -> None:
        data = gzip.compress(shard)
        wrong = xxhash.xxh3_64(data[:-1]).hexdigest()
        proxy = Proxy(objects={"/a.tar.gz": data})
        try:
            good = self.digest_of_packs(tmp_path, proxy, data, f"xxh3:{xxhash.xxh3_64(data).hexdigest()}", "a.tar.gz")
            assert good == self.digest_of_packs(tmp_path, proxy, data, None, "a.tar.gz")
            with pytest.raises(CorruptShardError, match="the shard is not what the manifest says"):
                self.digest_of_packs(tmp_path, proxy, data, f"xxh3:{wrong}", "a.tar.gz")
        finally:
            proxy.close()

    def test_a_digest_that_nobody_can_check_while_reading_warns(self, shard: bytes, tmp_path: Path) -> None:
        proxy = Proxy(objects={"/a.tar": shard})
        try:
            with pytest.warns(UserWarning, match=r"the digests of 1 of 1 shards are of whole shards.*--digests"):
                self.digest_of_packs(tmp_path, proxy, shard, "sha256:" + hashlib.sha256(shard).hexdigest())
        finally:
            proxy.close()
