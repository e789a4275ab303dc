"""What all commands share: help, the version, and what is said where something is left out."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers
from typer.testing import CliRunner, Result

import streampack
from streampack.cli import app
from streampack.examples.make_data import DATA

SHARDS, MODEL = str(DATA / "devil-*.tar*"), str(DATA / "devil.model")


def run(*args: str) -> Result:
    return CliRunner(env={"COLUMNS": "400"}).invoke(app, args)


def test_the_version_is_printed() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"streampack {streampack.__version__}\n")


@pytest.mark.parametrize("args", [(), ("plan",), ("count",)])
def test_help_has_a_short_name(args: tuple[str, ...]) -> None:
    short, long = run(*args, "-h"), run(*args, "--help")
    assert short.exit_code == 0
    assert "Usage: " in short.stdout
    assert short.stdout == long.stdout


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("peek", SHARDS), "--tokenizer (-t) is missing: give the path or URL of"),
        (("peek", SHARDS, "--field", "npy"), "Only token ids need none: --field npy --no-bos --no-eos"),
        (("plan", SHARDS), "`streampack plan` takes a config file (.yaml), whose `data:` names the shards"),
        (("manifest", SHARDS, "-o", "nowhere/m.jsonl"), "--output nowhere/m.jsonl: there is no folder nowhere"),
        (("bench", SHARDS, "-t", MODEL, "--plot", "nowhere/p.svg"), "--plot nowhere/p.svg: there is no folder nowhere"),
    ],
)
def test_what_is_left_out_is_named(
    args: tuple[str, ...], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*args)
    assert result.exit_code == 1
    assert text in result.stderr


@pytest.fixture
def without_bos(tmp_path: Path) -> str:
    """A tokenizer.json that does not say which tokens begin and end documents."""
    vocab = {name: index for index, name in enumerate(["<a>", "<b>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<a>", "<b>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path)


def test_bos_and_eos_can_be_named(without_bos: str) -> None:
    shard = str(DATA / "devil-00000.tar")
    missing = run("count", shard, "-t", without_bos)
    assert "has no BOS token: pass add_bos=False (on the command line --no-bos), or name one with bos_token= " in (
        missing.stderr
    )
    assert "--bos-token); special tokens of the file: <a>, <b>" in missing.stderr
    ends = ("--bos-token", "<a>", "--eos-token", "<b>", "--pad-token", "<b>")
    bare = json.loads(run("count", shard, "-t", without_bos, "--no-bos", "--no-eos", "--json").stdout)
    named = json.loads(run("count", shard, "-t", without_bos, *ends, "--json").stdout)
    assert named["tokens"] - bare["tokens"] == 2 * named["documents"]
    shown = run("peek", shard, "-t", without_bos, *ends, "--json", "--num", "1")
    assert json.loads(shown.stdout)["packs"][0]["pieces"][0] == "<a>"
    assert run("verify", shard, "-t", without_bos).exit_code == 0
    unknown = run("peek", shard, "-t", without_bos, "--bos-token", "<c>")
    assert "bos_token='<c>' is not in the vocabulary of the file: name another token" in unknown.stderr
    assert "its special tokens are <b>, <a>" in unknown.stderr


def test_a_damaged_shard_is_counted_up_to_its_damage_where_that_is_asked_for(tmp_path: Path) -> None:
    """It is one bad record, and the other shards are counted as ever."""
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for index in range(6):
                info = tarfile.TarInfo(f"{index}.txt")
                info.size = 4
                tar.addfile(info, io.BytesIO(b"text"))
    damaged = tmp_path / "1.tar"
    data = bytearray(damaged.read_bytes())
    data[3 * 1024 : 3 * 1024 + 100] = b"\1" * 100
    damaged.write_bytes(data)
    shards = str(tmp_path / "*.tar")
    refused = run("count", shards)
    assert refused.exit_code == 1
    assert f"{damaged}, byte 3072" in refused.stderr
    for workers in ("1", "2"):
        result = run("count", shards, "--on-error", "skip", "-w", workers, "--json")
        assert result.exit_code == 0
        assert '"documents": 8' in result.stdout  # whether a sample is whole is known with the next one
        assert '"bad_records": 1' in result.stdout
        assert f"the rest is left out: {damaged}, byte 3072" in result.stdout
