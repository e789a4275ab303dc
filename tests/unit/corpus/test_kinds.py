"""What a file is by its name: nothing that may be a shard is left out in silence, and nothing else is read as one."""

import logging

import pytest

from streampack.corpus.kinds import Kind, kind_of, refuse_others, shards_among
from streampack.corpus.urls import refuse_text
from streampack.errors import ConfigError, ShardNotFoundError


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (Kind.SHARD, "a.tar A.TAR d/a.tar.gz a.tgz a.tar.zst a.tzst why?.tar https://h/a.tar?sig=x.json"),
        (Kind.UNSUPPORTED, "a.tar.xz a.tar.bz2 a.tar.lz4 a.tar.br a.tar.Z a.tar.lzma a.tar.7z a.txz a.tbz2 a.tbz"),
        (Kind.UNSUPPORTED, "a.tar.gzip a.tar.zstd a.tar.zip a.taz a.TAR.XZ s3://b/a.tar.xz?versionId=1"),
        (Kind.OTHER, "README README.md LICENSE index _SUCCESS a.json a.jsonl.zst a.parquet a.csv.gz a.zip x.model"),
        (Kind.OTHER, "a.tar.idx a.tar.index a.tar.json a.tar.md5 a.tar.gz.sha256 a.tgz.txt a.npy"),
        (Kind.LIKE_SHARD, "a.tar.part a.tar.001 a.tar.gz.1 a.tar.aa a.tgz.tmp a.tar.gz.crdownload a.tar.enc"),
        (Kind.LIKE_SHARD, "a.tar-00 a.tar_1 a.tar1 a.tar~ #a.tar# a_tar a-tgz a.tgz-aa a.tar.gz_ A.TAR~ a.TAR.PART"),
        (Kind.LIKE_SHARD, "a.ustar a.cpio a.pax a.gtar d.e/a.gz 00017.zst a.01.gz a.bz2"),
        (Kind.OTHER, "a_tar.txt a.tar-00.md5 a.tar~.json"),
        (Kind.UNKNOWN, "guitar star.bin a.target avatar.bin a.warc.gz dump.bin.zst d.tar/part-0"),
        (Kind.UNKNOWN, "part-00017 a.bin tar https://h/get?file=a.tar https://h/get?file=a.jsonl"),
    ],
)
def test_a_name_tells_what_a_file_is(kind: Kind, names: str) -> None:
    assert {name: kind_of(name) for name in names.split()} == dict.fromkeys(names.split(), kind)


def found(names: str) -> list[tuple[str, int | None]]:
    return [(f"d/{name}", 1) for name in names.split()]


@pytest.mark.parametrize("name", ["b.tar.xz", "b.tar.bz2", "b.tar.Z", "b.tar.part", "b.tar-0", "b_tar", "b.gz"])
def test_what_may_be_a_shard_beside_shards_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^1 of 2 files below d/ look like shards and cannot be read: d/{name}; "):
        shards_among(found(f"a.tar {name}"), folder="d/")


def test_other_files_beside_shards_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    names = "a.tar README.md index.json 00000.parquet a.tar.idx _SUCCESS b.tgz"
    with caplog.at_level(logging.WARNING):
        assert shards_among(found(names), folder="d/") == found("a.tar b.tgz")
    [message] = caplog.messages
    assert message.startswith("d/: 5 of 7 files are no shards and are not read (1 .md, 1 .json")
    caplog.clear()
    shards_among(found("a.tar"), folder="d/")
    assert not caplog.messages


def test_a_web_folder_without_links_says_what_it_takes_to_be_listed() -> None:
    with pytest.raises(ShardNotFoundError, match="empty, or not there; a web server lists a folder only where it has"):
        shards_among([], folder="https://h/d/")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("s3://b/a.parquet", r"^1 of 1 files given as shards are no tars by .*: s3://b/a\.parquet; .*write_shards"),
        ("a.jsonl", r"If it is a manifest, a list of shards, give it as '@a\.jsonl'"),
        ("a.jsonl.zst", "docs/data.md shows how"),
        ("a.tar.xz", r"\.tar\.xz is not supported; store the shard as \.tar, \.tar\.gz or \.tar\.zst"),
        ("a.tar.idx", "shards are tars"),
    ],
)
def test_other_data_in_the_place_of_a_shard_is_an_error_that_says_what_is_read(url: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        refuse_others([url])


def test_names_that_tell_nothing_are_read_as_tars_where_they_are_given() -> None:
    refuse_others(["a.tar", "part-00017", "a.tar.gz.1", "https://h/export.json?file=a.tar"])
    with pytest.raises(ConfigError, match="2 of 3 files .* If a glob matches more than the shards, make it narrower"):
        refuse_others(["d/a.tar", "d/README.md", "d/index.json"])


@pytest.mark.parametrize("text", ["Once upon a time.\nThe end.", "a.tar\n", "x" * 256, "d/" + "ä" * 128, "a\0b"])
def test_a_document_in_the_place_of_a_name_is_an_error_that_shows_its_beginning(text: str) -> None:
    with pytest.raises(ConfigError, match="is a text, and not the URL or the path of a shard") as caught:
        refuse_text(text)
    assert len(str(caught.value)) < 400


def test_long_urls_and_patterns_are_no_documents() -> None:
    refuse_text("https://h/a.tar?signature=" + "x" * 4000)
    refuse_text("/".join(["folder"] * 200) + "/a.tar")
    refuse_text("{" + ",".join(f"{n:05d}" for n in range(1000)) + "}.tar", expanded=False)


def test_a_copy_with_a_space_in_its_name_is_like_a_shard() -> None:
    assert kind_of("d/a.tar (1)") is kind_of("a.tar copy") is Kind.LIKE_SHARD
