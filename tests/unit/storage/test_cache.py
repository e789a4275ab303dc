"""The cache: each byte of a version is asked for once on a node, whoever reads, and nothing else is given.

The servers are real ones, the processes too.
"""

import hashlib
import itertools
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from support import servers
from support.caches import (
    DATA,
    ETAG,
    MIB,
    OTHER,
    OTHER_ETAG,
    RETRY,
    SIZE,
    block_files,
    held,
    num_bytes,
    other_process,
    read,
    storage,
    wait_for,
)
from support.proxy import Fault, Proxy, _Handler
from support.thorough import some

from streampack import RetryPolicy
from streampack.errors import CorruptShardError, ShardError
from streampack.storage import clients
from streampack.storage.access import StorageReader
from streampack.storage.cache import blockfile
from streampack.storage.cache import folder as cache_folder
from streampack.storage.cache.blockfile import BLOCK_BYTES, CHUNK_BYTES
from streampack.storage.cache.blocknames import block_names, object_key
from streampack.storage.cache.folder import CacheFolder
from streampack.storage.clients import Clients
from streampack.storage.digests import BlockDigester


class _OneEtag(_Handler):
    """Says one ETag of all objects."""

    def _own(self) -> tuple[int, dict[str, str], bytes]:
        status, headers, body = super()._own()
        return status, {**headers, "ETag": '"same"'}, body


class TestReading:
    """The cache changes nothing but how often the storage is asked."""

    def test_any_ranges_are_right_and_no_byte_is_asked_for_twice(self, proxy: Proxy, cache_dir: Path) -> None:
        chooser = random.Random(3)
        places = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, SIZE - 1, SIZE]
        for _ in some(range(15), 5):
            ends = [chooser.choice(places) if chooser.random() < 0.4 else chooser.randrange(SIZE) for _ in range(2)]
            start, stop = sorted(ends)
            first_bytes = chooser.choice([1000, 128 * 1024, 512 * 1024, 3 * MIB])
            max_bytes = chooser.choice([first_bytes, 8 * MIB])
            reader = storage(cache_dir)
            assert read(reader, proxy, start, stop, first_bytes=first_bytes, max_bytes=max_bytes) == DATA[start:stop]
        assert read(storage(cache_dir), proxy) == DATA
        asked = sorted((get.first, get.last + 1) for get in proxy.gets)
        assert asked[0][0] == 0
        assert asked[-1][1] == SIZE
        assert all(before[1] == after[0] for before, after in itertools.pairwise(asked))

    def test_what_is_there_needs_no_request(self, proxy: Proxy, cache_dir: Path) -> None:
        assert read(storage(cache_dir), proxy) == DATA
        proxy.close()
        again = storage(cache_dir)
        assert read(again, proxy) == DATA
        assert read(again, proxy, 17, 5 * MIB) == DATA[17 : 5 * MIB]
        assert again.use.requests == again.use.bytes_read == 0
        assert again.use.cache_bytes == SIZE + 5 * MIB - 17
        assert again.use.cache_hits >= 4

    def test_there_are_no_more_requests_than_without_the_cache(self, proxy: Proxy, cache_dir: Path) -> None:
        assert read(StorageReader(), proxy) == DATA
        without = len(proxy.gets)
        proxy.reset()
        reader = storage(cache_dir)
        assert read(reader, proxy) == DATA
        assert len(proxy.gets) <= without
        assert num_bytes(proxy) == SIZE
        assert (reader.use.requests, reader.use.bytes_read) == (len(proxy.gets), SIZE)
        assert reader.use.cache_bytes == 0

    def test_the_first_bytes_wait_for_no_more_than_their_chunk(self, proxy: Proxy, cache_dir: Path) -> None:
        chunks = storage(cache_dir).chunks(
            f"{proxy.url}/a.tar", 5 * MIB + 5, size=SIZE, etag=ETAG, first_bytes=128 * 1024
        )
        assert next(chunks) == DATA[5 * MIB + 5 :][: 128 * 1024]
        assert [(get.first, get.last + 1) for get in proxy.gets] == [(5 * MIB, 5 * MIB + 128 * 1024 + CHUNK_BYTES)]

    def test_without_a_version_in_the_list_it_is_asked_for_once(self, proxy: Proxy, cache_dir: Path) -> None:
        assert read(storage(cache_dir), proxy, etag="") == DATA
        proxy.reset()
        reader = storage(cache_dir)
        for _ in range(3):
            assert read(reader, proxy, etag="") == DATA
        assert [(get.first, get.last) for get in proxy.gets] == [(0, 0)]
        assert (reader.use.requests, reader.use.bytes_read) == (1, 1)

    def test_reading_ahead_goes_on_through_the_cache(self, proxy: Proxy, cache_dir: Path) -> None:
        options = {"first_bytes": MIB, "max_bytes": 2 * MIB}
        chunks = storage(cache_dir).chunks(f"{proxy.url}/a.tar", size=SIZE, etag=ETAG, **options)
        given = 0
        while given < 3 * MIB - MIB // 2:  # of the second range, 1 to 3 MiB
            given += len(next(chunks))
        wait_for(lambda: [get.first // MIB for get in proxy.gets] == [0, 1, 3])
        next(chunks)
        time.sleep(0.2)
        assert len(proxy.gets) == 3

    def test_faults_cost_neither_a_byte_nor_a_chunk_twice(self, proxy: Proxy, cache_dir: Path) -> None:
        proxy.script([Fault("reset", 300_000), Fault("status", status=503), Fault("close", 700_000), None] * 3)
        reader = storage(cache_dir)
        assert read(reader, proxy) == DATA
        assert reader.num_retries >= 6
        assert held(cache_dir) >= SIZE
        proxy.close()
        assert read(storage(cache_dir), proxy) == DATA

    def test_a_connection_that_never_brings_a_whole_chunk_still_gets_there(self, proxy: Proxy, cache_dir: Path) -> None:
        proxy.always = Fault("reset", 100_000)
        assert read(storage(cache_dir), proxy, 0, MIB) == DATA[:MIB]

    @pytest.mark.parametrize("etag", [ETAG, ""])
    def test_that_a_server_ignores_ranges_is_said_once(
        self, proxy: Proxy, cache_dir: Path, etag: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        proxy.always = Fault("whole")
        proxy.objects["/b.tar"] = DATA
        reader = storage(cache_dir)
        with caplog.at_level(logging.WARNING, logger="streampack"):
            for path in ("/a.tar", "/b.tar", "/a.tar"):
                assert b"".join(reader.chunks(f"{proxy.url}{path}", size=SIZE, etag=etag)) == DATA
        (message,) = caplog.messages
        assert "servers that ignore ranges" in message
        assert "use a server that serves ranges" in message

    def test_that_answers_tell_no_version_is_said_though_the_list_has_one(
        self, proxy: Proxy, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        real = _Handler._own

        def own(handler: _Handler) -> tuple[int, dict[str, str], bytes]:
            status, headers, body = real(handler)
            return status, {name: value for name, value in headers.items() if name != "ETag"}, body

        monkeypatch.setattr(_Handler, "_own", own)
        with caplog.at_level(logging.WARNING, logger="streampack"):
            assert read(storage(cache_dir), proxy) == DATA
        (message,) = caplog.messages
        assert "tells no version" in message

    def test_a_server_that_ignores_ranges_is_read_without_the_cache(self, proxy: Proxy, cache_dir: Path) -> None:
        proxy.always = Fault("whole")
        reader = storage(cache_dir)
        for etag, start, stop in ((ETAG, 0, SIZE), ("", 0, SIZE), (ETAG, 9 * MIB, 10 * MIB)):
            proxy.reset()
            proxy.always = Fault("whole")
            assert read(reader, proxy, start, stop, etag=etag) == DATA[start:stop]
            assert len(proxy.gets) <= 2
        assert read(storage(cache_dir), proxy, etag="") == DATA

    def test_a_server_whose_answers_are_smaller_than_a_chunk_costs_no_empty_ones(
        self, proxy: Proxy, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = _Handler._own

        def own(handler: _Handler) -> tuple[int, dict[str, str], bytes]:
            status, headers, body = real(handler)
            first = int(headers["Content-Range"].split()[1].split("-")[0])
            body = body[:100_000]
            return status, {**headers, "Content-Range": f"bytes {first}-{first + len(body) - 1}/{SIZE}"}, body

        monkeypatch.setattr(_Handler, "_own", own)
        for reader in (StorageReader(retry=RETRY), storage(cache_dir)):
            proxy.reset()
            assert read(reader, proxy, 0, MIB) == DATA[:MIB]
            assert len(proxy.gets) <= 12
            assert reader.num_retries <= 11  # short answers; none of them is waited for

    def test_what_has_no_version_or_size_or_is_here_already_is_not_kept(
        self, cache_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Handler(_Handler):
            def _own(self) -> tuple[int, dict[str, str], bytes]:
                status, headers, body = super()._own()
                return status, {name: value for name, value in headers.items() if name != "ETag"}, body

        proxy = Proxy(objects={"/a.tar": DATA})
        proxy.RequestHandlerClass = Handler
        memory = MemoryFileSystem()
        memory.pipe_file("/cache-test/a.tar", DATA)
        (tmp_path / "a.tar").write_bytes(DATA)
        try:
            for _ in range(2):
                reader = storage(cache_dir)
                with caplog.at_level(logging.WARNING, logger="streampack"):
                    for _ in range(2):
                        assert read(reader, proxy, etag="") == DATA
                        assert b"".join(reader.chunks("memory://cache-test/a.tar", size=SIZE, etag="")) == DATA
                assert reader.use.cache_bytes == 0
                (message,) = caplog.messages
                assert "tells no version" in message
                caplog.clear()
                assert b"".join(reader.chunks(str(tmp_path / "a.tar"), size=SIZE, etag="")) == DATA
            with caplog.at_level(logging.WARNING, logger="streampack"):
                assert b"".join(reader.chunks(f"{proxy.url}/a.tar", etag="")) == DATA
            assert "shards of unknown size" in caplog.messages[-1]
            assert b"".join(reader.chunks(f"{proxy.url}/a.tar", size=SIZE)) == DATA  # it is no shard
        finally:
            proxy.close()
            memory.rm("/cache-test", recursive=True)
        assert not block_files(cache_dir)

    @pytest.mark.parametrize("kind", ["s3", "gcs"])
    def test_cloud_objects_are_kept_under_the_version_of_the_listing(self, kind: str, cache_dir: Path) -> None:
        put, server = {"s3": (servers.put_s3, servers.s3), "gcs": (servers.put_gcs, servers.gcs)}[kind]
        url = put(f"cache-{os.getpid()}/a.tar", DATA)
        options = server().options
        for turn in range(2):
            reader = StorageReader(options, RETRY, CacheFolder(cache_dir, 2**30))
            for way in ("size", "listing"):
                reader.size(url) if way == "size" else reader.listing(f"{url[:-2]}*")
                etag = reader.etag(url)
                assert etag
                before = reader.use
                assert b"".join(reader.chunks(url, size=SIZE, etag=etag)) == DATA
                use = reader.use.since(before)
                is_first = turn == 0 and way == "size"
                assert (use.bytes_read, use.cache_bytes) == ((SIZE, 0) if is_first else (0, SIZE))
                assert is_first or use.requests == 0


class TestTogether:
    """Processes and lanes of a node share what comes."""

    def test_two_processes_at_a_time_ask_for_each_byte_once(self, proxy: Proxy, cache_dir: Path) -> None:
        proxy.always = Fault("throttle", seconds=0.001)
        with other_process(proxy, cache_dir) as one, other_process(proxy, cache_dir) as two:
            assert one.communicate(timeout=60)[0].strip() == two.communicate(timeout=60)[0].strip() == ETAG
        assert num_bytes(proxy) == SIZE

    def test_lanes_of_one_process_ask_for_each_byte_once(self, proxy: Proxy, cache_dir: Path) -> None:
        proxy.always = Fault("throttle", seconds=0.001)
        reader, found = storage(cache_dir), []
        starts = [0, 0, 4 * MIB, BLOCK_BYTES + 99]
        threads = [
            threading.Thread(target=lambda s=start: found.append((s, read(reader, proxy, s)))) for start in starts
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(start for start, _ in found) == sorted(starts)
        assert all(data == DATA[start:] for start, data in found)
        assert num_bytes(proxy) == SIZE
        assert reader.use.bytes_read == SIZE

    def test_who_waits_reads_behind_the_one_who_fetches(self, proxy: Proxy, cache_dir: Path) -> None:
        proxy.always = Fault("throttle", seconds=0.02)  # 0.8 MB a second: 8 MiB take 10 s
        with other_process(proxy, cache_dir) as one:
            wait_for(lambda: len(proxy.gets) == 3)  # bytes 1.5 to 3.5 MiB
            reader = storage(cache_dir)
            began = time.monotonic()
            assert read(reader, proxy, 0, 2 * MIB, first_bytes=MIB) == DATA[: 2 * MIB]
            assert reader.use.requests == 0
            assert time.monotonic() - began < 5
            one.kill()

    def test_when_the_one_who_fetches_is_killed_the_next_goes_on_from_there(
        self, proxy: Proxy, cache_dir: Path
    ) -> None:
        proxy.always = Fault("throttle", seconds=0.02)
        with other_process(proxy, cache_dir) as one, other_process(proxy, cache_dir) as two:
            wait_for(lambda: held(cache_dir) > 3 * MIB)
            one.send_signal(signal.SIGKILL)
            proxy.always = None
            assert two.communicate(timeout=60)[0].strip() == ETAG
        assert num_bytes(proxy) < SIZE + 8 * MIB
        names = [path.name for path in (cache_dir / "streampack-1").rglob("*") if path.is_file()]
        assert len(names) == 4  # three blocks and the sum: nothing is left over
        proxy.reset()
        assert read(storage(cache_dir), proxy) == DATA
        assert proxy.gets == []

    def test_one_that_only_stands_still_is_not_waited_for(self, proxy: Proxy, cache_dir: Path) -> None:
        proxy.always = Fault("throttle", seconds=0.02)
        with other_process(proxy, cache_dir) as one:
            wait_for(lambda: held(cache_dir) > MIB)
            folder, (name,) = CacheFolder(cache_dir, 2**30), block_names(f"{proxy.url}/a.tar", SIZE, ETAG, 0, 0)
            one.send_signal(signal.SIGSTOP)
            while (file := folder.claim(name, BLOCK_BYTES)) is not None:  # it was between two requests
                file.close()
                one.send_signal(signal.SIGCONT)
                time.sleep(0.05)
                one.send_signal(signal.SIGSTOP)
            proxy.always = None
            reader = storage(cache_dir, retry=RetryPolicy(timeout_s=1.0))
            began = time.monotonic()
            assert read(reader, proxy, max_bytes=512 * 1024) == DATA  # many ranges of that block, but one wait
            assert 1.0 < time.monotonic() - began < 12
            one.send_signal(signal.SIGCONT)
            assert one.communicate(timeout=60)[0].strip() == ETAG

    def test_those_who_wait_do_not_take_each_others_looks_for_progress(
        self, proxy: Proxy, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cache_folder, "_TOUCH_S", 0.0)  # as where a request may be silent for more than a minute
        (name,) = block_names(f"{proxy.url}/a.tar", SIZE, ETAG, 0, 0)
        stuck = CacheFolder(cache_dir, 2**30).claim(name, BLOCK_BYTES)
        assert stuck is not None
        found: list[bytes] = []
        reader = storage(cache_dir, retry=RetryPolicy(timeout_s=0.5))
        thread = threading.Thread(target=lambda: found.append(read(reader, proxy, 0, MIB)), daemon=True)
        thread.start()
        thread.join(10)
        stuck.close()
        assert found == [DATA[:MIB]]

    def test_a_forked_child_does_not_keep_the_lock_of_a_parent_that_is_killed(self, cache_dir: Path) -> None:
        program = (
            "import os, signal, sys, time\n"
            "from streampack.storage.cache.folder import CacheFolder\n"
            "file = CacheFolder(sys.argv[1], 2**30).claim('0' * 32, 1000)\n"
            "child = os.fork()\n"
            "if child == 0:\n"
            "    time.sleep(60)\n"
            "print(child, flush=True)\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", program, cache_dir], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            assert process.wait(20) == -signal.SIGKILL
            os.kill(child, 0)  # it lives, and lets go as soon as it runs, which on a busy machine may not be yet
            end = time.monotonic() + 20
            while (file := CacheFolder(cache_dir, 2**30).claim("0" * 32, 1000)) is None:
                assert time.monotonic() < end
                time.sleep(0.01)
            file.close()
        finally:
            os.kill(child, signal.SIGKILL)
            process.stdout.close()

    def test_a_lock_is_the_own_one_of_each_opening_and_ends_with_it(self, cache_dir: Path) -> None:
        folder = CacheFolder(cache_dir, 2**30)
        file = folder.claim("1" * 32, 1000)
        assert file is not None
        assert folder.claim("1" * 32, 1000) is None
        folder.remove("1" * 32)
        again = folder.claim("1" * 32, 1000)  # another file of this name
        assert again is not None
        again.close()
        file.close()
        assert not blockfile._locked

    def test_a_block_removed_while_its_lock_is_taken_is_made_anew(
        self, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, real, name = CacheFolder(cache_dir, 2**30), blockfile.try_lock, "2" * 32

        def try_lock(descriptor: int) -> bool:
            if not tried:
                folder.remove(name)
            tried.append(descriptor)
            return real(descriptor)

        tried: list[int] = []
        monkeypatch.setattr(blockfile, "try_lock", try_lock)
        file = folder.claim(name, 1000)
        assert file is not None
        assert len(tried) == 2
        file.write(0, bytes(1000))
        found: list[bytes] = []
        file.close()
        again = folder.open(name, 1000)
        assert again is not None
        assert again.read(0, 1000, found.append) == 1000
        again.close()

    def test_an_interrupt_between_lock_and_request_leaves_no_lock(
        self, proxy: Proxy, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: object) -> bool:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(CacheFolder, "reserve", interrupted)
            with pytest.raises(KeyboardInterrupt):
                read(storage(cache_dir), proxy)
        assert not blockfile._locked
        reader = storage(cache_dir)
        assert read(reader, proxy) == DATA
        assert held(cache_dir) >= SIZE

    def test_readings_that_are_given_up_leave_no_lock(self, proxy: Proxy, cache_dir: Path) -> None:
        proxy.always = Fault("throttle", seconds=0.01)
        reader = storage(cache_dir)
        chunks = reader.chunks(f"{proxy.url}/a.tar", size=SIZE, etag=ETAG, first_bytes=512 * 1024, max_bytes=MIB)
        for _ in range(12):
            next(chunks)
        chunks.close()  # type: ignore[attr-defined]  # a generator; a thread is fetching the next range
        proxy.always = None
        assert read(storage(cache_dir), proxy) == DATA
        wait_for(lambda: not blockfile._locked)
        assert num_bytes(proxy) < SIZE + 2 * MIB


class TestVersions:
    """Bytes of two versions never meet, and the old one is given to nobody who was told of the new one."""

    def test_another_etag_in_the_list_has_other_blocks(self, proxy: Proxy, cache_dir: Path) -> None:
        assert read(storage(cache_dir), proxy) == DATA
        proxy.objects["/a.tar"] = OTHER
        assert read(storage(cache_dir), proxy, etag=OTHER_ETAG) == OTHER
        assert read(storage(cache_dir), proxy, etag="") == OTHER
        proxy.objects["/a.tar"] = DATA
        proxy.reset()
        assert read(storage(cache_dir), proxy, etag="") == DATA
        assert num_bytes(proxy) == 1

    def test_an_object_replaced_while_it_is_read_is_an_error(self, proxy: Proxy, cache_dir: Path) -> None:
        for etag in (ETAG, ""):
            proxy.objects["/a.tar"] = DATA
            chunks = storage(cache_dir).chunks(f"{proxy.url}/a.tar", size=SIZE, etag=etag)
            got = [next(chunks)]
            proxy.objects["/a.tar"] = OTHER
            with pytest.raises(ShardError, match="the object was replaced while it was read"):
                got.extend(chunks)
            assert DATA.startswith(b"".join(got))

    def test_a_list_that_is_older_than_the_object_costs_a_process_one_request(
        self, proxy: Proxy, cache_dir: Path
    ) -> None:
        proxy.objects["/a.tar"] = OTHER
        assert read(storage(cache_dir), proxy, etag=ETAG) == OTHER
        reader = storage(cache_dir)
        proxy.reset()
        for _ in range(3):
            assert read(reader, proxy, etag=ETAG) == OTHER
        assert len(proxy.gets) == 1
        assert reader.num_retries == 0

    def test_a_process_that_remembers_no_more_versions_still_corrects_those_that_it_has(
        self, proxy: Proxy, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(clients, "_MOST_VERSIONS", 1)
        reader = storage(cache_dir)
        assert read(reader, proxy, 0, MIB) == DATA[:MIB]
        proxy.objects["/a.tar"] = OTHER
        reader.forget(f"{proxy.url}/a.tar", 0, SIZE, size=SIZE, etag=ETAG)
        with caplog.at_level(logging.WARNING, logger="streampack"):
            for _ in range(3):
                assert read(reader, proxy) == OTHER
        assert len(caplog.messages) == 1
        assert "changed since an earlier reading" in caplog.messages[0]

    def test_blocks_of_an_older_version_are_not_in_the_way_of_the_next_run(self, proxy: Proxy, cache_dir: Path) -> None:
        read(storage(cache_dir), proxy, 0, MIB)
        proxy.objects["/a.tar"] = OTHER
        with pytest.raises(ShardError, match="replaced"):
            read(storage(cache_dir), proxy)
        for _ in range(2):
            assert read(storage(cache_dir), proxy) == OTHER

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ("X-Amz-Date=20261101&X-Amz-Signature=aa", "X-Amz-Date=20261102&X-Amz-Expires=60&X-Amz-Signature=bb"),
            ("X-Goog-Credential=me&X-Goog-Signature=aa", "X-Goog-Credential=you&X-Goog-Signature=bb"),
            ("Expires=1&Signature=aa&Key-Pair-Id=k", "Expires=2&Signature=bb&Key-Pair-Id=k2"),
            ("sv=2026&se=1&sr=b&sp=r&sig=aa", "sv=2026&se=2&sr=b&sp=r&sig=bb"),
        ],
    )
    def test_another_signature_or_password_opens_the_same_object(
        self, proxy: Proxy, cache_dir: Path, first: str, second: str
    ) -> None:
        host = proxy.url.removeprefix("http://")
        first, second = f"{proxy.url}/a.tar?v=1&{first}", f"http://me:password@{host}/a.tar?v=1&{second}#x"
        for url, num_gets in ((first, 1), (second, 0), (second.replace("v=1", "v=2"), 1)):
            proxy.reset()
            data = b"".join(storage(cache_dir).chunks(url, 0, MIB, size=SIZE, etag=ETAG, first_bytes=MIB))
            assert data == DATA[:MIB]
            assert len(proxy.gets) == num_gets

    def test_what_is_no_signature_tells_objects_apart(self) -> None:
        nobody = Clients({}, RETRY)
        urls = [
            *(f"https://h/get?{query}" for query in ("se=1", "se=2", "Expires=1", "Policy=2", "X-Amz-Date=3", "key=4")),
            *("https://h/get", "https://h/get?x", "https://g/get"),
        ]
        assert [object_key(url, nobody) for url in urls] == urls

    def test_one_url_at_two_endpoints_is_two_objects(self, monkeypatch: pytest.MonkeyPatch) -> None:
        options: list[dict[str, object]] = [
            *({}, {"endpoint_url": "http://a:1"}, {"endpoint_url": "http://b:1"}),
            {"client_kwargs": {"endpoint_url": "http://c:1"}},
        ]
        found = [object_key("s3://bucket/a.tar", Clients(one, RETRY)) for one in options]
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://d:1")
        found.append(object_key("s3://bucket/a.tar", Clients({}, RETRY)))
        assert len(set(found)) == 5
        assert found[1] == object_key("s3://bucket/a.tar", Clients({"endpoint_url": "http://a:1/"}, RETRY))

    def test_two_s3_servers_with_one_url_and_etag_do_not_share_blocks(self, cache_dir: Path) -> None:
        found = []
        for data in (DATA, OTHER):  # of which both say the same ETag
            proxy = Proxy(objects={"/bucket/a.tar": data})
            proxy.RequestHandlerClass = _OneEtag
            options = {"endpoint_url": proxy.url, "key": "k", "secret": "s", "client_kwargs": {"region_name": "x"}}
            reader = StorageReader(options, RETRY, CacheFolder(cache_dir, 2**30))
            try:
                found.append(b"".join(reader.chunks("s3://bucket/a.tar", size=SIZE, etag='"same"')))
            finally:
                proxy.close()
        assert found == [DATA, OTHER]

    def test_sizes_and_urls_have_blocks_of_their_own(self, proxy: Proxy, cache_dir: Path) -> None:
        proxy.objects["/b.tar"] = OTHER
        for path, size, wanted in (("/a.tar", SIZE, DATA), ("/b.tar", SIZE, OTHER)):
            for _ in range(2):
                data = b"".join(storage(cache_dir).chunks(f"{proxy.url}{path}", size=size, etag="same"))
                assert data == wanted


class TestDigests:
    """What was altered on its way into the cache is found by the digests, and comes again."""

    @pytest.mark.parametrize("at", [5, 3 * MIB, SIZE - 1])
    def test_a_block_altered_on_its_way_is_not_kept(self, proxy: Proxy, cache_dir: Path, at: int) -> None:
        digester = BlockDigester("xxh3", MIB)
        digester.update(DATA)
        proxy.always = Fault("flip", at=at)
        assert read(storage(cache_dir), proxy) != DATA
        proxy.always = None
        reader = storage(cache_dir)
        assert read(reader, proxy, digest=digester.text()) == DATA
        assert reader.num_retries == 1
        assert read(storage(cache_dir), proxy) == DATA

    def test_a_block_that_is_wrong_in_the_storage_is_asked_for_each_time(self, proxy: Proxy, cache_dir: Path) -> None:
        digester = BlockDigester("xxh3", MIB)
        digester.update(OTHER)
        with pytest.raises(CorruptShardError, match="asked for 3 times"):
            read(storage(cache_dir), proxy, digest=digester.text())
        assert sum(get.first == 0 for get in proxy.gets) == 3

    def test_a_whole_shard_that_is_not_right_is_not_kept(self, proxy: Proxy, cache_dir: Path) -> None:
        digest = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
        proxy.always = Fault("flip", at=7)
        with pytest.raises(CorruptShardError):
            read(storage(cache_dir), proxy, digest=digest)
        proxy.always = None
        assert read(storage(cache_dir), proxy, digest=digest) == DATA
