"""The fault matrix: what goes wrong x how often x where, over whole runs from shard to packs.

A run either gives the packs of a run without faults, digest for digest, or ends with the one error that is documented
for the fault, within a stated time; the requests that it took are counted. Real servers answer (SeaweedFS, a GCS
emulator, a web server), a proxy before them does the harm.
"""

import dataclasses
import email.utils
import functools
import io
import json
import re
import tarfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import servers
from support.proxy import Fault, Proxy
from support.thorough import some

from streampack import Limits, PackedDataLoader, PackedDataset, RetryPolicy, Storage
from streampack.errors import CorruptShardError, ShardError, ShardNotFoundError, StorageError
from streampack.storage.access import StorageReader
from streampack.testing import ByteTokenizer, write_shards

TRIES = 4
FAULT_FREE = 4
"""Requests of a run without faults."""
RANGE = 128 * 1024


def xml(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}, says the test</Message></Error>".encode()


def status(number: int, code: str, **headers: str) -> Fault:
    return Fault("status", status=number, body=xml(code), headers={"Content-Type": "application/xml", **headers})


EMPTY = rf"byte 0: not a byte in \d+ s and {TRIES} tries, last .*{{}}.*check the network and the service"
AGAIN = EMPTY.replace("byte 0", r"byte \d+")
REFUSED = r"byte \d+: cannot be read, and trying again would not help: .*\(.*{}.*check the credentials"


@dataclass(frozen=True)
class Row:
    """A fault, and what becomes of a run that meets it: None for the right packs, else the error and its text."""

    fault: Fault
    once: tuple[type[Exception], str] | None = None
    often: tuple[type[Exception], str] | None = None
    for_good: tuple[type[Exception], str] | None = None
    most_requests: int = 12
    most_s: float = 20.0
    timeout_s: float = 20.0
    least_s: float = 0.0


MISSING = ShardNotFoundError, r"byte \d+: there is no such file or object \(.*(404|NoSuchKey).*check the URL"
FLIPPED = CorruptShardError, r"a\.tar, .*byte \d+: .*(checksum|header)"
MIDDLE = 40_000
ROWS = {
    "reset in the body": Row(Fault("reset", MIDDLE), most_requests=60),
    "reset before the head": Row(Fault("reset", None), for_good=(StorageError, EMPTY.format(""))),
    "reset before the body": Row(Fault("reset", 0), for_good=(StorageError, EMPTY.format(""))),
    "early close in the body": Row(Fault("close", MIDDLE), most_requests=60),
    "early close before the head": Row(Fault("close", None), for_good=(StorageError, EMPTY.format(""))),
    "stall in the body": Row(Fault("stall", 0), timeout_s=0.3, for_good=(StorageError, EMPTY.format(""))),
    "stall before the head": Row(Fault("stall", None), timeout_s=0.3, for_good=(StorageError, EMPTY.format(""))),
    "500": Row(status(500, "InternalError"), for_good=(StorageError, EMPTY.format("InternalError|500"))),
    "503": Row(status(503, "SlowDown"), for_good=(StorageError, EMPTY.format("SlowDown"))),
    "503, Retry-After": Row(
        status(503, "SlowDown", **{"Retry-After": "1"}),
        for_good=(StorageError, EMPTY.format(r"SlowDown.*server sent Retry-After: 1 s")),
        least_s=1.0,
    ),
    "429": Row(status(429, "TooManyRequests"), for_good=(StorageError, EMPTY.format("TooManyRequests"))),
    "throttle": Row(Fault("throttle", seconds=0.002), most_requests=FAULT_FREE),
    "slow first byte": Row(Fault("delay", seconds=0.2), most_requests=FAULT_FREE, least_s=0.2),
    "Range ignored": Row(Fault("whole"), most_requests=FAULT_FREE),
    "no Content-Length, and cut": Row(Fault("unsized", MIDDLE), most_requests=60),
    "Content-Length too large": Row(Fault("length", by=1000), most_requests=FAULT_FREE),
    "Content-Length too small": Row(  # for good, nothing is left of the last thousand bytes
        Fault("length", by=-1000), for_good=(StorageError, AGAIN.format("ended after 0 of|an empty answer"))
    ),
    "byte flipped": Row(Fault("flip"), for_good=FLIPPED),  # in a header; digests or TLS guard the others
    "403": Row(
        status(403, "AccessDenied"),
        # At the first request nothing says that the credentials were ever good; later they are renewed once.
        often=(StorageError, REFUSED.format("AccessDenied")),
        for_good=(StorageError, REFUSED.format("AccessDenied")),
    ),
    "404": Row(status(404, "NoSuchKey"), MISSING, MISSING, MISSING),
    "expired credentials": Row(
        status(400, "ExpiredToken"), for_good=(StorageError, REFUSED.format("ExpiredToken")), most_requests=8
    ),
}


@dataclass
class Place:
    """A shard on a real server behind a proxy."""

    proxy: Proxy
    url: str
    options: dict[str, Any]
    data: bytes
    replace: Any
    """Puts other bytes in the shard's place."""
    digest: int = 0
    shuffled_digest: int = 0

    def run(self, folder: Path, retry: RetryPolicy, **changes: Any) -> int:
        """The digest of all packs; the shard is read from its first byte to its last, unless `changes` say not to."""
        manifest = folder / "manifest.jsonl"
        manifest.write_text(json.dumps({"url": self.url, "size": len(self.data)}))
        limits = Limits(document_bytes=RANGE, buffer_bytes=2 * RANGE)
        dataset = PackedDataset(
            f"@{manifest}",
            ByteTokenizer(),
            seq_len=4096,
            num_lanes=1,
            epochs=1,
            storage=Storage(options=self.options, retry=retry),
            **{"shuffle": "shards", "limits": limits, **changes},
        )
        with PackedDataLoader(dataset, batch_size=64, num_workers=0) as loader:
            for _ in loader:
                pass
            return loader.digest()


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("shard")
    texts = [f"{number} " * (1 + 97 * number % 400) for number in range(165)]
    (path,) = write_shards(folder, texts, documents_per_shard=1000)
    return Path(path).read_bytes()


PLACES = ("http", "s3", "gcs")
CASES = [
    # In the normal run each fault comes at one of the places, in one frequency.
    (place, name, frequency)
    for number, place in enumerate(PLACES)
    for row, name in some(list(enumerate(ROWS)), 3, first=number)
    for frequency in some(("once", "often", "for good"), 3, first=row // 3 % 3)
]


@pytest.fixture(scope="module")
def places(shard: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Place]]:
    """Each place, made once; a parametrized fixture of the module would be made again for each case."""

    @functools.cache
    def make(name: str) -> Place:
        if name == "http":
            proxy = Proxy(objects={"/faults/a.tar": shard})
            found = Place(proxy, f"{proxy.url}/faults/a.tar", {}, shard, proxy.objects.__setitem__)
        else:
            server, put = (servers.s3(), servers.put_s3) if name == "s3" else (servers.gcs(), servers.put_gcs)
            proxy = Proxy(upstream=server.url)
            found = Place(proxy, put("faults/a.tar", shard), server.at(proxy.url), shard, put)
        proxy.objects["/faults/a.tar" if name == "http" else "faults/a.tar"] = shard
        found.digest = found.run(tmp_path_factory.mktemp("run"), RetryPolicy.immediate())
        assert len(proxy.gets) == FAULT_FREE
        made.append(found)
        return found

    made: list[Place] = []
    yield make
    for place in made:
        place.proxy.close()


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Place:
    return places(request.param)


@pytest.mark.parametrize(("place", "name", "frequency"), CASES, indirect=["place"])
def test_a_run_with_faults_gives_the_right_packs_or_the_documented_error(
    place: Place, name: str, frequency: str, tmp_path: Path
) -> None:
    row, proxy = ROWS[name], place.proxy
    proxy.reset()
    fault, first = row.fault, name == "byte flipped"
    if first:
        with tarfile.open(fileobj=io.BytesIO(place.data)) as tar:
            fault = dataclasses.replace(fault, at=tar.getmembers()[2].offset_data - 512 + 100)
    if frequency == "once":
        proxy.script([fault] if first else [None, fault])
    elif frequency == "often":
        proxy.script([fault, None] * 100)
    else:
        proxy.always = fault
    expected = {"once": row.once, "often": row.often, "for good": row.for_good}[frequency]
    retry = RetryPolicy(
        timeout_s=row.timeout_s,
        first_wait_s=0.001,
        max_wait_s=0.01,
        max_tries=3 if row.least_s >= 1 and frequency == "for good" else TRIES,
    )
    began = time.monotonic()
    if expected is None:
        assert place.run(tmp_path, retry) == place.digest
    else:
        kind, text = expected
        with pytest.raises(kind, match=text.replace(f"{TRIES} tries", f"{retry.max_tries} tries")) as raised:
            place.run(tmp_path, retry)
        assert type(raised.value) is kind
        assert re.search(r"faults/a\.tar, .*byte \d+: ", str(raised.value))
    elapsed = time.monotonic() - began
    assert row.least_s <= elapsed < row.most_s
    assert len(proxy.gets) <= row.most_requests


SHUFFLED: dict[str, Any] = {"shuffle": True, "limits": Limits(document_bytes=RANGE)}
OF_BLOCKS = [name for name in ROWS if name != "byte flipped"]  # of an object, and a block may not have it


@pytest.mark.parametrize(("place", "name"), [("http", name) for name in some(OF_BLOCKS, 7)], indirect=["place"])
def test_faults_of_blocks_of_a_window_change_no_pack_of_a_shuffle(place: Place, name: str, tmp_path: Path) -> None:
    """The blocks of a window are asked for side by side, and those of the next one ahead of their turn."""
    row, proxy = ROWS[name], place.proxy
    if not place.shuffled_digest:
        proxy.reset()
        place.shuffled_digest = place.run(tmp_path, RetryPolicy.immediate(), **SHUFFLED)
        assert place.shuffled_digest != place.digest
        assert len(proxy.gets) > 20 and proxy.most_under_way > 1
    fault = dataclasses.replace(row.fault, after=row.fault.after and 3000)
    retry = RetryPolicy(timeout_s=row.timeout_s, first_wait_s=0.001, max_wait_s=0.01, max_tries=TRIES)
    proxy.reset()
    proxy.script([*[None] * 3, fault, *[None] * 12, fault])
    if row.once is None:
        assert place.run(tmp_path, retry, **SHUFFLED) == place.shuffled_digest
        assert not proxy.faults, "both have come"
    else:
        with pytest.raises(row.once[0], match=row.once[1]):
            place.run(tmp_path, retry, **SHUFFLED)


def test_a_server_that_asks_for_more_peace_than_the_budget_has_is_an_error_at_once(place: Place) -> None:
    later = email.utils.formatdate(time.time() + 3600, usegmt=True)
    for asked in ("3600", later):
        place.proxy.reset()
        place.proxy.always = status(503, "SlowDown", **{"Retry-After": asked})
        with pytest.raises(StorageError, match=r"1 try, last .*server sent Retry-After: 3[56]\d\d s"):
            list(StorageReader(place.options).chunks(place.url, size=len(place.data)))
        assert len(place.proxy.gets) == 1


def test_a_slow_answer_that_makes_progress_is_not_cut_off(place: Place) -> None:
    place.proxy.reset()
    place.proxy.always = Fault("throttle", seconds=0.1)
    storage = StorageReader(place.options, RetryPolicy(timeout_s=1.5))
    began = time.monotonic()
    chunks = list(storage.chunks(place.url, size=len(place.data), first_bytes=len(place.data)))
    assert b"".join(chunks) == place.data
    assert time.monotonic() - began > 1.5
    assert storage.num_retries == 0


def test_after_a_pause_in_which_all_connections_died_one_timeout_is_lost(place: Place) -> None:
    """As after an evaluation: the connections that were kept answer no more, and only one of them costs a time-out."""
    place.proxy.reset()
    place.proxy.script([Fault("delay", seconds=0.5)] * 6)
    storage = StorageReader(place.options, RetryPolicy(timeout_s=1.0, first_wait_s=0.001, max_wait_s=0.01))
    readings = [storage.chunks(place.url, size=len(place.data), first_bytes=1000, max_bytes=8000) for _ in range(6)]
    threads = [threading.Thread(target=next, args=(reading,)) for reading in readings]  # so many connections
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    place.proxy.silence()
    assert len(b"".join(readings[0])) == len(place.data) - 1000
    assert storage.num_retries <= 1


def test_an_object_that_is_replaced_while_it_is_read_is_an_error(place: Place, tmp_path: Path) -> None:
    name = "/faults/a.tar" if place.url.startswith("http") else "faults/a.tar"
    other = place.data[:-1024] + bytes(1023) + b"1"
    place.proxy.reset()
    place.proxy.script([None, Fault("call", action=lambda: place.replace(name, other))])
    try:
        with pytest.raises(ShardError, match=r"a\.tar, byte \d+: the object was replaced while it was read .*new ru"):
            place.run(tmp_path, RetryPolicy.immediate())
        assert len(place.proxy.gets) == 2
    finally:
        place.replace(name, place.data)


class Limit(deque[Fault | None]):
    """The faults of a proxy that answers so many requests a second and refuses the others."""

    def __init__(self, rate: float) -> None:
        super().__init__([None])  # it is never empty
        self.rate, self.tokens, self.at = rate, 1.0, time.monotonic()
        self.num_refused = 0

    def popleft(self) -> Fault | None:
        now = time.monotonic()
        self.tokens, self.at = min(self.tokens + (now - self.at) * self.rate, self.rate / 10), now
        if self.tokens >= 1:
            self.tokens -= 1
            return None
        self.num_refused += 1
        return status(503, "SlowDown")


def test_workers_of_a_storage_with_a_limit_slow_down_together_and_give_the_same_packs(
    shard: bytes, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{number}.tar" for number in range(3)]
    for path in paths:
        path.write_bytes(shard)
    proxy = Proxy(objects={f"/{path.name}": shard for path in paths})
    limit = proxy.faults = Limit(rate=100)
    sizes = {f"{proxy.url}/{path.name}": len(shard) for path in paths}
    (tmp_path / "manifest.jsonl").write_text(
        "".join(json.dumps({"url": url, "size": size}) + "\n" for url, size in sizes.items())
    )

    def packs(data: str, num_workers: int) -> list[int]:
        dataset = PackedDataset(data, ByteTokenizer(), 4096, num_lanes=6, epochs=1, **SHUFFLED)
        with PackedDataLoader(dataset, 2, num_workers=num_workers, multiprocessing_context="fork") as loader:
            return [hash(batch["tokens"].numpy().tobytes()) for batch in loader]

    assert packs(f"@{tmp_path}/manifest.jsonl", 3) == packs(f"{tmp_path}/*.tar", 0)
    answered = len(proxy.gets) - limit.num_refused
    assert limit.num_refused < answered / 4  # more than half, where each slows down for itself
    proxy.close()
