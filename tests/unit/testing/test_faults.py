"""The file system with faults: what each fault does, and when."""

import time
from pathlib import Path

import fsspec
import pytest

from streampack import PackedDataLoader, PackedDataset, RetryPolicy, Storage, StorageError
from streampack.testing import ByteTokenizer, Fault, FaultyFileSystem, write_shards

DATA = bytes(range(200))


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "a.bin").write_bytes(DATA)
    (tmp_path / "b.bin").write_bytes(DATA)
    return f"{tmp_path}/a.bin"


def test_each_file_meets_the_schedule_read_by_read_and_then_the_rest(path: str) -> None:
    faulty = FaultyFileSystem(faults=[None, Fault.short(3), Fault.dropped()], then=Fault.failing(PermissionError("no")))
    for name in (path, path.replace("a.bin", "b.bin")):
        assert faulty.cat_file(f"faulty://{name}", 10, 20) == DATA[10:20]
        assert faulty.cat_file(name, 10, 20) == DATA[10:13]
        with pytest.raises(ConnectionResetError, match="says the schedule of faults"):
            faulty.cat_file(name, 10, 20)
        for _ in range(2):
            with pytest.raises(PermissionError, match="no"):
                faulty.cat_file(name)


def test_a_stall_ends(path: str) -> None:
    began = time.monotonic()
    assert FaultyFileSystem(faults=[Fault.stalling(0.2)]).cat_file(path) == DATA
    assert time.monotonic() - began >= 0.2


def test_an_open_file_meets_faults_too_and_what_is_no_read_meets_none(path: str) -> None:
    faulty = fsspec.filesystem("faulty", faults=[Fault.failing()])
    assert faulty.info(path)["size"] == len(DATA)
    assert sorted(faulty.ls(str(Path(path).parent), detail=False)) == [path, path.replace("a.bin", "b.bin")]
    with faulty.open(path) as file, pytest.raises(OSError, match="the service is down"):
        file.read()
    with faulty.open(path) as file:
        assert file.read(7) + file.read() == DATA


def test_writes_go_to_the_target() -> None:
    (url,) = write_shards("faulty:///faulty-d", ["text"], storage_options={"target_protocol": "memory"})
    assert url == "faulty:///faulty-d/00000.tar"
    assert fsspec.filesystem("memory").info("/faulty-d/00000.tar")["size"] > 0
    fsspec.filesystem("faulty", target_protocol="memory").rm("/faulty-d/00000.tar")
    assert not fsspec.filesystem("memory").exists("/faulty-d/00000.tar")


def digest(shards: str, **options: object) -> tuple[int, int]:
    """Of all packs; and how many retries there were."""
    dataset = PackedDataset(
        shards,
        ByteTokenizer(),
        64,
        num_lanes=2,
        epochs=1,
        storage=Storage(options=options, retry=RetryPolicy.immediate(3)),
    )
    with PackedDataLoader(dataset, batch_size=4, num_workers=0) as loader:
        for _ in loader:
            pass
        return loader.digest(), loader.stats()["retries"]


def test_a_run_with_faults_gives_the_packs_of_one_without(tmp_path: Path) -> None:
    write_shards(tmp_path, [f"{number} is a number" for number in range(100)], documents_per_shard=25)
    expected, _ = digest(f"{tmp_path}/*.tar")
    faults = [Fault.short(1000), Fault.dropped(), Fault.short(600), Fault.failing()]
    found, retries = digest(f"faulty://{tmp_path}/*.tar", faults=faults)
    assert found == expected
    assert retries >= 2 * 4  # the errors of each shard
    with pytest.raises(StorageError, match=r"3 tries, last OSError: the service is down"):
        digest(f"faulty://{tmp_path}/*.tar", faults=[Fault.short(1000)], then=Fault.failing())
