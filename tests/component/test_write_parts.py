"""Parts of `streampack write`: what is left over, lost, or done twice at once is never read for what it is not."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.writing import SMALL, as_lines, content, texts, written

from streampack import ConfigError, RecordError, StorageError, write_shards
from streampack.corpus.parts import Part
from streampack.corpus.processes import Advance
from streampack.corpus.writing import folder, request
from streampack.corpus.writing.request import Request, WrittenPart, merge_parts, write_part
from streampack.storage.writing import StorageWriter


def silently(doing: str, num_items: int, num_bytes: int | None) -> Advance:
    return lambda bytes_done, items_done: None


class Parts:
    """Writes parts of a.jsonl below a folder, with these options."""

    def __init__(self, place: Path, **options: object) -> None:
        self.place, self.out = place, place / "out"
        self.options: dict[str, object] = {
            "data": place / "a.jsonl", "output": self.out, "field": "jsonl:text", "shard_bytes": SMALL,
            "shuffle": False, "seed": 0, "on_error": "raise", "num_workers": 1, "scratch": None, "storage": None,
            **options,
        }  # fmt: skip

    def given(self, name: str) -> None:
        """Other documents, as many."""
        (self.place / "a.jsonl").write_bytes(as_lines(texts(900, name=name)))

    def part(self, index: int, of: int = 2, **options: object) -> WrittenPart:
        return write_part(Request(**self.options | options), Part(index, of), silently)  # type: ignore[arg-type]

    def whole(self) -> dict[str, bytes]:
        """What one machine writes of it."""
        shutil.rmtree(self.place / "whole", ignore_errors=True)
        write_shards(**self.options | {"output": self.place / "whole", "scratch": None})  # type: ignore[arg-type]
        return dict(content(self.place / "whole"))

    def merged(self) -> bool:
        """Whether a merge gives what one machine writes."""
        merge_parts(self.out)
        return content(self.out) == self.whole()


@pytest.mark.parametrize("of", [1, 2])
def test_what_a_job_has_sorted_is_not_read_by_another_one(of: int, tmp_path: Path) -> None:
    parts = Parts(tmp_path, shuffle=True, scratch=tmp_path / "scratch")
    parts.given("old")
    parts.part(0, 2)
    parts.given("new")
    with pytest.raises(ConfigError, match=r"a.jsonl has changed.* Remove the folder, and .*scratch/.* sorted for it"):
        parts.part(0, 2)
    shutil.rmtree(parts.out)
    for index in [*range(of)] * 2:
        parts.part(index, of)
    assert parts.merged()
    shutil.rmtree(parts.out)
    for options in ({"seed": 1}, {"shard_bytes": SMALL + 1}):
        with pytest.raises(KeyboardInterrupt):
            interrupted(lambda each=options: parts.part(0, 1, **each))
        assert not list(parts.out.glob("*.tar"))
        shutil.rmtree(parts.out)
    parts.part(0, 1)
    assert parts.merged()


def interrupted(run: Callable[[], object]) -> None:
    """Run it until it writes its first shard."""

    def interrupt(self: StorageWriter, file: Path, url: str) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StorageWriter, "move", interrupt)
        run()


def test_parts_that_begin_at_one_moment_with_other_inputs_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, plan = Parts(tmp_path), request.plan
    parts.given("old")

    def slowly(*arguments: object) -> object:
        monkeypatch.setattr(request, "plan", plan)
        parts.given("new")
        parts.part(1)
        return plan(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(request, "plan", slowly)
    with pytest.raises(ConfigError, match="a.jsonl has changed"):
        parts.part(0)
    parts.part(0)
    assert parts.merged()


def test_a_merge_refuses_parts_of_other_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(tmp_path)
    parts.given("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(lambda: parts.part(0))
    parts.given("new")
    with monkeypatch.context() as patch:  # as where both look at the same moment
        patch.setattr(folder, "check_same", lambda *_, **__: None)
        parts.part(1)
    parts.part(0)
    assert parts.merged()
    shutil.rmtree(parts.out)
    parts.part(0)
    parts.given("newer")
    with monkeypatch.context() as patch:
        patch.setattr(folder, "check_same", lambda *_, **__: None)
        with pytest.raises(ConfigError, match="parts of another job: inputs is .*1 inputs of .* bytes, digest"):
            parts.part(1)
        patch.setattr(folder.OutputFolder, "done_part", lambda self: None)
        with pytest.raises(ConfigError, match="parts of another job: inputs is"):
            parts.part(1)
    with pytest.raises(ConfigError, match="parts of another job: inputs is"):
        merge_parts(parts.out)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_shard_that_is_lost_before_the_merge_is_named_with_its_part(shuffle: bool, tmp_path: Path) -> None:
    parts = Parts(tmp_path, shuffle=shuffle)
    parts.given("a")
    for index in (0, 1, 0, 1):
        parts.part(index)
    first, *_, last = sorted(parts.out.glob("*.tar"))
    last.unlink()
    with pytest.raises(ConfigError, match=f"{last.name} is gone; run --part 1/2 of `streampack write` again"):
        merge_parts(parts.out)
    first.write_bytes(b"cut")
    with pytest.raises(ConfigError, match=rf"{first.name} has 3 bytes and not .* --part 0/2 .*\(also: parts 1\)"):
        merge_parts(parts.out)
    for index in (0, 1):
        assert parts.part(index).missing == ""
    assert parts.merged()


@pytest.mark.parametrize("merged", [False, True])
def test_sorted_records_that_are_lost_are_sorted_again_by_their_part(
    merged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streampack.corpus.writing.sorting._RUN_BYTES", 2**14)
    monkeypatch.setattr("streampack.corpus.writing.sorting.MOST_RUNS", 6 if merged else 1024)
    parts = Parts(tmp_path, shuffle=True, scratch=tmp_path / "scratch")
    parts.given("a")
    for index in (0, 1):
        parts.part(index)
    runs = sorted(each for each in parts.place.glob("scratch/*/*") if each.is_dir())
    runs = sorted(parts.place.glob("scratch/*/merged-00001-*" if merged else f"scratch/*/{runs[-1].name}/[0-9]*"))
    assert len(runs) > 1
    runs[-1].unlink()
    if not merged:
        (runs[0].parent / "sorted.json").write_bytes(b"{")
    with pytest.raises(ConfigError, match=r"part 1/2 has sorted it: run --part 1/2 again, which sorts again"):
        parts.part(0)
    parts.part(1)
    os.truncate(runs[0], 100)
    with pytest.raises(ConfigError, match=r"part 1/2 has sorted it: run --part 1/2 again, which sorts again"):
        parts.part(0)
    parts.part(1)
    parts.part(0)
    assert parts.merged()


@pytest.mark.parametrize("shuffle", [False, True])
def test_parts_that_kept_nothing_leave_the_folder_to_another_command(shuffle: bool, tmp_path: Path) -> None:
    parts = Parts(tmp_path, shuffle=shuffle)
    parts.given("a")
    with pytest.raises(RecordError, match="no key 'body'"):
        parts.part(0, field="jsonl:body")
    assert not list(parts.out.iterdir())
    with pytest.raises(KeyboardInterrupt):
        interrupted(lambda: [parts.part(0), parts.part(1), parts.part(1)])
    with pytest.raises(ConfigError, match="field was 'jsonl:text' and is 'jsonl:body' now"):
        parts.part(1, field="jsonl:body")  # part 0 may still be written


def test_a_bad_record_of_a_part_leaves_the_others_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, move = Parts(tmp_path), StorageWriter.move
    parts.given("a")
    (tmp_path / "a.jsonl").write_bytes(b"?\n" + (tmp_path / "a.jsonl").read_bytes())

    def first(self: StorageWriter, file: Path, url: str) -> None:
        monkeypatch.setattr(StorageWriter, "move", move)
        with pytest.raises(RecordError, match="line 1: "):
            parts.part(0)
        move(self, file, url)

    monkeypatch.setattr(StorageWriter, "move", first)
    parts.part(1)
    parts.options["on_error"] = "skip"
    parts.part(0)
    parts.part(1)
    assert parts.merged()


def test_any_spelling_of_the_folder_has_the_same_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parts = Parts(tmp_path, shuffle=True, scratch="scratch")
    parts.given("a")
    monkeypatch.chdir(tmp_path)
    for index, output in enumerate(("out", "./out/", f"file://{tmp_path}/out", tmp_path / "out")):
        parts.part(index % 2, output=output)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert parts.merged()
    assert list((tmp_path / "scratch").iterdir()) == []
    assert not caplog.records
    shutil.rmtree(parts.out)
    monkeypatch.chdir(tmp_path)
    for index in (0, 1, 0, 1):
        parts.part(index)
    (tmp_path / "scratch").rename(tmp_path / "moved")
    assert parts.merged()
    assert f"{tmp_path}/scratch/" in caplog.text
    assert "where it is, remove it" in caplog.text


def test_a_part_that_is_written_twice_at_once_is_right_or_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, move = Parts(tmp_path), StorageWriter.move
    parts.given("a")

    def twin(self: StorageWriter, file: Path, url: str) -> None:
        monkeypatch.setattr(StorageWriter, "move", move)
        parts.part(0)
        move(self, file, url)

    monkeypatch.setattr(os, "getpid", lambda: 7)  # as in two containers
    monkeypatch.setattr(StorageWriter, "move", twin)
    parts.part(0)
    parts.part(1)
    assert parts.merged()

    def cleaner(self: StorageWriter, file: Path, url: str) -> None:
        file.unlink()
        move(self, file, url)

    shutil.rmtree(parts.out)
    monkeypatch.setattr(StorageWriter, "move", cleaner)
    with pytest.raises(StorageError, match=r"unfinished-00000-.*/00000.tar: .*another process writes this part"):
        parts.part(0)


def test_what_a_killed_try_has_left_is_removed_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(tmp_path, scratch=tmp_path / "scratch")
    parts.given("a")
    parts.part(0)

    def killed(self: StorageWriter, file: Path, url: str) -> None:
        [place] = (tmp_path / "scratch").iterdir()
        (place / "unfinished-00001-0a0b0c0d").mkdir()
        (place / "unfinished-00001-0a0b0c0d.lock").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StorageWriter, "move", killed)
        with pytest.raises(KeyboardInterrupt):
            parts.part(1)
    parts.part(1)
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("late", [False, True])
def test_a_finished_folder_stays_finished_when_a_part_comes_late(
    late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task of a part was started again, has looked at the folder, and is slow; all is written and merged."""
    parts = Parts(tmp_path)
    parts.given("a")
    if not late:
        parts.part(0)
    finished, plan = folder.OutputFolder.finished, request.plan

    def slow(*arguments: object) -> object:
        monkeypatch.setattr(request, "plan", plan)
        monkeypatch.setattr(folder.OutputFolder, "finished", finished)
        for index in (0, 1):
            parts.part(index)
        merge_parts(parts.out)
        return plan(*arguments) if late else None  # type: ignore[arg-type]

    if late:
        monkeypatch.setattr(request, "plan", slow)
    else:
        monkeypatch.setattr(folder.OutputFolder, "finished", slow)
    with pytest.raises(ConfigError, match="out was finished by another process just now"):
        parts.part(0)
    assert content(parts.out) == parts.whole()
    assert parts.part(0).shards is not None
    assert parts.merged()


def test_a_merge_that_was_killed_is_finished(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.given("a")
    for index in (0, 1):
        parts.part(index)
    kept = (parts.out / "_writing" / "job.json").read_bytes()
    merge_parts(parts.out)
    (parts.out / "_writing").mkdir()
    (parts.out / "_writing" / "job.json").write_bytes(kept)
    assert parts.merged()


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
def test_names_of_files_that_are_not_utf_8_are_read(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    name = os.fsdecode(b"in/caf\xe9") + suffix
    (tmp_path / name).write_bytes(as_lines(texts(20)) + b"?")
    parts = Parts(tmp_path, data=tmp_path / "in", on_error="skip", shuffle=suffix == ".jsonl")
    parts.part(0, 1)
    assert parts.merged()
    assert write_shards(**parts.options).was_finished  # type: ignore[arg-type]
    assert len(written(parts.out)) == (20 if suffix == ".jsonl" else 1)
