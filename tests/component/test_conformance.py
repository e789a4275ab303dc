"""One class of promises over every kind of storage: the same bytes, listings and packs, digest for digest.

Local files, fsspec's memory, a web server, S3 (SeaweedFS), a GCS emulator, and a file system with faults; each also by
fsspec's own client, which serves the options that only it understands and all other protocols, and through a cache in a
chained URL.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pytest
from support import servers
from support.proxy import Proxy
from support.thorough import THOROUGH, nightly

from streampack import RetryPolicy, Storage
from streampack.storage.access import StorageReader
from streampack.storage.backends.anyfs import FsspecObject
from streampack.storage.backends.choice import open_object
from streampack.testing import Fault, StorageConformance

RETRY = RetryPolicy.immediate()
WITH_WORKERS = ("s3",)
"""What workers read in the normal run."""
FAULTS = (None, Fault.failing(), Fault.short(70), None, Fault.dropped(), Fault.short(0), Fault.stalling(0.01))


@dataclass
class Place:
    """Files somewhere: `root` + name is the URL of each, `put` stores one."""

    root: str
    put: Callable[[str, bytes], object]
    options: dict[str, Any] = field(default_factory=dict)
    lists: bool = True
    own_client: bool = False
    """Whether fsspec's client reads, and not ours."""
    is_shared: bool = True
    has_faults: bool = False


@pytest.fixture(scope="module")
def web() -> Iterator[Proxy]:
    proxy = Proxy()
    yield proxy
    proxy.close()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture(
    scope="module",
    params=[
        *("local", "memory", "http", "s3", "gcs", "faulty"),
        *("cached http", *nightly(["s3 by s3fs", "gcs by gcsfs", "http by fsspec", "cached s3"])),
    ],
)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, web: Proxy) -> Place:
    folder = tmp_path_factory.mktemp("place")
    cache = {"cache_storage": str(folder)}

    def put_local(name: str, data: bytes) -> None:
        write(folder / name, data)

    def put_memory(name: str, data: bytes) -> None:
        fsspec.filesystem("memory").pipe_file(f"/conf/{name}", data)

    def put_web(name: str, data: bytes) -> None:
        web.objects[f"/conf/{name}"] = data

    def put_s3(name: str, data: bytes) -> None:
        servers.put_s3(f"conf/{name}", data)

    def put_gcs(name: str, data: bytes) -> None:
        servers.put_gcs(f"conf/{name}", data)

    unlisted = {"lists": False}
    by_fsspec = {"own_client": True}
    return {
        "local": lambda: Place(f"{folder}/", put_local),
        "memory": lambda: Place("memory://conf/", put_memory, **by_fsspec, is_shared=False),
        "faulty": lambda: Place(f"faulty://{folder}/", put_local, {"faults": FAULTS}, **by_fsspec, has_faults=True),
        "http": lambda: Place(f"{web.url}/conf/", put_web, **unlisted),
        "http by fsspec": lambda: Place(f"{web.url}/conf/", put_web, {"client_kwargs": {}}, **unlisted, **by_fsspec),
        "s3": lambda: Place("s3://shards/conf/", put_s3, servers.s3().options),
        "s3 by s3fs": lambda: Place("s3://shards/conf/", put_s3, {**servers.s3().options, "loop": None}, **by_fsspec),
        "gcs": lambda: Place("gs://shards/conf/", put_gcs, servers.gcs().options),
        "gcs by gcsfs": lambda: Place(
            "gs://shards/conf/",
            put_gcs,
            {**servers.gcs().options, "session_kwargs": {"trust_env": False}},
            **by_fsspec,
        ),
        "cached http": lambda: Place(
            f"simplecache::{web.url}/conf/", put_web, {"simplecache": cache}, **unlisted, **by_fsspec
        ),
        "cached s3": lambda: Place(
            "simplecache::s3://shards/conf/",
            put_s3,
            {"simplecache": cache, "s3": servers.s3().options},
            **unlisted,
            **by_fsspec,
        ),
    }[request.param]()


class TestEveryStorage(StorageConformance):
    """What is promised to users, wherever the bytes are."""

    @pytest.fixture(autouse=True)
    def _there(self, place: Place, request: pytest.FixtureRequest) -> None:
        self.place, self.kind = place, request.node.callspec.params["place"]
        self.storage = Storage(options=place.options, retry=RETRY)
        self.lists, self.is_shared, self.has_faults = place.lists, place.is_shared, place.has_faults

    def test_workers_give_the_packs_of_local_files(self) -> None:
        if not THOROUGH and self.kind not in WITH_WORKERS:
            pytest.skip("long: for the nightly run")
        super().test_workers_give_the_packs_of_local_files()

    def put(self, name: str, data: bytes) -> str:
        self.place.put(name, data)
        return self.place.root + name

    def test_odd_names_are_found_by_a_listing_and_hidden_ones_are_not(self) -> None:
        if not self.place.lists:
            pytest.skip("the storage does not list")
        names = ["odd [v1]/why?.tar", "odd [v1]/en/a#b.tar", "odd [v1]/.hidden/c.tar", "odd [v1]/._a.tar"]
        urls = {self.put(name, name.encode()): name for name in names}
        reader = StorageReader.of(self.storage)
        found = reader.listing(f"{self.place.root}odd [v1]/")
        assert sorted(urls[url] for url, _ in found) == ["odd [v1]/en/a#b.tar", "odd [v1]/why?.tar"]
        for url, _ in found:
            assert b"".join(reader.chunks(url, size=reader.size(url))) == urls[url].encode()
        assert [url for url, _ in reader.listing(f"{self.place.root}odd [v1]/why?.tar")] == [next(iter(urls))]

    def test_the_client_is_the_one_that_is_meant(self) -> None:
        reader = open_object(f"{self.place.root}a.tar", None, StorageReader.of(self.storage)._clients)
        assert isinstance(reader, FsspecObject) == self.place.own_client


def read_in_child(storage: StorageReader, url: str, size: int, answers: Any) -> None:
    """Runs in another process."""
    answers.put((b"".join(storage.chunks(url, 10, size=size, first_bytes=30_000)), storage.size(url)))


METHODS = [("http", "spawn"), ("s3", "fork")]
"""A process that is no fork, and one that is; all pairs in the nightly run."""
if THOROUGH:
    METHODS = [(kind, method) for kind in ("http", "s3", "gcs") for method in ("spawn", "fork", "forkserver")]


@pytest.mark.parametrize(("kind", "method"), METHODS)
def test_a_process_of_any_kind_reads_after_its_parent_has_listed_and_read(kind: str, method: str, web: Proxy) -> None:
    data = os.urandom(300_000)
    if kind == "http":
        web.objects["/processes/notes.txt"] = data
        url, storage = f"{web.url}/processes/notes.txt", StorageReader({}, RETRY)
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
