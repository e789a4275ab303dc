"""What every storage must do, as a class of tests that you subclass for a storage of your own.

    from streampack import RetryPolicy, Storage
    from streampack.testing import StorageConformance

    class TestMyStorage(StorageConformance):
        storage = Storage(options={"endpoint": "http://127.0.0.1:9000"}, retry=RetryPolicy.immediate())

        def put(self, name: str, data: bytes) -> str:
            my_client.upload(f"tests/{name}", data)
            return f"mine://bucket/tests/{name}"

pytest runs the methods that begin with `test_`; they need nothing else of it. A storage that fsspec knows is read as it
is. The class proves that streampack's promises hold on it: exact ranges, a documented error for an object that is
missing or too short and for a tar that was cut, and the packs of local files, digest for digest.
"""

import contextlib
import functools
import json
import multiprocessing
import pickle
import random
import tempfile
import unittest
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from streampack.errors import ShardNotFoundError, StreampackError, TruncatedShardError
from streampack.storage.access import StorageReader
from streampack.storage.options import RetryPolicy, Storage
from streampack.testing.shards import write_shards
from streampack.tokenizers.bytes import ByteTokenizer

__all__ = ["StorageConformance"]

_DATA = random.Random(0).randbytes(300_000)  # noqa: S311 - any bytes


class StorageConformance:
    """Subclass it under a name that begins with `Test`, and override `put`; and `storage`, where it needs options."""

    storage: Storage = Storage(retry=RetryPolicy.immediate())
    """How the URLs are reached; an attribute or a property."""
    lists: bool = True
    """Whether the storage can list folders; a plain web server cannot, and the test of listings is skipped then."""
    is_shared: bool = True
    """Whether other processes find what `put` has stored; the test of workers is skipped if not, as for memory://."""
    has_faults: bool = False
    """Whether temporary faults are expected; if not, a single one is a failure."""

    def put(self, name: str, data: bytes) -> str:
        """Store the bytes under a name, which has a `/` in it, and return their URL.

        Names in one folder give URLs in one folder. A name comes again with the same bytes only.
        """
        raise NotImplementedError

    def test_a_range_is_exactly_the_bytes_asked_for(self) -> None:
        url, size = self.put("ranges/notes.bin", _DATA), len(_DATA)
        reader = self._reader()
        for known in (size, None):
            for start, stop in [(0, None), (1, 2), (70_000, 280_000), (size - 1, size), (size, size), (299, None)]:
                pieces = list(reader.chunks(url, start, stop, size=known, first_bytes=20_000, max_bytes=100_000))
                assert b"".join(pieces) == _DATA[start:stop], (start, stop)
                assert max(map(len, pieces), default=0) <= 100_000, (start, stop)
        self._expect_no_faults(reader)

    def test_the_size_is_told(self) -> None:
        url = self.put("ranges/notes.bin", _DATA)
        assert self._reader().size(url) == len(_DATA)

    def test_a_small_object_is_read_whole(self) -> None:
        url = self.put("ranges/notes.bin", _DATA)
        assert self._reader().read(url) == _DATA

    def test_an_object_that_is_missing_is_an_error_that_names_it(self) -> None:
        url = self.put("ranges/notes.bin", _DATA).replace("notes.bin", "nothing.tar")
        reader = self._reader()
        for ask in (reader.size, reader.read, lambda missing: list(reader.chunks(missing, size=10))):
            with _raises(ShardNotFoundError, "nothing.tar", "there is no such file or object", "check the URL"):
                ask(url)
        self._expect_no_faults(reader)

    def test_an_object_that_is_too_short_is_an_error_at_its_end(self) -> None:
        url = self.put("ranges/notes.bin", _DATA)
        with _raises(TruncatedShardError, "byte 300000: the object ends here, 400000 bytes were expected"):
            list(self._reader().chunks(url, 1000, size=400_000))

    def test_a_glob_and_a_directory_are_listed_with_sizes(self) -> None:
        if not self.lists:
            raise unittest.SkipTest("lists = False: the storage cannot list folders")
        sizes = {self.put(f"listed/{name}", bytes(size)): size for name, size in [("a.tar", 1), ("b.tar", 2), ("c", 3)]}
        folder = next(iter(sizes)).removesuffix("a.tar")
        reader = self._reader()
        assert reader.listing(folder) == sorted(sizes.items())
        assert reader.listing(f"{folder}*.tar") == [item for item in sorted(sizes.items()) if item[0].endswith(".tar")]
        assert reader.is_directory(folder)

    def test_a_reader_works_in_another_process(self) -> None:
        url = self.put("ranges/notes.bin", _DATA)
        reader = self._reader()
        reading = reader.chunks(url, size=len(_DATA), first_bytes=20_000, max_bytes=40_000)
        begun = [next(reading) for _ in range(5)]  # with a request under way
        context = multiprocessing.get_context("fork")
        receiving, sending = context.Pipe(duplex=False)
        child = context.Process(target=_read_in_child, args=(pickle.dumps(reader), url, sending))
        child.start()
        sending.close()  # so that a child that dies is an EOFError here
        assert receiving.recv() == (_DATA[10:], len(_DATA))
        child.join()
        assert b"".join([*begun, *reading]) == _DATA

    def test_shards_give_the_packs_of_local_files(self) -> None:
        corpus = _corpus()
        assert _digest(self._put_shards(), self.storage) == corpus.digest

    def test_workers_give_the_packs_of_local_files(self) -> None:
        if not self.is_shared:
            raise unittest.SkipTest("is_shared = False: what is stored is in the memory of this process")
        corpus, sizes = _corpus(), self._put_shards()
        if self.lists:  # the parent has used its clients before it forks
            folder = next(iter(sizes)).removesuffix(next(iter(corpus.shards)))
            assert _digest([f"{folder}*.tar", f"{folder}*.tar.gz"], self.storage, num_workers=2) == corpus.digest
        else:
            assert _digest(sizes, self.storage, num_workers=2) == corpus.digest

    def test_a_shard_that_was_cut_is_an_error(self) -> None:
        data = next(iter(_corpus().shards.values()))
        reader = self._reader()
        for at in (0, 512, len(data) // 2):
            url = self.put(f"cut/{at}.tar", data[:at])
            with _raises(TruncatedShardError, f"{at}.tar", f"byte {at}"):
                list(reader.chunks(url, size=len(data)))  # cut after it was listed
        with _raises(TruncatedShardError, f"{at}.tar"):
            _digest({url: at}, self.storage)  # and before

    def _reader(self) -> StorageReader:
        return StorageReader.of(self.storage)

    def _put_shards(self) -> dict[str, int]:
        return {self.put(f"shards/{name}", data): len(data) for name, data in _corpus().shards.items()}

    def _expect_no_faults(self, reader: StorageReader) -> None:
        assert self.has_faults or reader.num_retries == 0, f"{reader.num_retries} faults that passed"


class _Corpus(NamedTuple):
    shards: dict[str, bytes]
    digest: int
    """Of the packs that they give as local files."""


@functools.cache
def _corpus() -> _Corpus:
    """Three plain shards and a compressed one."""
    texts = [f"{number} is a number. " * (1 + 37 * number % 400) for number in range(120)]
    with tempfile.TemporaryDirectory() as folder:
        written = write_shards(f"{folder}/plain", texts[:90], documents_per_shard=30)
        written += write_shards(f"{folder}/gz", texts[90:], documents_per_shard=30, compression="gz")
        shards = {Path(path).name: Path(path).read_bytes() for path in written}
        digest = _digest({path: Path(path).stat().st_size for path in written}, Storage())
    return _Corpus(shards, digest)


def _digest(shards: Mapping[str, int] | Sequence[str], storage: Storage, *, num_workers: int = 0) -> int:
    """The digest of an epoch's packs; of shards with their sizes, or of globs."""
    from streampack.dataset.dataset import PackedDataset  # imports torch
    from streampack.loader.loader import PackedDataLoader

    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder, "manifest.jsonl")
        if isinstance(shards, Mapping):
            manifest.write_text("\n".join(json.dumps({"url": url, "size": size}) for url, size in shards.items()))
        dataset = PackedDataset(
            f"@{manifest}" if isinstance(shards, Mapping) else shards,
            ByteTokenizer(),
            512,
            num_lanes=4,
            epochs=1,
            storage=storage,
        )
        with PackedDataLoader(dataset, batch_size=8, num_workers=num_workers) as loader:
            for _ in loader:
                pass
            return loader.digest()


def _read_in_child(pickled: bytes, url: str, sending: Connection) -> None:
    """Runs in another process."""
    reader = pickle.loads(pickled)  # noqa: S301 - our own
    sending.send((b"".join(reader.chunks(url, 10, size=len(_DATA), first_bytes=30_000)), reader.size(url)))


@contextlib.contextmanager
def _raises(kind: type[StreampackError], *texts: str) -> Iterator[None]:
    """An assertion that the block raises an error of this kind, whose message has these texts."""
    try:
        yield
    except kind as error:
        missing = [text for text in texts if text not in str(error)]
        if missing:
            raise AssertionError(f"{error} does not say {missing}") from error
    else:
        raise AssertionError(f"{kind.__name__} was expected, and nothing was raised")
