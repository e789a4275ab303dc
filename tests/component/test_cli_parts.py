"""`--part I/N` and `merge`: what parts of a command have found, added up, is what one machine finds."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streampack.cli import app
from streampack.examples.make_data import DATA
from streampack.storage.options import Storage
from streampack.storage.writing import StorageWriter
from streampack.testing import write_shards

COMMANDS = {
    "verify": ["verify", "--workers", "1"],
    "count": ["count", "--on-error", "skip", "--workers", "1"],
    "manifest": ["manifest", "--digests"],
}


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner(env={"COLUMNS": "150"}).invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.stdout if code != 1 else result.output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources: shards of several sizes, one compressed, one with a document that is not UTF-8."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [f"document {number} " + "with some text " * (number * 7 % 60) for number in range(120)]
    write_shards(folder / "web", texts, documents_per_shard=15)
    write_shards(folder / "web" / "more", texts[:20], documents_per_shard=10, compression="zst")
    write_shards(folder / "code", texts[40:70], documents_per_shard=7)
    bad = folder / "web" / "00003.tar"
    data = bytearray(bad.read_bytes())
    data[data.index(b"with some text")] = 0xFF
    bad.write_bytes(data)
    (folder / "mix.yaml").write_text(
        f"dataset:\n  sources: {{web: {folder}/web/, code: {folder}/code/}}\n"
        f"  tokenizer: {DATA}/devil.model\n  seq_len: 64\n  num_lanes: 1\n  on_error: skip\n"
    )
    return folder


def in_parts(command: list[str], spec: object, number: int, folder: object, *options: object) -> None:
    for index in [*range(1, number), 0]:
        run(*command, spec, "--part", f"{index}/{number}", "--parts", folder, *options)


@pytest.mark.parametrize(("data", "number"), [("web", 12), ("mix.yaml", 3)])  # 12: more than shards
@pytest.mark.parametrize("command", ["verify", "count"])
def test_the_merged_output_is_that_of_one_machine(
    made: Path, tmp_path: Path, command: str, data: str, number: int
) -> None:
    code = 1 if command == "verify" else 0
    whole = {options: run(*COMMANDS[command], made / data, *options, code=code) for options in ((), ("--json",))}
    in_parts(COMMANDS[command], made / data, number, tmp_path / "parts")
    merged = {options: run("merge", tmp_path / "parts", *options, code=code) for options in whole}
    assert merged[("--json",)] == whole[("--json",)]
    texts = [[line for line in each[()].splitlines() if not line.startswith("time ")] for each in (whole, merged)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(("digests", "number"), [(["--digests"], 3), ([], 20)])
def test_the_merged_manifest_is_that_of_one_machine_byte_for_byte(
    made: Path, tmp_path: Path, number: int, digests: list[str]
) -> None:
    for name in ("lists", "merged"):
        (tmp_path / name).mkdir()
    whole = run("manifest", made / "mix.yaml", *digests, "-o", tmp_path / "lists" / "{source}.jsonl")
    in_parts(["manifest"], made / "mix.yaml", number, tmp_path / "parts", *digests)
    merged = run("merge", tmp_path / "parts", "-o", tmp_path / "merged" / "{source}.jsonl")
    assert merged == whole.replace(str(tmp_path / "lists"), str(tmp_path / "merged"))
    for name in ("web", "code"):
        one, other = (tmp_path / folder / f"{name}.jsonl" for folder in ("lists", "merged"))
        assert one.read_bytes() == other.read_bytes() and one.read_bytes()


def test_a_merged_manifest_beside_its_shards_has_relative_paths_wherever_it_is_merged(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = shutil.copytree(made / "code", tmp_path / "code")
    monkeypatch.chdir(corpus.parent)
    in_parts(["manifest"], "code", 2, tmp_path / "parts")
    monkeypatch.chdir("/")
    run("merge", tmp_path / "parts", "-o", corpus / "list.jsonl")
    urls = [json.loads(line)["url"] for line in (corpus / "list.jsonl").read_text().splitlines()]
    assert urls == sorted(path.name for path in corpus.glob("*.tar"))


def test_a_part_that_is_done_is_not_read_again(made: Path, tmp_path: Path) -> None:
    asked = ["verify", made / "code", "--part", "1/3", "--parts", tmp_path / "parts"]
    first = run(*asked)
    [file] = (tmp_path / "parts").iterdir()
    before = file.read_bytes(), file.stat().st_mtime_ns
    again = run(*asked)
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    assert "part 1/3: 1 shard, " in first and "kept in" in first
    assert "was done already; nothing was read" in again


def test_the_last_part_says_what_to_do_next(made: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    run("verify", made / "code", "--part", "1/2", "--parts", parts)
    last = run("verify", made / "code", "--part", "0/2", "--parts", parts)
    assert f"all parts are done: `streampack merge {parts}`" in last
    told = json.loads(run("verify", made / "code", "--part", "0/2", "--parts", parts, "--json"))
    assert told == {"part": "0/2", "parts": str(parts), "num_shards": 3, "bytes": told["bytes"], "was_done": True}


@pytest.mark.parametrize("command", ["verify", "count", "manifest"])
def test_a_part_whose_files_have_changed_is_read_again_and_the_others_are_not(
    made: Path, tmp_path: Path, command: str
) -> None:
    parts, corpus = tmp_path / "parts", shutil.copytree(made / "code", tmp_path / "code")
    in_parts(COMMANDS[command], corpus, 2, parts)
    data = (corpus / "00003.tar").read_bytes()
    (corpus / "00003.tar").write_bytes(data.replace(b"with some text", b"WITH SOME TEXT"))  # as long
    told = [run(*COMMANDS[command], corpus, "--part", f"{index}/2", "--parts", parts) for index in (0, 1)]
    assert ["was done already" in each for each in told] == [True, False]
    if command == "manifest":
        run("merge", parts, "-o", tmp_path / "merged.jsonl")
        run("verify", f"@{tmp_path}/merged.jsonl")  # the digests are those of the files


def test_a_part_of_verify_that_found_problems_is_read_again_and_the_repair_is_seen(tmp_path: Path) -> None:
    urls = [f"memory://{tmp_path.name}/{name}.tar" for name in ("a", "b")]  # without an ETag nothing tells a repair
    texts = [f"document {number} " * 20 for number in range(20)]
    shards = [Path(shard).read_bytes() for shard in write_shards(tmp_path / "in", texts, documents_per_shard=10)]
    storage = StorageWriter(Storage())
    for url, data in zip(urls, [shards[0], shards[1].replace(b"document", b"\xffocument", 1)], strict=True):
        storage.write(url, data)
    asked = ["verify", *urls, "--workers", "1", "--parts", tmp_path / "parts"]
    for index in (0, 1):
        run(*asked, "--part", f"{index}/2")
    assert "1 problem in 1 shard" in run("merge", tmp_path / "parts", code=1)
    storage.write(urls[1], shards[1])
    told = [run(*asked, "--part", f"{index}/2") for index in (0, 1)]
    assert ["was done already" in each for each in told] == [True, False]
    assert "nothing is wrong" in run("merge", tmp_path / "parts")


def test_parts_are_not_kept_in_a_folder_that_write_writes_and_merge_looks_for_both(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text("".join(json.dumps({"text": f"record {number}"}) + "\n" for number in range(9)))
    run("write", "in.jsonl", "-o", "begun", "--part", "0/1")
    run("write", "in.jsonl", "-o", "finished")
    run("verify", made / "code", "--part", "0/1", "--parts", "parts")
    for folder in ("begun", "finished"):
        said = run("verify", made / "code", "--part", "0/1", "--parts", folder, code=1)
        assert f"--parts {folder}: `write` writes its shards there, or has; name another folder" in said
        said = run("merge", folder, "-o", "m", code=1)
        assert f"--output m: {folder} has shards of `write`, which get their manifest beside them; leave out" in said
    said = run("merge", "begun/_writing/parts", code=1)
    assert "parts of `write` are merged by the folder of the shards: name that one" in said
    for folder in ("begun", "finished"):
        [file] = Path("parts").iterdir()
        copy = shutil.copy(file, folder)
        said = run("merge", folder, code=1)
        assert f"{folder} has shards of `write`, and parts of another command ({file.name}): move" in said
        Path(copy).unlink()
        assert "9 documents" in run("merge", folder)


@pytest.mark.parametrize("command", ["verify", "count", "manifest"])
def test_a_part_of_other_shards_or_arguments_is_refused(made: Path, tmp_path: Path, command: str) -> None:
    parts, corpus = tmp_path / "parts", shutil.copytree(made / "code", tmp_path / "code")
    run(*COMMANDS[command], corpus, "--part", "0/2", "--parts", parts)
    other = {
        "verify": (["verify", "--field", "json:text"], 'field is "txt" there, and "json:text" here'),
        "count": (["count"], 'on_error is "skip" there, and "raise" here'),
        "manifest": (["manifest"], "digests is true there, and false here"),
    }[command]
    said = run(*other[0], corpus, "--part", "1/2", "--parts", parts, code=1)
    assert f"{parts} has parts of another job: " in said and other[1] in said
    write_shards(corpus / "more", ["another"], documents_per_shard=1)
    said = run(*COMMANDS[command], corpus, "--part", "1/2", "--parts", parts, code=1)
    assert "shards, number is 5 there, and 6 here" in said and "a manifest is one that does not change" in said


def test_what_is_missing_is_named_as_slurm_takes_it(made: Path, tmp_path: Path) -> None:
    for index in (0, 5):
        run("verify", made / "code", "--part", f"{index}/8", "--parts", tmp_path / "parts")
    said = run("merge", tmp_path / "parts", code=1)
    assert "has 2 of 8 parts; missing are 1-4,6-7" in said
    assert "`streampack verify ... --part 1/8`" in said and "--array=1-4,6-7" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["verify", "{}", "--part", "0/2"], "give --parts DIR as well"),
        (["verify", "{}", "--parts", "p"], "say which part with --part I/N, or give --ray"),
        (["count", "{}", "--part", "2/2", "--parts", "p"], "the parts of 2 have the numbers 0 to 1"),
        (["count", "{}", "--part", "0/2", "--parts", "p", "--ray"], "--part and --ray: "),
        (["verify", "{}", "--part", "0/2", "--parts", "p", "--journal", "j"], "leave out --journal"),
        (["manifest", "{}", "--part", "0/2", "--parts", "p", "-o", "m"], "a part writes no manifest"),
        (["manifest", "{}"], "--output (-o) FILE is missing"),
        (["merge", "nothing"], "nothing has no parts"),
    ],
)
def test_options_that_do_not_fit_together_are_refused_before_anything_is_read(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = run(*(argument.format(made / "web") for argument in arguments), code=1)
    assert says in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("verify", ["--ray", "corpus/"]),
        ("count", ["--ray", "corpus/", "--parts", "p"]),
        ("manifest", ["--ray=corpus/", "-o", "m"]),
        ("write", ["--ray", "s3://b/in.jsonl", "-o", "out"]),
        ("verify", ["corpus/", "--ray", "ray-head"]),
    ],
)
def test_shards_that_stand_where_the_address_of_ray_does_are_no_address(command: str, given: list[str]) -> None:
    result = CliRunner(env={"COLUMNS": "150"}).invoke(app, [command, *given])
    assert result.exit_code == 2
    assert "is no address of a Ray cluster: give host:port or ray://host:port" in " ".join(result.output.split())


def test_merge_refuses_an_output_that_its_parts_do_not_have_and_asks_for_one_that_they_have(
    made: Path, tmp_path: Path
) -> None:
    run("verify", made / "code", "--part", "0/1", "--parts", tmp_path / "verified")
    run("manifest", made / "code", "--part", "0/1", "--parts", tmp_path / "listed")
    assert "only `manifest` writes a file" in run("merge", tmp_path / "verified", "-o", tmp_path / "m", code=1)
    assert "name the file to write with --output (-o) FILE" in run("merge", tmp_path / "listed", code=1)


def test_parts_of_another_release_are_not_merged(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("verify", made / "code", "--part", "0/1", "--parts", tmp_path)
    monkeypatch.setattr("streampack.__version__", "9.9")
    assert "its parts are of streampack" in run("merge", tmp_path, code=1)


def test_parts_are_kept_in_a_bucket_too(made: Path) -> None:
    in_parts(COMMANDS["verify"], made / "code", 2, "memory://streampack-parts/verified")
    assert run("merge", "memory://streampack-parts/verified") == run("verify", made / "code")
