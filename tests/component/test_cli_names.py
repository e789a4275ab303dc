"""Names that are not UTF-8, of shards and of members, in every command; and terminals that cannot write them."""

import io
import json
import os
import sys
import tarfile
from pathlib import Path

import pytest

from streampack.cli import main
from streampack.examples.make_data import DATA

MODEL = str(DATA / "devil.model")
SHARD, KEY = os.fsdecode(b"caf\xe9.tar"), os.fsdecode(b"na\xefve")


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shard with a good sample, and one with a sample that is not UTF-8; names of both kinds are not, either."""
    monkeypatch.chdir(tmp_path)
    Path("c").mkdir()
    for name, text in ((SHARD, b"a text"), ("b.tar", b"\xff")):
        with tarfile.open(Path("c", name), "w", encoding="utf-8", errors="surrogateescape") as tar:
            info = tarfile.TarInfo(f"{KEY}.txt")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, encoding: str, *args: str) -> tuple[int, str, str]:
    """The exit code, and what comes out on streams that take this encoding and nothing else, as bytes that it has."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2))
    monkeypatch.setattr(sys, "argv", ["streampack", *args])
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as ended:
            main()
        texts = []
        for stream in (out, err):
            stream.flush()
            texts.append(stream.buffer.getvalue().decode(encoding))  # type: ignore[attr-defined]
    code = ended.value.code
    assert isinstance(code, int) or code is None
    return code or 0, texts[0], texts[1]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("command", "code", "shown"),
    [
        (("verify", "c/"), 1, r"b.tar"),
        (("count", f"c/{SHARD}"), 0, r"caf\udce9.tar"),
        (("count", "c/", "--on-error", "skip"), 0, r"na\udcefve"),
        (("peek", f"c/{SHARD}", "-t", MODEL), 0, r"na\udcefve"),
        (("manifest", "c/", "-o", "m.jsonl"), 0, "m.jsonl"),
        (("manifest", os.fsdecode(b"nowhere-\xe9.tar"), "-o", "m.jsonl"), 1, r"nowhere-\udce9.tar"),
        (("peek", "c/b.tar", "-t", MODEL), 1, r"na\udcefve"),
    ],
    ids=lambda value: "-".join(value[:2]).encode("ascii", "replace").decode() if isinstance(value, tuple) else "",
)
def test_a_name_that_is_not_utf_8_is_shown_with_escapes(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], encoding: str, code: int, shown: str
) -> None:
    got, out, err = run(monkeypatch, encoding, *command)
    assert got == code, out + err
    assert shown in out + err


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_json_has_the_names_so_that_python_reads_them_back(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    _, out, _ = run(monkeypatch, encoding, "count", "c/", "--on-error", "skip", "--json")
    counted = json.loads(out)
    assert [found["url"] for found in counted["longest"]] == [f"c/{SHARD}"]
    assert [found["key"] for found in (*counted["longest"], *counted["first_bad_records"])] == [KEY, KEY]
    _, out, _ = run(monkeypatch, encoding, "peek", f"c/{SHARD}", "-t", MODEL, "--json")
    assert {(found["url"], found["key"]) for found in json.loads(out)["packs"][0]["segments"]} == {(f"c/{SHARD}", KEY)}


def test_a_manifest_and_a_journal_keep_the_names(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run(monkeypatch, "utf-8", "manifest", f"c/{SHARD}", "-o", "m.jsonl", "--digests")
    assert code == 0, err
    assert json.loads(Path("m.jsonl").read_text("utf-8"))["url"] == f"c/{SHARD}"
    for data, num_read in (("@m.jsonl", 1), ("@m.jsonl", 0), ("c/", 2), ("c/", 1)):
        _, out, err = run(monkeypatch, "utf-8", "verify", data, "--journal", "journal", "--json")
        assert json.loads(out)["num_read"] == num_read, err
    assert "is not a verdict" not in err
    assert json.loads(Path("journal").read_text("utf-8").splitlines()[0])["name"] == SHARD


def test_a_config_plans_a_folder_of_such_names(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = os.fsdecode(b"c\xf6nfig.yaml")
    Path(config).write_text(f"dataset: {{data: c/, tokenizer: {MODEL}, num_lanes: 1}}\n")
    for encoding in ("utf-8", "ascii"):
        code, out, err = run(monkeypatch, encoding, "plan", config)
        assert code == 0 and r"Corpus of c\udcf6nfig.yaml" in out, err
        _, out, _ = run(monkeypatch, encoding, "plan", config, "--json")
        assert json.loads(out)["config"] == config
