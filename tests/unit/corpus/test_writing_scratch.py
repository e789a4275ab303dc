"""Scratch folders: one for each job, shared by its parts."""

from pathlib import Path

import pytest

from streampack.corpus.parts import Part, PartsJob
from streampack.corpus.writing.scratch import Scratch
from streampack.errors import StorageError


def scratch(place: Path, *, seed: int = 0, num_parts: int = 2, index: int = 0) -> Scratch:
    job = PartsJob(command="write", num_parts=num_parts, about={"seed": seed})
    return Scratch("memory://out", str(place), job, Part(index, num_parts))


def test_a_job_and_its_number_of_parts_have_a_folder_of_their_own(tmp_path: Path) -> None:
    assert scratch(tmp_path).path == scratch(tmp_path, index=1).path
    assert len({scratch(tmp_path, seed=seed, num_parts=of).path for seed in (0, 1) for of in (2, 3)}) == 4


def test_only_what_a_try_of_this_part_that_ended_has_left_is_removed(tmp_path: Path) -> None:
    first, twin, other = scratch(tmp_path), scratch(tmp_path), scratch(tmp_path, index=1)
    with first.begun(), other.begun():
        files = [each.unfinished("a") for each in (first, other)]
        for file in files:
            file.touch()
        (dead := first.path / "unfinished-00000-0a0b0c0d").mkdir()
        with twin.begun():
            assert not dead.exists()
            assert all(file.exists() for file in files)
            assert twin.unfinished("a") not in files
    assert not first.path.exists()


def test_a_folder_that_another_part_removes_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, mkdir = scratch(tmp_path), Path.mkdir

    def removed(self: Path, **how: bool) -> None:  # type: ignore[misc]
        mkdir(self, **how)  # type: ignore[arg-type]
        monkeypatch.undo()
        self.rmdir()

    monkeypatch.setattr(Path, "mkdir", removed)
    with one.begun():
        assert one.path.is_dir()


def test_an_error_below_it_says_what_it_means(tmp_path: Path) -> None:
    one, other = scratch(tmp_path / "a"), tmp_path / "b"
    with pytest.raises(StorageError, match="unfinished-.*/a: .*another process writes this part"), one.begun():
        one.unfinished("a").unlink()
    other.touch()
    with pytest.raises(StorageError, match="Not a directory; free space there, or give another --scratch"):
        scratch(other).begun().__enter__()
    with pytest.raises(FileNotFoundError), one.begun():
        (tmp_path / "elsewhere").unlink()
