"""`write_shards` and `streampack write`: each kind of input, read again by tarfile and by a run; kills, errors."""

import datetime as dt
import gzip
import json
import random
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet
from support import servers
from support.caches import wait_for
from support.thorough import THOROUGH, nightly
from support.writing import SMALL, as_lines, content, texts, written
from typer.testing import CliRunner

import streampack
from streampack import ConfigError, PackedDataset, RecordError, ShardError, Storage, write_shards
from streampack.cli import app
from streampack.corpus.parts import Part
from streampack.corpus.writing import sorting
from streampack.corpus.writing.request import Request, merge_parts, write_part
from streampack.storage.access import StorageReader
from streampack.storage.writing import StorageWriter
from streampack.testing import ByteTokenizer

WHEN = dt.datetime(2026, 1, 31)  # noqa: DTZ001 - as Parquet files have them


def read_by_a_run(folder: Path, **arguments: object) -> list[str]:
    """The texts of an epoch; its readers check the digests of the manifest."""
    given: dict[str, object] = {"field": "jsonl:text", "shuffle": False, "epochs": 1, "num_lanes": 1, "add_bos": False}
    dataset = PackedDataset(f"@{folder}/manifest.jsonl", ByteTokenizer(), 256, **given | arguments)  # type: ignore[arg-type]
    tokens = np.concatenate([np.asarray(pack["tokens"])[np.asarray(pack["segment_ids"]) > 0] for pack in dataset])
    *found, rest = bytes((tokens - 2).tolist()).split(b"\0")  # the id of EOS is 2, of a byte the byte + 3
    assert not rest
    return [bytes(byte - 1 for byte in each).decode() for each in found]


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["write", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def merge(folder: Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["merge", str(folder)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_json_lines_of_every_compression_become_shards_in_their_order(tmp_path: Path) -> None:
    one, two, three = (texts(400, name=name) for name in "abc")
    (tmp_path / "a.jsonl").write_bytes(as_lines(one))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(as_lines(two)))
    dos = b"\xef\xbb\xbf" + as_lines(three).replace(b"\n", b"\r\n\r\n").removesuffix(b"\r\n\r\n")
    (tmp_path / "c.ndjson.zst").write_bytes(zstandard.compress(dos))
    out = tmp_path / "out"
    names = [tmp_path / "a.jsonl", f"{tmp_path}/[b]*.gz", f"{tmp_path}/{{c..c}}.ndjson.zst"]
    told = write_shards(names, out, shard_bytes=SMALL)
    records = written(out)
    assert [record["text"] for record in records] == one + two + three
    assert [record["id"] for record in records] == [*range(400)] * 3, "a record keeps all its keys"
    assert told.num_documents == 1200
    assert told.num_shards == len(list(out.glob("*.tar"))) > 4
    assert not told.was_finished
    assert max(path.stat().st_size for path in out.glob("*.tar")) < 1.5 * SMALL


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_run_reads_what_was_written_and_its_digests_are_right(shuffle: bool, tmp_path: Path) -> None:
    documents = texts(300)
    (tmp_path / "a.jsonl").write_bytes(as_lines(documents))
    write_shards(tmp_path / "a.jsonl", tmp_path / "out", shard_bytes=SMALL, shuffle=shuffle, seed=3)
    found = read_by_a_run(tmp_path / "out")
    assert sorted(found) == sorted(documents)
    assert (found == documents) is not shuffle
    with (tmp_path / "out" / min(path.name for path in (tmp_path / "out").glob("*.tar"))).open("r+b") as file:
        file.seek(1000)
        file.write(b"?")
    with pytest.raises(ShardError, match="not what the manifest says"):
        read_by_a_run(tmp_path / "out")


def test_very_large_data_have_a_manifest_without_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("streampack.corpus.writing.request._DIGESTED_BYTES", 1000)
    (tmp_path / "a.jsonl").write_bytes(as_lines(texts(30)))
    for shuffle in (False, True):
        write_shards(tmp_path / "a.jsonl", tmp_path / str(shuffle), shuffle=shuffle)
        assert sorted(read_by_a_run(tmp_path / str(shuffle))) == sorted(texts(30))
        assert "digest" not in json.loads((tmp_path / str(shuffle) / "manifest.jsonl").read_text())
    assert "the manifest will have no digests" in caplog.text


def test_lines_are_cut_into_portions_anywhere_and_none_is_lost(tmp_path: Path) -> None:
    documents = ["x" * (number % 700) for number in range(3000)]
    (tmp_path / "a.jsonl").write_bytes(b"\n\n".join(as_lines(documents).splitlines()))
    told = write_shards(tmp_path / "a.jsonl", tmp_path / "out", shard_bytes=SMALL)
    assert [record["text"] for record in written(tmp_path / "out")] == documents
    assert told.num_shards == -(-(tmp_path / "a.jsonl").stat().st_size // SMALL), "each portion is one shard"


def test_lines_far_into_a_file_are_named_by_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file would be read again for each of its portions."""
    monkeypatch.setattr("streampack.corpus.writing.reading._COUNTED_BYTES", SMALL)
    lines = as_lines(texts(1500)).splitlines()
    lines[1200] = b"?"
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    told = write_shards(tmp_path / "a.jsonl", tmp_path / "out", shard_bytes=SMALL, on_error="skip")
    found = re.search(r"a.jsonl, line ([\d,]+) of those that begin at byte ([\d,]+) or after it: ", told.skipped[0])
    assert found, told.skipped
    line, start = (int(each.replace(",", "")) for each in found.groups())
    after = (tmp_path / "a.jsonl").read_bytes()[start - 1 :].partition(b"\n")[2]
    assert after.split(b"\n")[line - 1] == b"?"


def test_an_iterable_gives_records_and_texts(tmp_path: Path) -> None:
    records = [{"meta": {"body": "one"}, "n": 1.5}, "two", {"meta": {"body": "three"}}]
    told = write_shards(iter(records), tmp_path / "out", field="jsonl:meta.body")
    assert written(tmp_path / "out") == [records[0], {"meta": {"body": "two"}}, records[2]]
    assert told.num_documents == 3
    with pytest.raises(ConfigError, match="is finished, and what an iterable gives cannot be compared.*remove"):
        write_shards(iter(records), tmp_path / "out", field="jsonl:meta.body")


def test_an_iterable_is_written_from_its_start_after_an_interrupt(tmp_path: Path) -> None:
    def broken() -> "object":
        yield from texts(800)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(broken(), tmp_path / "out", shard_bytes=SMALL)  # type: ignore[arg-type]
    assert list((tmp_path / "out").glob("*.tar"))
    for shards in (f"{tmp_path}/out", f"{tmp_path}/", f"{tmp_path}/out/*.tar", f"{tmp_path}/**/0*.tar"):
        with pytest.raises(ConfigError, match="/out/ is not finished.*goes on"):
            PackedDataset(shards, ByteTokenizer(), 64, field="jsonl:text").list_shards()
    write_shards(iter(texts(10)), tmp_path / "out", shard_bytes=SMALL)
    assert [record["text"] for record in written(tmp_path / "out")] == texts(10)
    assert len(list((tmp_path / "out").glob("*.tar"))) == 1, "no shard of the first try is left"


def test_texts_of_a_folder_are_documents_with_their_names(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "b.txt").write_text("first\n")
    (tmp_path / "in" / "deep" / "a.md").write_text("second")
    (tmp_path / "in" / "deep" / "empty.txt").write_text("")
    (tmp_path / "in" / "picture.png").write_bytes(b"\xff")
    assert "1 shard, 3 documents" in run(tmp_path / "in", "-o", tmp_path / "out", "-w", 1)
    assert written(tmp_path / "out") == [
        {"file": "b.txt", "text": "first\n"},
        {"file": "deep/a.md", "text": "second"},
        {"file": "deep/empty.txt", "text": ""},
    ]


def test_a_finished_folder_is_left_as_it_is_and_another_job_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines(texts(300)))
    arguments = (tmp_path / "a.jsonl", "-o", tmp_path / "out", "--shard-bytes", SMALL, "-w", 1)
    assert "300 documents" in run(*arguments)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert "are there already; nothing was changed" in run(*arguments)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert "shuffle was False and is True now" in run(*arguments, "--shuffle", code=1)
    (tmp_path / "a.jsonl").write_bytes(as_lines(texts(301)))
    assert "a.jsonl has changed" in run(*arguments, code=1)
    (tmp_path / "a.jsonl").unlink()
    assert "a.jsonl" in run(*arguments, code=1)


def test_relative_paths_are_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "in" / "deep")
    (tmp_path / "in" / "deep" / "a.jsonl").write_bytes(as_lines(texts(3)))
    url = f"file://{tmp_path}/url"
    for data, output in ((".", "../out"), ("..", "../../out/"), ("a.jsonl", url), ("./a.jsonl", "./local")):
        told = write_shards(data, output)
        assert told.manifest == f"{output.rstrip('/')}/manifest.jsonl"
        assert write_shards(data, output).was_finished
        shards = PackedDataset(f"@{told.manifest}", ByteTokenizer(), 64, field="jsonl:text").list_shards()
        assert [shard.num_samples for shard in shards] == [1]
        if output == "../out":
            shutil.rmtree(output)
    with pytest.raises(ConfigError, match="output ./out lies in .., which is read"):
        write_shards("..", "./out")


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines(texts(3)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.tar").write_bytes(b"")
    assert "out is not empty (old.tar)" in run(tmp_path / "a.jsonl", "-o", tmp_path / "out", code=1)
    assert "is a file; name a folder" in run(tmp_path / "a.jsonl", "-o", tmp_path / "a.jsonl", code=1)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_folder_of_a_command_that_wrote_nothing_takes_another_command(shuffle: bool, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines(texts(3)))
    with pytest.raises(RecordError, match=r"no key 'body'; the keys there: .*text.*; field= \(--field\) says which"):
        write_shards(tmp_path / "a.jsonl", tmp_path / "out", field="jsonl:body", shuffle=shuffle)
    assert not list((tmp_path / "out").iterdir())
    assert write_shards(tmp_path / "a.jsonl", tmp_path / "out", shuffle=shuffle).num_documents == 3


@pytest.mark.parametrize("shuffle", [False, True])
def test_what_was_written_before_a_bad_record_stays_with_its_command(shuffle: bool, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines(texts(1000)))
    (tmp_path / "b.jsonl").write_bytes(b"{}" + b" " * SMALL)
    write = partial(write_shards, tmp_path / "*.jsonl", tmp_path / "out", shard_bytes=SMALL, shuffle=shuffle)
    with pytest.raises(RecordError, match="b.jsonl, line 1: "):
        write()
    with pytest.raises(ConfigError, match="field was 'jsonl:text' and is 'jsonl:body' now"):
        write(field="jsonl:body")
    assert write(on_error="skip").num_documents == 1000


def test_a_shard_that_is_gone_from_a_finished_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines(texts(3)))
    write_shards(tmp_path / "a.jsonl", tmp_path / "out")
    (tmp_path / "out" / "00000-00000.tar").unlink()
    with pytest.raises(ConfigError, match="00000-00000.tar is gone; remove .*out and write it again"):
        write_shards(tmp_path / "a.jsonl", tmp_path / "out")


BAD = {
    3: (b'{"text": "cut', "broken JSON"),
    7: (b'{"txt": 1}', "has no key 'text'; the keys there: txt"),
    300: (b'{"text": null}', "is null and not a string"),
    700: (b'{"text": 5}', "is a number and not a string"),
    701: (b'{"text": "\xff"}', "not UTF-8"),
}


@pytest.mark.parametrize("suffix", ["", ".zst"])
def test_a_record_that_cannot_be_written_is_named_by_file_and_line(suffix: str, tmp_path: Path) -> None:
    lines = as_lines(texts(1000)).splitlines()
    for line, (data, _) in BAD.items():
        lines[line - 1] = data
    lines.insert(0, b"")
    data = b"\n".join(lines)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(zstandard.compress(data) if suffix else data)
    with pytest.raises(RecordError, match=f"a.jsonl{suffix}, line 4: broken JSON.*--on-error skip"):
        write_shards(path, tmp_path / "out", shard_bytes=SMALL)
    told = write_shards(path, tmp_path / "out", shard_bytes=SMALL, on_error="skip")
    assert (told.num_documents, told.num_skipped) == (995, 5)
    for (line, (_, message)), problem in zip(BAD.items(), told.skipped, strict=True):
        assert f"{path}, line {line + 1}: " in problem
        assert message in problem
    shown = run(path, "-o", tmp_path / "shuffled", "--shuffle", "--on-error", "skip", "--shard-bytes", SMALL, "-w", 1)
    assert "995 documents" in shown
    assert f"5 records left out: {path}, line 4: broken JSON" in shown


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b'[{"text": "x"}]', "a JSON array and not JSON lines.*jq -c"),
        ("a.jsonl", '{"text": "x"}'.encode("utf-16"), "UTF-16.*convert the file"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        ("a.jsonl", b"", "there is no document"),
        ("a.csv", b"text", "load_dataset.'csv'"),
        ("a.tar", b"", "a shard already"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}', mtime=0)[:-9], "cut short"),
    ],
)
def test_a_file_that_holds_no_lines_says_what_it_is(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(streampack.StreampackError, match=f"(?s){message}"):
        write_shards(tmp_path / name, tmp_path / "out", on_error="skip")


def test_what_is_no_data_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines(texts(3)))
    with pytest.raises(ConfigError, match="given twice"):
        write_shards([tmp_path / "a.jsonl", f"{tmp_path}/./a.jsonl"], tmp_path / "out")
    with pytest.raises(ConfigError, match="jsonl:KEY"):
        write_shards(tmp_path / "a.jsonl", tmp_path / "out", field="txt")
    with pytest.raises(ConfigError, match="neither names of files nor an iterable"):
        write_shards({"text": "x"}, tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(ShardError, match="a.parquet"):
        write_shards(tmp_path / "a.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_conversations_are_checked_as_a_run_reads_them(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "a.jsonl").write_bytes(as_lines([talk, [{"role": 1}]], "messages"))
    told = write_shards(tmp_path / "a.jsonl", tmp_path / "out", field="jsonl:messages", on_error="skip")
    assert (told.num_documents, told.num_skipped) == (1, 1)
    assert "a.jsonl, line 2: " in told.skipped[0]


NUM_KILLS = 3 if THOROUGH else 2
PROGRAM = """
import sys
from streampack import write_shards
from streampack.corpus.writing import sorting
sorting.MOST_RUNS = 4
source, out, shuffle, workers = sys.argv[1:]
write_shards(source, out, shard_bytes=2**16, shuffle=shuffle == "True", num_workers=int(workers))
"""


def has_come_so_far(process: "subprocess.Popen[bytes]", out: Path, pattern: str, count: int) -> bool:
    """Whether the folder has so many of these files, or the process has ended; 0: whether anything is written."""
    return process.poll() is not None or (out.exists() and sum(1 for _ in out.glob(pattern)) >= count)


@pytest.mark.parametrize("shuffle", [True, *nightly([False])])
def test_any_number_of_workers_and_kills_at_any_moment_give_the_same_bytes(shuffle: bool, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in "abc":
        (tmp_path / "in" / f"{name}.jsonl").write_bytes(as_lines(texts(2500, name=name)))
    (tmp_path / "in" / "d.jsonl.zst").write_bytes(zstandard.compress(as_lines(texts(1000, name="d"))))
    write_shards(tmp_path / "in", tmp_path / "one", shard_bytes=SMALL, shuffle=shuffle)
    expected = content(tmp_path / "one")
    out, rng, kills = tmp_path / "out", random.Random(7), 0
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "in"), str(out), str(shuffle), "2"]
    while kills < NUM_KILLS:
        process = subprocess.Popen(command)  # each try goes on where the one before ended
        aim = kills and rng.randrange(1, 12) * kills
        pattern = "_writing/scratch/*/merged-*" if shuffle and kills < NUM_KILLS - 1 else "*.tar"
        wait_for(partial(has_come_so_far, process, out, pattern, aim))
        process.kill()
        if process.wait() == 0:
            break
        kills += 1
    assert kills > 0
    subprocess.run(command, check=True)
    assert content(out) == expected


@pytest.mark.parametrize("shuffle", [False, True])
def test_parts_and_their_merge_give_the_bytes_of_one_machine(
    shuffle: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / f"{name}.jsonl").write_bytes(as_lines(texts(1500, name=name)) + b"?\n" * (name == "b"))
    out = tmp_path / "out"
    options = ["--shard-bytes", SMALL, "-w", 1, "--on-error", "skip", *(["--shuffle"] if shuffle else [])]
    run(tmp_path / "in", "-o", tmp_path / "one", *options)
    monkeypatch.setattr(sorting, "MOST_RUNS", 6)

    def part(index: int, of: int = 3, code: int = 0) -> str:
        return run(tmp_path / "in", "-o", out, *options, "--part", f"{index}/{of}", code=code)

    assert f"not {'sorted' if shuffle else 'written'} yet: 0,2; when all are" in part(1)
    assert "is being written in 3 parts, and not in one part" in run(tmp_path / "in", "-o", out, *options, code=1)
    assert "is being written in 3 parts, and not in 4 parts" in part(0, 4, code=1)
    assert "parts 0-2 of 3 are not written" if shuffle else "parts 0,2 of 3 are not written" in merge(out, code=1)
    part(2)
    if shuffle:
        assert len([*out.rglob("merged-*")]) == 4, "a third of the runs that a shard is made of"
        assert not list(out.glob("*.tar"))
        assert "part 0/3: " in part(0), "all are sorted now: it goes on"
        part(1)
        assert "1 record left out" in part(2)
    else:
        assert f"all parts are written: `streampack merge {out}`" in part(0)
    assert "are there already; nothing was changed" in part(0)
    assert "3,000 documents" in merge(out)
    assert content(out) == content(tmp_path / "one")
    assert "are there already; nothing was changed" in merge(out)
    assert "are there already; nothing was changed" in part(0)
    assert "has no parts" in merge(tmp_path / "in", code=1)


def test_parts_write_to_a_remote_folder_and_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines(texts(800)))
    write_shards(tmp_path / "a.jsonl", tmp_path / "out", shard_bytes=SMALL)
    url = "memory://in-parts"
    request = Request(
        data=tmp_path / "a.jsonl", output=url, field="jsonl:text", shard_bytes=SMALL, shuffle=False, seed=0,
        on_error="raise", num_workers=1, scratch=tmp_path / "scratch", storage=None,
    )  # fmt: skip
    for index in (1, 0):
        told = write_part(request, Part(index, 2), lambda *_: lambda *_: None)
    assert told.missing == ""
    assert list((tmp_path / "scratch").iterdir()) == []
    merge_parts(url)
    reader = StorageReader()
    expected = {name: data for name, data in content(tmp_path / "out").items() if not name.startswith(".")}
    assert {each.rpartition("/")[2]: reader.read(each) for each, _ in reader.listing(f"{url}/")} == expected


def test_what_cannot_be_written_in_parts_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines(texts(800)))
    shuffled = (tmp_path / "a.jsonl", "--shuffle", "--shard-bytes", SMALL, "-w", 1)
    assert "give --scratch DIR, a folder that all machines share" in run(
        *shuffled, "-o", "memory://parts", "--part", "0/2", code=1
    )
    for index in (0, 1):
        scratch = tmp_path / str(index)
        last = run(*shuffled, "-o", "memory://parts", "--part", f"{index}/2", "--scratch", scratch, code=index)
    assert "nor anything that the other parts have sorted: give all of them the same --scratch" in last


ROWS = [{"id": number, "text": text, "when": WHEN, "more": {"tags": ["a"]}} for number, text in enumerate(texts(900))]
AS_JSON = [{**row, "when": "2026-01-31T00:00:00"} for row in ROWS]


def test_rows_of_parquet_files_become_records_with_all_their_columns(tmp_path: Path) -> None:
    for name, rows in (("a", ROWS[:500]), ("b", ROWS[500:])):
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet", row_group_size=150)
    told = write_shards(f"{tmp_path}/*.parquet", tmp_path / "out", shard_bytes=SMALL)
    assert written(tmp_path / "out") == AS_JSON
    assert told.num_shards > 2


def test_rows_of_a_dataset_on_disk_become_records(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    chosen = datasets.Dataset.from_list(ROWS).select(range(0, 900, 3))  # it keeps all rows, and which are chosen
    chosen.save_to_disk(tmp_path / "in" / "train")
    (tmp_path / "in" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(ConfigError, match="with the splits train; name one, as .*in/train"):
        write_shards(tmp_path / "in", tmp_path / "out")
    told = write_shards(tmp_path / "in" / "train", tmp_path / "out", shard_bytes=SMALL)
    assert written(tmp_path / "out") == AS_JSON[::3]
    assert told.num_shards > 1
    with pytest.raises(ConfigError, match=r"datasets.arrow_dataset.Dataset.* streampack.write_shards"):
        PackedDataset(chosen, ByteTokenizer(), 64)
    write_shards(chosen, tmp_path / "again")
    assert written(tmp_path / "again") == AS_JSON[::3]


def test_a_row_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"text": "b"}, {"text": None}, {"text": "d"}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
    with pytest.raises(RecordError, match=r"a.parquet, row 3: the value under 'text' is null"):
        write_shards(tmp_path / "a.parquet", tmp_path / "out")
    with pytest.raises(RecordError, match=r"record 2: cannot be written as JSON"):
        write_shards(iter(["a", {"text": object()}]), tmp_path / "other")
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(ShardError, match=r"b.parquet.*not a Parquet file that can be read"):
        write_shards(tmp_path / "b.parquet", tmp_path / "third")


def test_a_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "data.arrow").write_bytes(b"")
    (tmp_path / "in" / "state.json").write_text("{}")
    for library, data, remedy in (
        ("pyarrow", tmp_path / "a.parquet", r"pip install 'streampack\[parquet\]'"),
        ("datasets", tmp_path / "in", "pip install datasets"),
    ):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(ConfigError, match=remedy):
            write_shards(data, tmp_path / "out")


def test_s3_has_the_same_bytes_also_after_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(options=servers.s3().options)
    (tmp_path / "a.jsonl").write_bytes(as_lines(texts(1000)))
    write_shards(tmp_path / "a.jsonl", tmp_path / "out", shard_bytes=SMALL, shuffle=True)
    url, moved, move = f"s3://{servers.BUCKET}/written", [], StorageWriter.move

    def interrupted(self: StorageWriter, file: Path, url: str) -> None:
        move(self, file, url)
        moved.append(url)
        if len(moved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(StorageWriter, "move", interrupted)
    arguments = {"shard_bytes": SMALL, "shuffle": True, "storage": storage, "scratch": tmp_path / "scratch"}
    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path / "a.jsonl", url, **arguments)  # type: ignore[arg-type]
    for shards in (f"{url}/", f"{url}/*.tar"):
        with pytest.raises(ConfigError, match="s3://.*written/ is not finished"):
            PackedDataset(shards, ByteTokenizer(), 64, field="jsonl:text", storage=storage).list_shards()
    told = write_shards(tmp_path / "a.jsonl", url, **arguments)  # type: ignore[arg-type]
    assert len(moved) - 3 == told.num_shards - 2, "what was noted is not written again"
    reader = StorageReader.of(storage)
    expected = {name: data for name, data in content(tmp_path / "out").items() if not name.startswith(".")}
    assert {each.rpartition("/")[2]: reader.read(each) for each, _ in reader.listing(f"{url}/")} == expected
    assert list((tmp_path / "scratch").iterdir()) == []
    assert write_shards(tmp_path / "a.jsonl", url, **arguments).was_finished  # type: ignore[arg-type]


MEMORY = """
import resource, sys
from pathlib import Path
from streampack import write_shards
from streampack.corpus.writing import sorting
sorting._RUN_BYTES, sorting.MOST_RUNS = 2**23, 3
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
write_shards(iter(["x"]), sys.argv[2])
before = peak()
write_shards(sys.argv[1], sys.argv[3], shuffle=True, shard_bytes=2**22)
print(peak() - before)
"""


def test_a_shuffle_holds_one_run_or_one_shard_in_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = as_lines([rng.bytes(10_000).hex() for _ in range(3000)])
    assert len(lines) > 60 * 10**6
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(lines, level=1))
    command = [sys.executable, "-c", MEMORY, *(str(tmp_path / name) for name in ("a.jsonl.zst", "small", "out"))]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 50 * 10**6
