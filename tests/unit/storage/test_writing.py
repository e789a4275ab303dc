"""Whole objects written to a storage: tried again, at once or not at all."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from streampack.errors import StorageError
from streampack.storage.options import RetryPolicy, Storage
from streampack.storage.writing import StorageWriter

WRITER = StorageWriter(Storage(retry=RetryPolicy.immediate(max_tries=3)))


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    yield (filesystem := fsspec.filesystem("memory"))
    if filesystem.exists("/written"):
        filesystem.rm("/written", recursive=True)


def test_a_local_object_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    WRITER.write(str(tmp_path / "a"), b"new")
    WRITER.write(f"file://{tmp_path}/deep/b", b"b")
    (tmp_path / "made").write_bytes(b"moved")
    WRITER.move(tmp_path / "made", str(tmp_path / "c"))
    WRITER.remove([str(tmp_path / "deep" / "b"), str(tmp_path / "never")])
    assert (tmp_path / "a").read_bytes() == b"new"
    assert (tmp_path / "c").read_bytes() == b"moved"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "deep"]
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_file_of_another_file_system_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "scratch" / "made").write_bytes(b"moved")
    replace = Path.replace

    def as_between_disks(self: Path, target: str | Path) -> Path:
        if self.parent != Path(target).parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        assert self.read_bytes() == b"moved"
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", as_between_disks)
    WRITER.move(tmp_path / "scratch" / "made", str(tmp_path / "out" / "a"))
    assert (tmp_path / "out" / "a").read_bytes() == b"moved"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "out", "scratch"]
    (tmp_path / "scratch" / "made").write_bytes(b"moved")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no space")))
    with pytest.raises(StorageError, match="no space; free space"):
        WRITER.write(str(tmp_path / "out" / "b"), b"b")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"], "nothing is left of what failed"


@pytest.mark.parametrize("num_failures", [2, 3])
def test_a_remote_object_is_written_again_after_a_passing_error(
    num_failures: int, memory: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, put_file = [num_failures], type(memory).put_file

    def failing(self: object, *arguments: object, **others: object) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionResetError("gone")
        put_file(self, *arguments, **others)

    monkeypatch.setattr(type(memory), "put_file", failing)
    (tmp_path / "made").write_bytes(b"moved")
    if num_failures == 3:
        with pytest.raises(StorageError, match="memory://written/a"):
            WRITER.move(tmp_path / "made", "memory://written/a")
        assert (tmp_path / "made").exists()
        return
    WRITER.move(tmp_path / "made", "memory://written/a")
    WRITER.write("memory://written/b", b"b")
    WRITER.remove(["memory://written/b", "memory://written/never"])
    assert memory.cat("/written/a") == b"moved"
    assert not memory.exists("/written/b")
    assert not (tmp_path / "made").exists()


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file/a: cannot be written: .*free space, or give a folder"):
        WRITER.write(str(tmp_path / "file" / "a"), b"")
