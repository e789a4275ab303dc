"""One class of promises over every kind of storage: the same bytes, listings and packs, digest for digest.

Local files, fsspec's memory, a web server, S3 (SeaweedFS) and a GCS emulator; each also by fsspec's own client, which
serves the options that only it understands and all other protocols, and through a cache in a chained URL.
"""

import json
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pytest
from support import servers
from support.proxy import Proxy

from streampack import PackedDataLoader, PackedDataset, RetryPolicy, Storage
from streampack.errors import ShardNotFoundError, TruncatedShardError
from streampack.storage.access import StorageReader
from streampack.storage.backends.anyfs import FsspecObject
from streampack.storage.backends.choice import open_object
from streampack.testing import ByteTokenizer, write_shards

RETRY = RetryPolicy.immediate()


@dataclass
class Place:
    """Files somewhere: `root` + name is the URL of each."""

    root: str
    options: dict[str, Any] = field(default_factory=dict)
    lists: bool = True
    own_client: bool = False
    """Whether fsspec's client reads, and not ours."""

    def storage(self) -> StorageReader:
        return StorageReader(self.options, RETRY)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Name -> bytes: three plain shards, a compressed one, and a file that is no shard."""
    folder = tmp_path_factory.mktemp("shards")
    texts = [f"{number} is a number. " * (1 + 37 * number % 400) for number in range(120)]
    write_shards(folder, texts[:90], documents_per_shard=30)
    write_shards(folder / "gz", texts[90:], documents_per_shard=30, compression="gz")
    found = {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}
    found["c.tar.gz"] = (folder / "gz" / "00000.tar.gz").read_bytes()
    found["notes.txt"] = os.urandom(300_000)
    return found


@pytest.fixture(scope="module")
def web(files: dict[str, bytes]) -> Iterator[Proxy]:
    proxy = Proxy(objects={f"/conf/{name}": data for name, data in files.items()})
    yield proxy
    proxy.close()


@pytest.fixture(
    scope="module",
    params=[
        *("local", "memory", "http", "s3", "gcs"),
        *("http by fsspec", "s3 by s3fs", "gcs by gcsfs", "cached http", "cached s3"),
    ],
)
def place(
    request: pytest.FixtureRequest, files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, web: Proxy
) -> Place:
    kind = request.param
    folder = tmp_path_factory.mktemp("place")
    if kind == "local":
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return Place(f"{folder}/")
    if kind == "memory":
        for name, data in files.items():
            fsspec.filesystem("memory").pipe_file(f"/conf/{name}", data)
        return Place("memory://conf/")
    if "s3" in kind:
        for name, data in files.items():
            servers.put_s3(f"conf/{name}", data)
    if "gcs" in kind:
        for name, data in files.items():
            servers.put_gcs(f"conf/{name}", data)
    cache = {"cache_storage": str(folder)}
    return {
        "http": lambda: Place(f"{web.url}/conf/", lists=False),
        "http by fsspec": lambda: Place(f"{web.url}/conf/", {"client_kwargs": {}}, lists=False, own_client=True),
        "s3": lambda: Place("s3://shards/conf/", servers.s3().options),
        "s3 by s3fs": lambda: Place("s3://shards/conf/", {**servers.s3().options, "loop": None}, own_client=True),
        "gcs": lambda: Place("gs://shards/conf/", servers.gcs().options),
        "gcs by gcsfs": lambda: Place(
            "gs://shards/conf/", {**servers.gcs().options, "session_kwargs": {"trust_env": False}}, own_client=True
        ),
        "cached http": lambda: Place(
            f"simplecache::{web.url}/conf/", {"simplecache": cache}, lists=False, own_client=True
        ),
        "cached s3": lambda: Place(
            "simplecache::s3://shards/conf/",
            {"simplecache": cache, "s3": servers.s3().options},
            lists=False,
            own_client=True,
        ),
    }[kind]()


def run(place: Place, files: dict[str, bytes], folder: Path, **more: Any) -> int:
    """The digest of an epoch's packs from all shards, in the order of their names."""
    manifest = folder / "manifest.jsonl"
    shards = [name for name in files if ".tar" in name]
    manifest.write_text("\n".join(json.dumps({"url": place.root + name, "size": len(files[name])}) for name in shards))
    dataset = PackedDataset(
        more.pop("data", f"@{manifest}"),
        ByteTokenizer(),
        seq_len=512,
        num_lanes=4,
        epochs=1,
        storage=Storage(options=place.options, retry=RETRY),
    )
    with PackedDataLoader(dataset, batch_size=8, **{"num_workers": 0, **more}) as loader:
        for _ in loader:
            pass
        return loader.digest()


@pytest.fixture(scope="module")
def digest(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> int:
    """Of a run over local files."""
    folder = tmp_path_factory.mktemp("reference")
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return run(Place(f"{folder}/"), files, tmp_path_factory.mktemp("run"))


class TestEveryStorage:
    """What `StorageReader` promises, wherever the bytes are."""

    @pytest.mark.parametrize("known", [True, False], ids=["size known", "size unknown"])
    def test_a_range_is_exactly_the_bytes_asked_for(self, place: Place, files: dict[str, bytes], known: bool) -> None:
        storage, data = place.storage(), files["notes.txt"]
        url, size = place.root + "notes.txt", len(data)
        for start, stop in [(0, None), (1, 2), (70_000, 280_000), (size - 1, size), (size, size), (299, None)]:
            chunks = list(
                storage.chunks(url, start, stop, size=size if known else None, first_bytes=20_000, max_bytes=100_000)
            )
            assert b"".join(chunks) == data[start:stop], (start, stop)
            assert max(map(len, chunks), default=0) <= 100_000
        assert storage.num_retries == 0

    def test_the_client_is_the_one_that_is_meant(self, place: Place) -> None:
        reader = open_object(place.root + "notes.txt", None, place.storage()._clients)
        assert isinstance(reader, FsspecObject) == (place.own_client or place.root.startswith("memory"))

    def test_the_size_is_told(self, place: Place, files: dict[str, bytes]) -> None:
        assert place.storage().size(place.root + "notes.txt") == len(files["notes.txt"])

    def test_a_small_object_is_read_whole(self, place: Place, files: dict[str, bytes]) -> None:
        assert place.storage().read(place.root + "notes.txt") == files["notes.txt"]

    def test_an_object_that_is_not_there_is_named(self, place: Place) -> None:
        storage = place.storage()
        for ask in (storage.size, storage.read, lambda url: list(storage.chunks(url, size=10))):
            with pytest.raises(
                ShardNotFoundError, match=r"nothing\.tar.*: there is no such file or object .*check the U"
            ):
                ask(place.root + "nothing.tar")
        assert storage.num_retries == 0

    def test_an_object_that_is_too_short_is_an_error_at_its_end(self, place: Place, files: dict[str, bytes]) -> None:
        with pytest.raises(TruncatedShardError, match=r"byte 300000: the object ends here, 400000 bytes were expected"):
            list(place.storage().chunks(place.root + "notes.txt", 1000, size=400_000))

    def test_a_glob_and_a_directory_are_listed_with_sizes(self, place: Place, files: dict[str, bytes]) -> None:
        if not place.lists:
            return
        everything = sorted((place.root + name, len(data)) for name, data in files.items())
        assert place.storage().listing(place.root) == everything
        assert place.storage().listing(place.root + "*.tar") == [item for item in everything if item[0].endswith("tar")]
        assert place.storage().is_directory(place.root)

    def test_a_run_gives_the_same_packs(
        self, place: Place, files: dict[str, bytes], digest: int, tmp_path: Path
    ) -> None:
        assert run(place, files, tmp_path) == digest

    def test_forked_workers_give_the_same_packs_after_the_parent_has_listed(
        self, place: Place, files: dict[str, bytes], digest: int, tmp_path: Path
    ) -> None:
        if place.lists:  # globs sort, and so does the manifest
            listed = run(place, files, tmp_path, data=[place.root + "*.tar", place.root + "*.tar.gz"], num_workers=2)
            assert listed == digest
        else:
            assert place.storage().size(place.root + "notes.txt") == len(files["notes.txt"])
            assert run(place, files, tmp_path, num_workers=2) == digest


def read_in_child(storage: StorageReader, url: str, size: int, answers: Any) -> None:
    """Runs in another process."""
    answers.put((b"".join(storage.chunks(url, 10, size=size, first_bytes=30_000)), storage.size(url)))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("kind", ["http", "s3", "gcs"])
def test_a_process_of_any_kind_reads_after_its_parent_has_listed_and_read(
    kind: str, method: str, files: dict[str, bytes], web: Proxy
) -> None:
    data = files["notes.txt"]
    if kind == "http":
        url, storage = f"{web.url}/conf/notes.txt", StorageReader({}, RETRY)
    elif kind == "s3":
        url, storage = servers.put_s3("processes/notes.txt", data), StorageReader(servers.s3().options, RETRY)
    else:
        url, storage = servers.put_gcs("processes/notes.txt", data), StorageReader(servers.gcs().options, RETRY)
    if kind != "http":
        assert storage.listing(url.replace("notes", "*")) == [(url, len(data))]
    reading = storage.chunks(url, size=len(data), first_bytes=20_000, max_bytes=40_000)
    begun = [next(reading) for _ in range(5)]  # with a read-ahead under way
    context = multiprocessing.get_context(method)
    answers = context.SimpleQueue()
    child = context.Process(target=read_in_child, args=(storage, url, len(data), answers))
    child.start()
    assert answers.get() == (data[10:], len(data))
    child.join(60)
    assert child.exitcode == 0
    assert b"".join([*begun, *reading]) == data
