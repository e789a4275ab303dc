"""`streampack verify`: what is wrong in shards, where, and that nothing is read twice for it."""

import hashlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.proxy import Proxy
from support.tars import END, entry
from typer.testing import CliRunner, Result

from streampack.cli import app
from streampack.examples.make_data import DATA
from streampack.testing import write_shards


def run(*args: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["verify", *args])


def verified(*args: str) -> tuple[int, dict[str, Any]]:
    result = run(*args, "--json")
    assert result.exit_code in (0, 1), result.output
    return result.exit_code, json.loads(result.stdout)


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    documents = [f"document {number} " + "with some text " * (number % 60) for number in range(120)]
    return [Path(path) for path in write_shards(tmp_path / "shards", documents, documents_per_shard=30)]


def urls(shards: list[Path]) -> list[str]:
    return [str(shard) for shard in shards]


@pytest.mark.parametrize("workers", ["1", "3"])
def test_good_shards_are_read_whole_and_nothing_is_wrong(workers: str) -> None:
    code, found = verified(str(DATA / "devil-*.tar*"), "-w", workers)
    assert (code, found["num_problems"], found["bad_shards"]) == (0, 0, [])
    assert (found["documents"], found["samples"], found["num_shards"], found["num_read"]) == (999, 999, 9, 9)


def _header(data: bytearray) -> str:
    at = data.index(b"000000017.txt" if b"000000017.txt" in data else b"000017.txt")
    data[at + 124] ^= 1  # of the size field
    return "checksum is wrong"


def _end(data: bytearray) -> str:
    del data[len(data) // 2 :]
    return "end"


def _letter(data: bytearray) -> str:
    data[data.index(b"with some text")] = 0xFF
    return "not UTF-8: byte 0xff"


@pytest.mark.parametrize("damage", [_header, _end, _letter])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_is_wrong_is_told_with_its_place_and_the_other_shards_are_read_on(
    shards: list[Path], damage: Any, workers: str
) -> None:
    data = bytearray(shards[0].read_bytes())
    text = damage(data)
    shards[0].write_bytes(data)
    code, found = verified(*urls(shards), "-w", workers)
    [bad] = found["bad_shards"]
    assert (code, found["num_problems"], bad["num_problems"]) == (1, 1, 1)
    assert text in bad["problems"][0] and bad["problems"][0].startswith(str(shards[0]))
    assert 90 <= found["documents"] < 120
    shown = run(*urls(shards), "-w", workers)
    assert shown.exit_code == 1 and "1 problem in 1 shard" in shown.stdout


def test_a_member_that_is_missing_is_a_problem_of_each_sample(shards: list[Path]) -> None:
    code, found = verified(*urls(shards), "--field", "json:text")
    assert (code, found["documents"], found["num_problems"]) == (1, 0, 120)
    assert "no member for field='json:text'" in found["bad_shards"][0]["problems"][0]


def test_what_a_run_would_skip_is_a_problem_and_what_is_no_member_is_counted(tmp_path: Path) -> None:
    """Two archives in one file; a link; files of macOS and without an extension."""
    one = entry("a.txt", b"1") + entry("d/._a.txt", b"x") + entry("README", b"x") + entry("dir", b"", b"5")
    path = tmp_path / "a.tar"
    path.write_bytes(one + END + entry("link.txt", b"", b"2") + entry("b.txt", b"2") + END)
    code, found = verified(str(path))
    assert (code, found["documents"], found["num_problems"], found["num_passed_over"]) == (1, 2, 2, 2)
    first, second = found["bad_shards"][0]["problems"]
    assert "two archives in one file" in first and "member 'link.txt': a symbolic link to ''" in second
    shown = " ".join(run(str(path)).stdout.split())
    assert "2 files with a name that belongs to no sample" in shown and "'d/._a.txt' in a.tar" in shown


@pytest.mark.filterwarnings("ignore:the manifest has digests of blocks")  # larger than those of so small a corpus
def test_a_byte_that_no_check_but_the_digests_sees_is_found_by_them(shards: list[Path], tmp_path: Path) -> None:
    manifest = tmp_path / "shards.jsonl"
    for block_bytes in ("1048576", "32768"):  # the larger ones would make a shuffle read much more; nothing is shuffled
        asked = ["--digests", "--block-bytes", block_bytes]
        made = CliRunner().invoke(app, ["manifest", *urls(shards), "-o", str(manifest), *asked])
        assert made.exit_code == 0, made.output
        assert verified(f"@{manifest}")[0] == 0
    data = bytearray(shards[2].read_bytes())
    data[data.index(b"with some text")] ^= 1  # another letter
    shards[2].write_bytes(data)
    assert verified(*urls(shards))[0] == 0
    code, found = verified(f"@{manifest}")
    assert code == 1 and [bad["name"] for bad in found["bad_shards"]] == [shards[2].name]
    assert "byte 0: the block of 32768 bytes" in found["bad_shards"][0]["problems"][0]


@pytest.mark.filterwarnings("ignore:the digests of 1 of 1 shards")
def test_the_digest_of_a_whole_shard_is_checked_though_the_shard_can_be_cut(
    shards: list[Path], tmp_path: Path
) -> None:
    digest = hashlib.sha256(shards[0].read_bytes()).hexdigest()
    manifest = tmp_path / "shards.jsonl"
    manifest.write_text(json.dumps({"url": str(shards[0]), "digest": f"sha256:{digest}"}))
    assert verified(f"@{manifest}")[0] == 0
    data = bytearray(shards[0].read_bytes())
    data[data.index(b"with some text")] ^= 1  # another letter
    shards[0].write_bytes(data)
    code, found = verified(f"@{manifest}")
    assert code == 1 and "sha256" in found["bad_shards"][0]["problems"][0]


def test_with_a_journal_only_what_is_new_or_was_wrong_is_read_again(shards: list[Path], tmp_path: Path) -> None:
    journal, good = tmp_path / "journal", shutil.copy(shards[1], tmp_path / "good.tar")
    data = bytearray(shards[1].read_bytes())
    _letter(data)
    shards[1].write_bytes(data)
    code, found = verified(*urls(shards[:3]), "--journal", str(journal), "-w", "2")
    assert (code, found["num_read"], found["num_problems"]) == (1, 3, 1)
    shutil.copy(good, shards[1])
    code, found = verified(*urls(shards), "--journal", str(journal))
    assert (code, found["num_read"], found["num_shards"], found["documents"]) == (0, 2, 4, 120)
    code, found = verified(*urls(shards), "--journal", str(journal))
    assert (code, found["num_read"], found["documents"]) == (0, 0, 120)


def test_a_journal_knows_a_shard_by_all_of_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = tmp_path / "journal"
    write_shards(tmp_path / "en", ["one text"] * 8, documents_per_shard=4)
    shutil.copytree(tmp_path / "en", tmp_path / "de")  # the same names and sizes
    data = bytearray((tmp_path / "de/00001.tar").read_bytes())
    data[data.index(b"one text")] = 0xFF
    (tmp_path / "de/00001.tar").write_bytes(data)
    assert verified(f"{tmp_path}/en/", "--journal", str(journal))[0] == 0
    code, found = verified(f"{tmp_path}/de/", "--journal", str(journal))
    assert (code, found["num_read"], found["num_problems"]) == (1, 2, 1)
    monkeypatch.chdir(tmp_path / "de")
    assert verified("00000.tar", "--journal", str(journal))[1]["num_read"] == 0  # it is known by its path from anywhere
    monkeypatch.chdir(tmp_path / "en")
    assert verified("00001.tar", f"file://{tmp_path}/en/00000.tar", "--journal", str(journal))[1]["num_read"] == 0


def test_a_shard_that_was_changed_in_its_place_is_read_again(shards: list[Path], tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    assert verified(*urls(shards), "--journal", str(journal))[0] == 0
    data = bytearray(shards[2].read_bytes())
    _letter(data)
    shards[2].write_bytes(data)  # of the same size
    changed = shards[2].stat()
    os.utime(shards[2], ns=(changed.st_atime_ns, changed.st_mtime_ns + 1))  # where the clock of files is coarse
    code, found = verified(*urls(shards), "--journal", str(journal))
    assert (code, found["num_read"], found["num_problems"]) == (1, 1, 1)


def test_a_remote_shard_that_was_replaced_is_read_again(shards: list[Path], tmp_path: Path) -> None:
    journal, data = tmp_path / "journal", shards[0].read_bytes()
    proxy = Proxy(objects={"/en/a.tar": data, "/de/a.tar": data})
    try:
        assert verified(f"{proxy.url}/en/a.tar", "--journal", str(journal))[1]["num_read"] == 1
        assert verified(f"{proxy.url}/en/%61.tar", "--journal", str(journal))[1]["num_read"] == 0
        assert verified(f"{proxy.url}/de/a.tar", "--journal", str(journal))[1]["num_read"] == 1
        proxy.objects["/en/a.tar"] = data.replace(b"with some text", b"with some \xffext")
        code, found = verified(f"{proxy.url}/en/a.tar", "--journal", str(journal))
        assert (code, found["num_read"]) == (1, 1)
    finally:
        proxy.close()


def test_a_remote_shard_that_a_secret_tells_from_another_is_read(shards: list[Path], tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    proxy = Proxy(objects={"/get.tar": shards[0].read_bytes()})  # it gives the same for each key, with the same ETag
    try:
        for key, num_read in (("one-of-two", 1), ("two-of-two", 1), ("one-of-two", 0)):
            found = verified(f"{proxy.url}/get.tar?key={key}", "--journal", str(journal))[1]
            assert found["num_read"] == num_read
    finally:
        proxy.close()
    assert "of-two" not in journal.read_text()


def test_a_change_that_hides_its_time_is_read_again(shards: list[Path], tmp_path: Path) -> None:
    journal, before = tmp_path / "journal", shards[0].stat()
    assert verified(str(shards[0]), "--journal", str(journal))[0] == 0
    data = bytearray(shards[0].read_bytes())
    _letter(data)
    shards[0].write_bytes(data)
    os.utime(shards[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    code, found = verified(str(shards[0]), "--journal", str(journal))
    assert (code, found["num_read"]) == (1, 1)


def test_a_journal_of_another_vocabulary_or_chat_template_is_not_taken(tmp_path: Path) -> None:
    ids, talk, journal = tmp_path / "ids.tar", tmp_path / "talk.tar", str(tmp_path / "journal")
    member = io.BytesIO()
    np.save(member, np.array([5, 100_000, 7]))
    ids.write_bytes(entry("a.npy", member.getvalue()) + END)
    said = [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
    talk.write_bytes(entry("a.json", json.dumps({"messages": said}).encode()) + END)
    model = str(DATA / "devil.model")
    npy = [str(ids), "--field", "npy", "--journal", journal]
    assert verified(*npy)[0] == 0
    code, found = verified(*npy, "--tokenizer", model)
    assert (code, found["num_read"]) == (1, 1) and "100000" in found["bad_shards"][0]["problems"][0]
    assert verified(*npy)[1]["num_read"] == 0
    chat = [str(talk), "--field", "json:messages", "--tokenizer", model, "--journal", journal]
    assert verified(*chat, "--chat", "llama2")[0] == 0
    assert verified(*chat, "--chat", "llama2")[1]["num_read"] == 0
    assert verified(*chat, "--chat", "mistral")[1]["num_read"] == 1


def test_a_journal_of_another_field_or_limit_is_not_taken(shards: list[Path], tmp_path: Path) -> None:
    journal, config = tmp_path / "journal", tmp_path / "config.yaml"
    assert verified(*urls(shards), "--journal", str(journal))[0] == 0
    config.write_text(
        f"dataset: {{data: {shards[0].parent}, tokenizer: {DATA}/devil.model, limits: {{document_bytes: 200}}}}\n"
    )
    code, found = verified(str(config), "--journal", str(journal))
    assert (code, found["num_read"]) == (1, 4)


def test_a_journal_whose_last_line_was_cut_short_costs_that_shard_only(shards: list[Path], tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    assert verified(*urls(shards), "--journal", str(journal))[0] == 0
    journal.write_bytes(journal.read_bytes()[:-20])
    result = run(*urls(shards), "--journal", str(journal), "--json")
    assert json.loads(result.stdout)["num_read"] == 1 and "line 4 is not a verdict" in result.stderr
    assert verified(*urls(shards), "--journal", str(journal))[1]["num_read"] == 0


@pytest.mark.parametrize("name", ["nowhere/journal", "shards"])
def test_a_journal_that_cannot_be_written_is_an_error_that_names_it(
    shards: list[Path], tmp_path: Path, name: str
) -> None:
    result = run(*urls(shards), "--journal", str(tmp_path / name))
    assert result.exit_code == 1
    assert f"error: --journal {tmp_path / name}: " in " ".join(result.output.split())


def test_a_tar_inside_the_tar_is_found_before_a_run_and_its_remedy_works(tmp_path: Path) -> None:
    """Each alone is a good archive; a cut of some block falls into the inner one."""
    inner = b"".join(entry(f"in{number}.txt", b"no document of its own " * 50) for number in range(40)) + END
    outer = [entry(f"a{number}.txt", b"a document " * 90) for number in range(30)]
    path = tmp_path / "0.tar"
    path.write_bytes(b"".join([*outer[:15], entry("a14.tar", inner), *outer[15:]]) + END)
    status, report = verified(str(path), "--field", "txt")
    (problem,) = report["bad_shards"][0]["problems"]
    assert (status, report["num_problems"]) == (1, 1)
    assert str(path) in problem
    assert "byte" in problem
    assert '"whole": true' in problem

    manifest = tmp_path / "shards.jsonl"
    manifest.write_text(json.dumps({"url": str(path), "size": path.stat().st_size, "whole": True}) + "\n")
    status, report = verified(f"@{manifest}", "--field", "txt")
    assert (status, report["samples"], report["documents"]) == (0, 30, 30)
