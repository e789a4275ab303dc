"""One text for all names of an object, another one for every other object."""

from pathlib import Path

import pytest

from streampack.storage.identity import identities, identity


def test_the_names_of_a_local_file_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "en").mkdir()
    (tmp_path / "en/a.tar").touch()
    (tmp_path / "link.tar").symlink_to("en/a.tar")
    (tmp_path / "also").symlink_to("en")
    names = ["en/a.tar", "./en/a.tar", "en//a.tar", "en/../en/a.tar", f"{tmp_path}/en/a.tar", "link.tar", "also/a.tar"]
    names += [f"file://{tmp_path}/en/a.tar", f"local://{tmp_path}/en/a.tar", "simplecache::en/a.tar"]
    assert {identity(name) for name in names} == {f"file://{tmp_path.resolve()}/en/a.tar"}
    assert identity("a.tar") != identity("en/a.tar")
    (tmp_path / "hard.tar").hardlink_to("en/a.tar")
    (tmp_path / "b.tar").touch()
    assert len(set(identities([*names, "hard.tar"]))) == 1
    assert len(set(identities(["en/a.tar", "b.tar", "not-there.tar", "nor-this.tar"]))) == 4
    assert len(set(identities(["not-there.tar", f"{tmp_path}/not-there.tar"]))) == 1


@pytest.mark.parametrize(
    ("names", "are_one"),
    [
        ("http://h/a%62.tar http://h/ab.tar http://H:80/ab.tar http://h//ab.tar http://u:p@h/x/../ab.tar#part", True),
        ("https://h/a.tar?X-Amz-Signature=1&X-Amz-Date=2 https://h/a.tar?X-Amz-Signature=3&X-Amz-Date=4", True),
        ("https://h/get?file=a.tar https://h/get?file=b.tar", False),
        ("http://h/a.tar http://h:81/a.tar", False),
        ("http://h/a%3Fx.tar http://h/a?x.tar http://h/a%23x.tar http://h/a#x.tar", False),
        ("http://h/a%2Fb.tar http://h/a/b.tar http://h/a%252Fb.tar http://h/a%25b.tar", False),
        ("http://h/a%2fb.tar http://h/a%2Fb.tar", True),
        ("http://h/caf%C3%A9+a.tar http://h/caf%c3%a9%2Ba.tar http://h/café+a.tar", True),
        ("http://h/%FF.tar http://h/%FE.tar", False),
        ("s3://b/a.tar s3a://b/a.tar simplecache::s3://b/a.tar filecache::s3://b/a.tar", True),
        ("s3://b/a.tar s3://b//a.tar", False),  # two keys
        ("s3://b/a%62.tar s3://b/ab.tar", False),
        ("gs://b/a.tar gcs://b/a.tar", True),
        ("memory://a.tar memory:///a.tar", True),
        ("zip://a.tar::s3://b/1.zip zip://a.tar::s3://b/2.zip", False),
    ],
)
def test_the_names_of_an_object_are_one_and_no_others(names: str, are_one: bool) -> None:
    found = {identity(name) for name in names.split()}
    assert len(found) == (1 if are_one else len(names.split()))
