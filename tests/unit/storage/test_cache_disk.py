"""The cache's disk: altered, full, small, read-only, deleted. What is given is what the storage has, whatever happens.

A disk that is full is a small tmpfs where the tests may mount one.
"""

import contextlib
import errno
import logging
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.caches import (
    DATA,
    ETAG,
    MIB,
    SIZE,
    block_files,
    held,
    num_bytes,
    read,
    storage,
)
from support.proxy import Proxy
from support.thorough import THOROUGH, some

from streampack.storage.cache import blockfile
from streampack.storage.cache import folder as cache_folder
from streampack.storage.cache.blockfile import AT_ONCE, BLOCK_BYTES, CHUNK_BYTES
from streampack.storage.cache.blocknames import block_names
from streampack.storage.cache.folder import CacheFolder


class TestDisk:
    """Whatever the disk does, the reading goes on, and nothing is given that is not right."""

    def test_an_altered_file_is_noticed_and_its_bytes_come_again(self, proxy: Proxy, cache_dir: Path) -> None:
        assert read(storage(cache_dir), proxy) == DATA
        chooser = random.Random(4)
        for turn in some(range(24), 3):  # of each kind
            path = chooser.choice(block_files(cache_dir))
            content = bytearray(path.read_bytes())
            at = chooser.choice([chooser.randrange(64), chooser.randrange(len(content))])
            if turn % 4 == 3:
                del content[at:]  # a file cut short
            elif turn % 4 == 2:
                content[at : at + 5000] = bytes(len(content[at : at + 5000]))  # pages that never got there
            else:
                content[at] ^= 1 << chooser.randrange(8)
            path.write_bytes(content)
            assert read(storage(cache_dir), proxy) == DATA
            proxy.reset()
            assert read(storage(cache_dir), proxy) == DATA
            assert proxy.gets == []

    def test_a_disk_that_cannot_read_its_files_is_as_good_as_none(
        self, proxy: Proxy, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert read(storage(cache_dir), proxy) == DATA
        real = os.pread

        def pread(descriptor: int, size: int, at: int) -> bytes:
            if at > MIB:
                raise OSError(errno.EIO, "Input/output error")
            return real(descriptor, size, at)

        monkeypatch.setattr(os, "pread", pread)
        reader = storage(cache_dir)
        assert read(reader, proxy) == DATA
        assert reader.num_retries == 0

    def test_one_altered_byte_costs_few_chunks(self, proxy: Proxy, cache_dir: Path) -> None:
        assert read(storage(cache_dir), proxy) == DATA
        path = block_files(cache_dir)[0]
        content = bytearray(path.read_bytes())
        content[5000] ^= 1
        path.write_bytes(content)
        proxy.reset()
        assert read(storage(cache_dir), proxy) == DATA
        assert num_bytes(proxy) == AT_ONCE * CHUNK_BYTES

    def test_a_file_under_another_blocks_name_is_not_that_block(self, proxy: Proxy, cache_dir: Path) -> None:
        assert read(storage(cache_dir), proxy) == DATA
        one, two = [path for path in block_files(cache_dir) if path.stat().st_size > BLOCK_BYTES]
        content = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(content)
        assert read(storage(cache_dir), proxy) == DATA

    def test_the_folder_may_be_deleted_at_any_time(self, proxy: Proxy, cache_dir: Path) -> None:
        reader = storage(cache_dir)
        for count, _ in enumerate(reader.chunks(f"{proxy.url}/a.tar", size=SIZE, etag=ETAG)):
            if count % 5 == 0:
                shutil.rmtree(cache_dir, ignore_errors=True)
        shutil.rmtree(cache_dir, ignore_errors=True)
        assert read(reader, proxy) == DATA
        assert held(cache_dir) >= SIZE

    def test_only_the_owner_can_look_into_it_and_names_tell_nothing(self, proxy: Proxy, cache_dir: Path) -> None:
        read(storage(cache_dir), proxy)
        root = cache_dir / "streampack-1"
        assert {path.stat().st_mode & 0o077 for path in [root, *root.rglob("*")]} == {0}
        assert all(len(path.name) == 32 and int(path.name, 16) >= 0 for path in block_files(cache_dir))

    def test_a_link_in_place_of_a_block_is_not_followed(self, proxy: Proxy, cache_dir: Path, tmp_path: Path) -> None:
        read(storage(cache_dir), proxy)
        target = tmp_path / "precious"
        target.write_bytes(b"not to be touched")
        for path in block_files(cache_dir):
            path.unlink()
            path.symlink_to(target)
        assert read(storage(cache_dir), proxy) == DATA
        assert target.read_bytes() == b"not to be touched"

    def test_what_cannot_be_written_is_said_once_and_read_from_the_storage(
        self, proxy: Proxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        reader = storage(tmp_path / "file" / "cache")
        with caplog.at_level(logging.WARNING, logger="streampack"):
            for _ in range(3):
                assert read(reader, proxy) == DATA
        (message,) = caplog.messages
        assert "the disk of cache_dir cannot be written" in message
        assert "give a cache_dir that this user may write" in message
        assert "make room" not in message
        assert reader.num_retries == 0
        assert num_bytes(proxy) == 3 * SIZE

    def test_threads_that_come_at_once_say_it_once(self, cache_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
        class Slow(str):
            __slots__ = ()

            def __hash__(self) -> int:
                time.sleep(0.1)  # as if another thread had its turn here
                return 7

        folder = CacheFolder(cache_dir, 2**30)
        threads = [threading.Thread(target=folder.say_once, args=(Slow("what"), "message")) for _ in range(3)]
        with caplog.at_level(logging.WARNING, logger="streampack"):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
        assert len(caplog.messages) == 1

    @pytest.mark.skipif(os.geteuid() != 0, reason="a folder is given to another user")
    def test_a_folder_of_another_user_is_not_used(
        self, proxy: Proxy, cache_dir: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        reader = storage(cache_dir)
        read(reader, proxy)
        os.chown(cache_dir / "streampack-1", 12345, 12345)
        for one in (storage(cache_dir), reader):
            proxy.reset()
            caplog.clear()
            with caplog.at_level(logging.WARNING, logger="streampack"):
                assert read(one, proxy) == DATA
            assert num_bytes(proxy) == SIZE
            assert "not a folder of this user" in caplog.text

    def test_a_full_disk_is_made_room_on_once_and_then_left_alone(
        self,
        proxy: Proxy,
        cache_dir: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        real, tried = os.pwrite, []

        def pwrite(descriptor: int, data: bytes, at: int) -> int:
            if (len(data) > 100 and held(cache_dir) > 4 * MIB) or tried:
                tried.append(at)
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(descriptor, data, at)

        monkeypatch.setattr(os, "pwrite", pwrite)
        reader = storage(cache_dir)
        with caplog.at_level(logging.WARNING, logger="streampack"):
            assert read(reader, proxy) == DATA
            assert read(reader, proxy) == DATA
        assert reader.num_retries == 0
        assert len(caplog.messages) == 1
        assert "the disk of cache_dir is full" in caplog.messages[0]
        assert "make room, give a smaller cache_bytes, or another cache_dir" in caplog.messages[0]
        assert 2 <= len(tried) <= 8
        monkeypatch.setattr(cache_folder, "_PAUSE_S", 0.0)
        monkeypatch.setattr(os, "pwrite", real)
        again = storage(cache_dir)
        assert read(again, proxy) == DATA
        assert read(again, proxy) == DATA
        assert held(cache_dir) >= SIZE


class TestFullDisk:
    """Who meets a full disk."""

    def test_one_tenth_is_enough_for_all_who_meet_a_full_disk_at_once(self, cache_dir: Path) -> None:
        folder = CacheFolder(cache_dir, 2**30)
        for number in range(20):
            file = folder.claim(f"{number:032x}", 30_000)
            assert file is not None
            file.write(0, bytes(30_000))
            file.close()
        for _ in range(8):
            another = CacheFolder(cache_dir, 2**30)
            assert another.failed(OSError(errno.ENOSPC, "No space left on device"), tries=1)
        assert len(block_files(cache_dir)) == 18

    def test_a_quota_of_which_the_disk_knows_nothing_is_made_room_under(
        self, proxy: Proxy, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        real = os.pwrite

        def pwrite(descriptor: int, data: bytes, at: int) -> int:
            if len(data) > 100 and held(cache_dir) > BLOCK_BYTES:
                raise OSError(errno.EDQUOT, "Disk quota exceeded")
            return real(descriptor, data, at)

        read(storage(cache_dir), proxy, BLOCK_BYTES)
        os.utime(max(block_files(cache_dir), key=lambda path: path.stat().st_size), (0, 0))  # it goes first
        (cache_dir / "streampack-1" / "usage").write_text(f"{SIZE - BLOCK_BYTES:020d} {int(time.time()):012d}\n")
        monkeypatch.setattr(os, "pwrite", pwrite)
        with caplog.at_level(logging.WARNING, logger="streampack"):
            assert read(storage(cache_dir), proxy, 0, 4 * MIB) == DATA[: 4 * MIB]
        assert caplog.messages == []
        assert 4 * MIB <= held(cache_dir) <= BLOCK_BYTES + MIB


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of 10 MiB, or as the parameter says."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", getattr(request, "param", "size=10m"), "streampack-test", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


class TestSmallDisk:
    """The same on a real file system that is full or cannot be written."""

    def test_a_disk_that_is_full_costs_a_warning(
        self, proxy: Proxy, small_disk: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        reader = storage(small_disk / "cache")
        with caplog.at_level(logging.WARNING, logger="streampack"):
            for _ in range(2):
                assert read(reader, proxy) == DATA
        assert reader.num_retries == 0
        assert len([message for message in caplog.messages if "is full" in message]) <= 1
        assert held(small_disk / "cache") > 0
        assert reader.use.cache_bytes > 0

    def test_a_disk_that_others_have_filled_is_given_room_by_what_is_oldest(
        self, proxy: Proxy, small_disk: Path
    ) -> None:
        cache_dir = small_disk / "cache"
        assert read(storage(cache_dir), proxy, BLOCK_BYTES, 2 * BLOCK_BYTES) == DATA[BLOCK_BYTES : 2 * BLOCK_BYTES]
        (old,) = block_files(cache_dir)
        with (small_disk / "filler").open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(65536))
                file.flush()
        reader = storage(cache_dir)
        assert read(reader, proxy, 0, 6 * MIB) == DATA[: 6 * MIB]
        assert not old.exists()
        proxy.reset()
        assert read(reader, proxy, 0, 6 * MIB) == DATA[: 6 * MIB]
        assert num_bytes(proxy) == 0

    @pytest.mark.parametrize("small_disk", ["size=40m,nr_inodes=9"], indirect=True)
    def test_a_disk_that_has_no_more_inodes_is_given_room_too(
        self, proxy: Proxy, small_disk: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        cache_dir = small_disk / "cache"
        reader = storage(cache_dir)
        names = block_names(f"{proxy.url}/a.tar", SIZE, ETAG, 0, 2)
        for number in range(3 - len({name[:2] for name in names})):  # folders that are not needed
            (small_disk / f"{number}").touch()
        with caplog.at_level(logging.WARNING, logger="streampack"):
            assert read(reader, proxy) == DATA  # three blocks in three folders, of which the last file has no inode
        assert caplog.messages == []
        assert len(block_files(cache_dir)) == 2
        proxy.reset()
        assert read(reader, proxy, BLOCK_BYTES) == DATA[BLOCK_BYTES:]
        assert proxy.gets == []

    def test_a_disk_that_became_read_only_gives_what_it_has(
        self, proxy: Proxy, small_disk: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        cache_dir = small_disk / "cache"
        read(storage(cache_dir), proxy, 0, 6 * MIB)
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        proxy.reset()
        reader = storage(cache_dir)
        with caplog.at_level(logging.WARNING, logger="streampack"):
            assert read(reader, proxy) == DATA
            assert read(reader, proxy) == DATA
        assert len(caplog.messages) == 1
        assert reader.use.cache_bytes == 12 * MIB
        assert num_bytes(proxy) == 2 * (SIZE - 6 * MIB)


class TestBudget:
    """Never more than asked for, and what was not read for longest goes first."""

    def test_the_budget_holds_while_blocks_are_read(self, cache_dir: Path) -> None:
        num_objects = 12 if THOROUGH else 6
        objects = {f"/{number}.tar": random.Random(number).randbytes(5 * MIB + number) for number in range(num_objects)}
        proxy = Proxy(objects=objects)
        budget, most, is_over = 16 * MIB, [0], threading.Event()

        def watch() -> None:
            folder = CacheFolder(cache_dir, budget)
            while not is_over.is_set():
                if (descriptor := folder._lock_usage()) is not None:  # nothing is removed while it is measured
                    most[0] = max(most[0], held(cache_dir))
                    blockfile.close(descriptor)
                time.sleep(0.005)

        def read_all(seed: int) -> None:
            order = sorted(objects)
            reader = storage(cache_dir, cache_bytes=budget)
            for path in random.Random(seed).sample(order, len(order)) * 2:
                data = b"".join(reader.chunks(f"{proxy.url}{path}", size=len(objects[path]), etag=""))
                right.append(data == objects[path])

        right: list[bool] = []
        threads = [threading.Thread(target=watch)]
        threads += [threading.Thread(target=read_all, args=(seed,)) for seed in range(4)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads[1:]:
                thread.join(100)
        finally:
            is_over.set()
            proxy.close()
        assert right == [True] * 4 * 2 * num_objects
        assert 8 * MIB < most[0] <= budget
        assert held(cache_dir) <= budget

    def test_what_is_reserved_and_not_yet_written_is_held_too(self, cache_dir: Path) -> None:
        """Also where the files are counted, and where blocks are to be removed."""
        one, two = CacheFolder(cache_dir, 16 * MIB), CacheFolder(cache_dir, 16 * MIB)
        full, filling = one.claim("1" * 32, 5 * MIB), one.claim("2" * 32, 6 * MIB)
        assert full is not None
        assert filling is not None
        os.posix_fallocate(full.descriptor, 0, 5 * MIB)
        full.close()
        assert one.reserve(6 * MIB, [filling])
        (cache_dir / "streampack-1" / "usage").write_text("")  # it is counted
        another = two.claim("3" * 32, 7 * MIB)
        assert another is not None
        assert two.reserve(7 * MIB, [another])
        for file in (filling, another):
            os.posix_fallocate(file.descriptor, 0, 6 * MIB)
            file.close()
        assert [path.name[0] for path in block_files(cache_dir)] == ["2", "3"]
        os.utime(block_files(cache_dir)[0], (0, 0))
        assert two.reserve(8 * MIB)
        assert [path.name[0] for path in block_files(cache_dir)] == ["3"]

    def test_a_file_that_its_own_thread_has_claimed_is_not_counted_twice(self, cache_dir: Path) -> None:
        folder = CacheFolder(cache_dir, 16 * MIB)
        claimed = [folder.claim(f"{number}" * 32, BLOCK_BYTES - 8192) for number in range(2)]
        files = [file for file in claimed if file is not None]
        (cache_dir / "streampack-1" / "usage").write_text("")  # it is counted
        assert folder.reserve(2 * (BLOCK_BYTES - 8192), files)
        for file in files:
            file.close()

    def test_what_was_not_read_for_longest_goes_first(self, cache_dir: Path) -> None:
        proxy = Proxy(objects={f"/{number}.tar": DATA[: 5 * MIB] for number in range(4)})
        reader = storage(cache_dir, cache_bytes=16 * MIB)

        def get(number: int) -> int:
            """How many bytes the storage was asked for."""
            proxy.reset()
            data = b"".join(reader.chunks(f"{proxy.url}/{number}.tar", size=5 * MIB, etag="x"))
            assert data == DATA[: 5 * MIB]
            return num_bytes(proxy)

        proxy.objects.update({f"/{number}.tar": DATA[: 5 * MIB] for number in range(4)})
        ages: dict[int, float] = {}
        try:
            for number in range(3):
                before = set(block_files(cache_dir))
                assert get(number) >= 5 * MIB
                (path,) = set(block_files(cache_dir)) - before
                ages[number] = time.time() - 1000 + 100 * number
                os.utime(path, (ages[number],) * 2)
            assert get(0) == 0  # and now it is the youngest
            assert get(3) >= 5 * MIB
            assert get(0) == 0
            assert get(1) >= 5 * MIB  # it was the oldest
        finally:
            proxy.close()

    def test_blocks_stamped_by_a_clock_that_ran_ahead_go_first_unless_they_are_read(self, cache_dir: Path) -> None:
        folder = CacheFolder(cache_dir, 16 * MIB)
        names = [f"{number:032x}" for number in range(3)]
        for name in names:
            file = folder.claim(name, 5 * MIB)
            assert file is not None
            os.posix_fallocate(file.descriptor, 0, 5 * MIB)
            file.close()
        paths = {path.name: path for path in block_files(cache_dir)}
        for name in names[:2]:
            os.utime(paths[name], (time.time() + 10**7,) * 2)
        file = folder.open(names[0], 5 * MIB)
        assert file is not None
        file.close()
        assert folder.reserve(5 * MIB)
        assert [name for name in names if paths[name].exists()] == [names[0], names[2]]

    def test_one_that_stands_still_with_the_sum_is_passed_by_and_that_is_said_once(
        self,
        proxy: Proxy,
        cache_dir: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(cache_folder, "_PATIENCE_S", 0.1)
        read(storage(cache_dir), proxy, 0, MIB)
        descriptor = os.open(cache_dir / "streampack-1" / "usage", os.O_RDWR)
        try:
            assert blockfile.try_lock(descriptor)
            reader = storage(cache_dir)
            with caplog.at_level(logging.WARNING, logger="streampack"):
                assert read(reader, proxy) == DATA
                time.sleep(0.3)
                assert read(reader, proxy) == DATA
        finally:
            blockfile.close(descriptor)
        (message,) = caplog.messages
        assert "was locked by another process" in message
        time.sleep(0.3)
        assert read(reader, proxy) == DATA
        assert held(cache_dir) >= SIZE

    def test_small_shards_are_counted_as_what_they_take_on_the_disk(self, cache_dir: Path) -> None:
        proxy = Proxy(objects={f"/{number}.tar": DATA[:300] for number in range(40)})
        reader = storage(cache_dir)
        try:
            for path in proxy.objects:
                assert b"".join(reader.chunks(f"{proxy.url}{path}", size=300, etag="")) == DATA[:300]
        finally:
            proxy.close()
        total = int((cache_dir / "streampack-1" / "usage").read_text().split()[0])
        assert held(cache_dir) <= total < held(cache_dir) + 65536

    def test_a_sum_that_is_damaged_lost_or_old_is_made_anew(self, proxy: Proxy, cache_dir: Path) -> None:
        read(storage(cache_dir), proxy)
        path = cache_dir / "streampack-1" / "usage"
        assert SIZE <= int(path.read_text().split()[0]) < SIZE + 65536
        for content in ("", "nonsense", f"{10**15:020d} {0:012d}\n", f"{5:020d} {int(time.time()) - 4000:012d}\n"):
            path.write_text(content)
            assert CacheFolder(cache_dir, 2**30).reserve(0)
            assert 0 <= int(path.read_text().split()[0]) - held(cache_dir) < 65536

    def test_it_fits_into_a_smaller_budget_when_that_is_asked_for(self, proxy: Proxy, cache_dir: Path) -> None:
        read(storage(cache_dir), proxy)
        assert CacheFolder(cache_dir, 16 * MIB).reserve(1000)
        assert held(cache_dir) < 16 * MIB
        assert read(storage(cache_dir, cache_bytes=16 * MIB), proxy) == DATA
        assert held(cache_dir) <= 16 * MIB

    def test_files_that_are_not_its_own_are_neither_counted_nor_removed(self, proxy: Proxy, cache_dir: Path) -> None:
        read(storage(cache_dir), proxy)
        root = cache_dir / "streampack-1"
        mine = [cache_dir / "x", root / "00000000000000000000000000000000", block_files(cache_dir)[0].parent / "note"]
        for path in mine:
            path.write_bytes(bytes(1000))
            os.utime(path, (0, 0))
        assert CacheFolder(cache_dir, 16 * MIB).reserve(16 * MIB)
        assert block_files(cache_dir) == [mine[2]]
        assert all(path.exists() for path in mine)
