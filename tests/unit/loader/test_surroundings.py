"""What a new interpreter is given of this process."""

import importlib
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import streampack
from streampack.errors import ConfigError
from streampack.loader.surroundings import check_sources, sources, surroundings


def test_relative_paths_are_whole_ones_of_the_folder_of_the_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, now = tmp_path / "first", tmp_path / "now"
    for folder in (first / "lib", now / "lib"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(streampack, "_folder", str(first))
    monkeypatch.chdir(now)
    monkeypatch.setattr(sys, "path", ["", "lib", "/somewhere", "name of a hook"])
    given = surroundings()
    path = json.loads("".join(given.values))["path"]
    assert path == [str(first), str(first / "lib"), "/somewhere", "name of a hook", str(now), str(now / "lib")]
    assert given.folder == str(now)


@pytest.mark.parametrize(("set_to", "given"), [(None, "0"), ("random", "0"), ("17", "17")])
def test_hash_is_the_same_in_all_workers(monkeypatch: pytest.MonkeyPatch, set_to: str | None, given: str) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    if set_to is not None:
        monkeypatch.setenv("PYTHONHASHSEED", set_to)
    assert surroundings().environment["PYTHONHASHSEED"] == given


def test_a_python_that_ignores_its_environment_gets_one_without_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """As -E would also hide the seed of hash()."""
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    flags = {name: getattr(sys.flags, name) for name in dir(sys.flags) if name[0] != "_"}
    monkeypatch.setattr(sys, "flags", SimpleNamespace(**{**flags, "ignore_environment": 1, "isolated": 1}))
    given = surroundings()
    assert not {"-E", "-I"} & set(given.interpreter) and "-s" in given.interpreter
    assert "PYTHONPATH" not in given.environment and given.environment["PYTHONHASHSEED"] == "0"


def test_a_module_of_another_file_is_an_error_and_one_that_has_changed_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "of_the_user.py").write_text("")

    def imported(folder: str) -> None:
        monkeypatch.delitem(sys.modules, "of_the_user", raising=False)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path / folder)
            importlib.import_module("of_the_user")

    imported("here")
    first = sources()
    assert "json" not in first and "pytest" not in first
    check_sources(first, ())
    imported("there")
    check_sources(first, before=["of_the_user"])
    with pytest.raises(
        ConfigError, match="of_the_user from .*there/of_the_user.py, and the trainer from .*here/of_the"
    ):
        check_sources(first, ())
    imported("here")
    (tmp_path / "here" / "of_the_user.py").write_text("x = 1")
    with caplog.at_level(logging.WARNING):
        check_sources(first, ())
    assert "here/of_the_user.py has changed since this loader's workers were first started" in caplog.text
    monkeypatch.delitem(sys.modules, "of_the_user")
