"""Folders and globs of local files, and the links of a web page."""

import logging
import os
from pathlib import Path

import pytest

from streampack.errors import ConfigError
from streampack.storage.access import StorageReader
from streampack.storage.listing import _links_below
from streampack.storage.options import RetryPolicy

STORAGE = StorageReader(retry=RetryPolicy.immediate())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x")


def listed(url: str) -> list[str]:
    return [name for name, _ in STORAGE.listing(url)]


def test_hidden_files_and_folders_are_in_no_listing(here: Path) -> None:
    make("c/a.tar", "c/._a.tar", "c/.a.tar.Xy12", "c/en/b.tar")
    make("c/.snapshot/daily/a.tar", "c/en/.ipynb_checkpoints/b.tar")
    for url in ("c/", f"{here}/c/", "c/**/*.tar", "c/**"):
        assert [os.path.relpath(name) for name in listed(url)] == ["c/a.tar", "c/en/b.tar"], url
    assert listed("c/*") == ["c/a.tar"]
    assert listed("c/*/*.tar") == ["c/en/b.tar"]


def test_hidden_names_are_listed_where_they_are_asked_for(here: Path) -> None:
    make("c/a.tar", "c/.x/b.tar", ".cache/c.tar", ".cache/.y/d.tar")
    assert listed("c/.*/*.tar") == ["c/.x/b.tar"]
    assert listed("c/**/.x/*.tar") == ["c/.x/b.tar"]
    assert listed(".cache/") == [".cache/c.tar"]  # the folder that is given may be hidden


@pytest.mark.parametrize("folder", ["en [v1]", "why?", "a*b", "plain"])
@pytest.mark.parametrize("name", ["[1].tar", "why?.tar", "x*.tar"])
def test_a_pattern_that_is_the_name_of_a_file_is_that_file(here: Path, folder: str, name: str) -> None:
    make(f"{folder}/{name}", "en v/1.tar", "whyX/1.tar", "a-b/x1.tar")
    for url in (f"{folder}/{name}", f"{here}/{folder}/{name}", f"file://{here}/{folder}/{name}", f"./{folder}/{name}"):
        assert [Path(each.removeprefix("file://")).resolve() for each in listed(url)] == [here / folder / name]


def test_a_folder_in_a_pattern_may_have_brackets(here: Path) -> None:
    make("en [v1]/a.tar", "en [v1]/x [2]/b.tar", "en [v1]/.x/c.tar")
    assert listed("en [v1]/*.tar") == ["en [v1]/a.tar"]
    assert listed("en [v1]/x [2]/*.tar") == ["en [v1]/x [2]/b.tar"]
    assert listed(f"{here}/en [v1]/**/*.tar") == [f"{here}/en [v1]/{name}" for name in ("a.tar", "x [2]/b.tar")]


def test_a_file_that_is_also_a_pattern_of_others_is_told(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    make("why?.tar", "why1.tar", "why2.tar")
    with caplog.at_level(logging.WARNING):
        assert listed("why?.tar") == ["why?.tar"]
    assert "why?.tar is the name of a file, which is read; as a pattern it would match 2 others" in caplog.text
    assert listed("why[12].tar") == ["why1.tar", "why2.tar"]


def test_only_folders_that_can_match_are_opened(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("c/en/v1/a.tar", "c/en/v2/a.tar", "c/de/v1/a.tar", "c/other/v1/a.tar", "c/en/x/a.tar", "c/.en/v1/a.tar")
    opened, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: (opened.append(os.path.relpath(folder)), scandir(folder))[1])
    assert listed("c/[ed][ne]/v*/a.tar") == ["c/de/v1/a.tar", "c/en/v1/a.tar", "c/en/v2/a.tar"]
    assert sorted(opened) == ["c", "c/de", "c/de/v1", "c/en", "c/en/v1", "c/en/v2"]


def test_names_in_the_working_directory_that_look_like_something_else_are_read(here: Path) -> None:
    names = ["a::b.tar", "pipe:x.tar", "~nobody.tar", "@a.tar", "{a,b}.tar", os.fsdecode(b"caf\xe9.tar")]
    make(*names)
    found = STORAGE.listing("*.tar")
    assert sorted(Path(url).name for url, _ in found) == sorted(names)
    assert all(STORAGE.read(url) == b"x" for url, _ in found)


def test_a_file_with_a_slash_after_it_is_named(here: Path) -> None:
    make("a.tar")
    with pytest.raises(ConfigError, match="a.tar/: this is a file, and the '/' at its end"):
        listed("a.tar/")


def test_a_pattern_that_cannot_be_read_is_named(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"c/\*\*\.tar: the pattern cannot be read"):
        listed("c/**.tar")


def test_the_links_of_a_page_are_those_below_its_folder_each_in_one_form() -> None:
    folder = "http://h/en/"
    links = ["a.tar", "./a.tar", "?C=N;O=D", "../", "./", "../de/b.tar", "sub/", "x&amp;y.tar", "why%3F.tar", "#top"]
    infos = [{"name": folder + link, "size": None, "type": "file"} for link in links]
    infos.append({"name": "https://h/en/c.tar", "size": None, "type": "file"})
    found = {str(info["name"]).removeprefix(folder): info["type"] for info in _links_below(folder, infos)}
    assert found == {"a.tar": "file", "sub/": "directory", "x&y.tar": "file", "why%3F.tar": "file", "c.tar": "file"}
