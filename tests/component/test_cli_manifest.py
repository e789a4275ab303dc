"""`streampack manifest`: the same run from the file as from the URLs, and lists of a size that hurts."""

import json
import pickle
import time
from pathlib import Path

import pytest
import xxhash
from support.proxy import Proxy
from typer.testing import CliRunner

from streampack import PackedDataset
from streampack.cli import app
from streampack.corpus.resolve import resolve_shards
from streampack.corpus.table import ShardTable
from streampack.storage.access import StorageReader
from streampack.storage.options import RetryPolicy
from streampack.testing import ByteTokenizer, write_shards

STORAGE = StorageReader(retry=RetryPolicy.immediate())


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["manifest", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    write_shards(folder / "de", [f"Text {number} " * 50 for number in range(40)], documents_per_shard=10)
    write_shards(folder / "en", ["text " * 99] * 20, documents_per_shard=10, compression="zst")
    return folder


@pytest.mark.parametrize("spec", ["{}", "{}/*/*.tar*", "{}/{{en,de}}/"])
def test_a_run_from_the_manifest_is_the_run_from_the_urls(shards: Path, spec: str, tmp_path: Path) -> None:
    spec = spec.format(shards)
    for place in (shards / "list.jsonl", tmp_path / "elsewhere.jsonl"):
        run(spec, "-o", place)
        direct, listed = (PackedDataset(each, ByteTokenizer(), 32, num_lanes=4) for each in (spec, f"@{place}"))
        assert listed.fingerprint() == direct.fingerprint()
        assert [Path(shard.url).resolve() for shard in listed.list_shards()] == [
            Path(shard.url).resolve() for shard in direct.list_shards()
        ]


def test_a_manifest_beside_its_shards_moves_with_them(shards: Path, tmp_path: Path) -> None:
    run(shards, "-o", shards / "list.jsonl")
    assert lines(shards / "list.jsonl")[0]["url"] == "de/00000.tar"
    shards.rename(tmp_path / "moved")
    table = resolve_shards(f"@{tmp_path}/moved/list.jsonl", STORAGE)
    assert len(list(STORAGE.chunks(table[0].url, size=table[0].size))) > 0


def test_a_relative_folder_is_written_so_that_it_is_found_from_elsewhere(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shards)
    (tmp_path / "lists").mkdir()
    run("de", "-o", "../lists/m.jsonl")
    monkeypatch.chdir("/")
    assert all(Path(shard.url).is_file() for shard in resolve_shards(f"@{tmp_path}/lists/m.jsonl", STORAGE))


def test_what_is_known_of_a_shard_is_written_again(shards: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    known = {"url": str(shards / "de/00000.tar"), "size": 1024, "etag": '"x1"', "num_samples": 7, "whole": True}
    first.write_text(json.dumps(known))
    run(f"@{first}", "-o", second)
    assert lines(second) == [{**known, "url": "corpus/de/00000.tar"}]


def test_sizes_and_etags_of_a_web_server_are_looked_up_once_and_kept(tmp_path: Path) -> None:
    proxy = Proxy(objects={f"/{name}.tar": name.encode() * 5000 for name in "abc"})
    try:
        run(proxy.url + "/{a,b,c}.tar", "-o", tmp_path / "m.jsonl")
        assert proxy.gets == []
        found = lines(tmp_path / "m.jsonl")
        assert [line["size"] for line in found] == [5000] * 3
        assert len({line["etag"] for line in found}) == 3
    finally:
        proxy.close()
    assert [shard.etag for shard in resolve_shards(f"@{tmp_path}/m.jsonl", STORAGE)] == [line["etag"] for line in found]


def test_digests_are_those_of_the_blocks(shards: Path, tmp_path: Path) -> None:
    big = shards / "big.tar"
    big.write_bytes(bytes(range(256)) * 1000)
    run(shards, "-o", tmp_path / "m.jsonl", "--digests", "--block-bytes", 2**16)
    by_name = {str(line["url"]).rpartition("/")[2]: line for line in lines(tmp_path / "m.jsonl")}
    data = big.read_bytes()
    blocks = [xxhash.xxh3_64(data[at : at + 2**16]).hexdigest() for at in range(0, len(data), 2**16)]
    assert by_name["big.tar"]["digest"] == "xxh3/65536:" + "".join(blocks)
    assert len(by_name) == 7
    assert all("digest" in line for line in by_name.values())


def test_nothing_is_written_where_a_shard_is_missing(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text("the one before")
    output = run(f"{shards}/de/0000{{0..7}}.tar", "-o", tmp_path / "m.jsonl", code=1)
    assert "4 of 8 shards are not there" in output
    assert (tmp_path / "m.jsonl").read_text() == "the one before"
    (tmp_path / "torn.jsonl").write_text(json.dumps({"url": str(shards / "nowhere.tar"), "size": 5}))
    assert "there is no such file" in run(f"@{tmp_path}/torn.jsonl", "--digests", "-o", tmp_path / "m.jsonl", code=1)
    assert (tmp_path / "m.jsonl").read_text() == "the one before"
    assert sorted(path.name for path in tmp_path.glob("*.jsonl*")) == ["m.jsonl", "torn.jsonl"]


def test_json_says_what_was_written(shards: Path, tmp_path: Path) -> None:
    told = json.loads(run(shards, "-o", tmp_path / "m.jsonl", "--json"))
    assert told["num_shards"] == 6
    assert told["bytes"] == sum(path.stat().st_size for path in shards.rglob("*.tar*"))


@pytest.fixture(scope="module")
def hundred_thousand(tmp_path_factory: pytest.TempPathFactory) -> ShardTable:
    path = tmp_path_factory.mktemp("many") / "m.jsonl"
    with path.open("w") as file:
        for number in range(100_000):
            url = f"s3://bucket/corpus/part-{number % 100:02d}/{number:06d}.tar"
            file.write(json.dumps({"url": url, "size": 10**8 + number, "etag": f'"{number:032x}"'}) + "\n")
    began = time.perf_counter()
    table = resolve_shards(f"@{path}", STORAGE)
    print(f"100,000 shards in {time.perf_counter() - began:.2f} s")  # noqa: T201 - to be seen with -s; no test of time
    return table


def test_a_hundred_thousand_shards_are_a_few_blocks_of_bytes(hundred_thousand: ShardTable) -> None:
    """No Python object for each: a pickle of objects would need a memo entry, a tag and a length for every field."""
    table = hundred_thousand
    own = sum(len(texts.blob) for texts in (table.urls, table.names, table.etags, table.digests))
    arrays = 4 * 8 * (len(table) + 1) + 2 * 8 * len(table) + 2 * len(table)
    assert abs(len(pickle.dumps(table, protocol=5)) - own - arrays) < 4096
    assert len(table.to_bytes()) - own - arrays < 4096


def test_a_hundred_thousand_shards_cost_a_worker_no_objects(hundred_thousand: ShardTable) -> None:
    import gc

    gc.collect()
    before = len(gc.get_objects())
    copy = pickle.loads(pickle.dumps(hundred_thousand))
    assert len(gc.get_objects()) - before < 100
    assert copy[99_999] == hundred_thousand[99_999]


def test_a_file_that_cannot_be_written_is_an_error_that_says_why(shards: Path, tmp_path: Path) -> None:
    file = tmp_path / "nowhere" / "list.jsonl"
    said = " ".join(run(shards, "-o", file, code=1).split())
    assert f"error: --output {file}: there is no folder {file.parent}: make it" in said
    assert "Traceback" not in said
    run(shards, "-o", shards, code=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [shards.name]
