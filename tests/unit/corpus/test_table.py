"""The shard list: braces, globs, directories, manifests, sizes, names, digests; over the real storage."""

import json
import os
import pickle
import re
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import braceexpand
import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streampack.corpus.braces import expand_braces
from streampack.corpus.resolve import resolve_shards
from streampack.corpus.table import ShardTable, Texts, differing_block
from streampack.corpus.urls import relative_names
from streampack.errors import ConfigError, ShardError, ShardNotFoundError, StorageError
from streampack.storage.access import StorageReader
from streampack.storage.options import RetryPolicy
from streampack.tar.codecs import is_compressed

STORAGE = StorageReader(retry=RetryPolicy.immediate())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Some shards in the working directory, a.tar with one byte to f.tzst with six, and other files."""
    monkeypatch.chdir(tmp_path)
    for size, name in enumerate(
        ["en/a.tar", "en/b.tar", "de/c.tar.gz", "de/deep/d.tgz", "de/e.tar.zst", "de/f.tzst", "en/notes.txt"], start=1
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(bytes(size))
    return tmp_path


def urls(table: ShardTable) -> list[str]:
    return [shard.url for shard in table]


def names(table: ShardTable) -> list[str]:
    return [shard.name for shard in table]


def manifest(*lines: object, name: str = "m.jsonl") -> str:
    Path(name).write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return f"@{name}"


class TestBraces:
    """A pure function from a pattern to strings."""

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("a.tar", "a.tar"),
            ("{0..3}", "0 1 2 3"),
            ("{08..11}", "08 09 10 11"),  # zeros pad
            ("{8..011}", "008 009 010 011"),  # on either side
            ("{3..1}", "3 2 1"),
            ("{-1..1}", "-1 0 1"),
            ("{-01..1}", "-01 000 001"),
            ("{0..9..4}", "0 4 8"),
            ("{9..0..-4}", "9 5 1"),
            ("{0..2..0}", "0 1 2"),  # shells take a step of 0 for 1
            ("{a..e..2}", "a c e"),
            ("{c..a}", "c b a"),
            ("{a,b,c}", "a b c"),
            ("{,x}y", "y xy"),
            ("{a,a}", "a a"),  # a URL twice is found later
            ("{a,b}{1..2}", "a1 a2 b1 b2"),  # the last one varies first
            ("p{a{1..2},b}", "pa1 pa2 pb"),
            ("{{a,b},{c,d}}", "a b c d"),
            ("{a}", "{a}"),  # neither comma nor range
            ("{}", "{}"),
            ("{{1..2}}", "{1} {2}"),
            ("{1..a}", "{1..a}"),
            (r"\{a,b\}", "{a,b}"),
            (r"{a\,b,c}", "a,b c"),
            ("s3://b/{en,de}/{09..10}.tar", "s3://b/en/09.tar s3://b/en/10.tar s3://b/de/09.tar s3://b/de/10.tar"),
        ],
    )
    def test_patterns_expand_as_in_a_shell(self, pattern: str, expected: str) -> None:
        assert expand_braces(pattern) == expected.split(" ")

    @given(
        st.recursive(
            st.one_of(
                st.text("ab01-.", max_size=4),
                st.sampled_from([r"\{", r"\}", r"\,"]),
                st.builds("{{{}..{}}}".format, st.integers(8, 12), st.integers(8, 12)),
                st.builds("{{{:03d}..{}..{}}}".format, st.integers(-3, 3), st.integers(-3, 3), st.integers(-3, 3)),
                st.builds("{{{}..{}}}".format, *[st.sampled_from("abcxyzABZ")] * 2),
            ),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3).map("".join),
                st.lists(inner, max_size=3).map(lambda a: f"{{{','.join(a)}}}"),
            ),
            max_leaves=5,
        )
    )
    def test_every_pattern_expands_as_webdataset_has_it(self, pattern: str) -> None:
        if "{" in pattern.replace(r"\{", ""):
            assert expand_braces(pattern) == list(braceexpand.braceexpand(pattern))

    @pytest.mark.parametrize("pattern", ["{a,b", "{a,b}}", "}{", "{1..{2,3}"])
    def test_unbalanced_braces_are_an_error(self, pattern: str) -> None:
        with pytest.raises(ConfigError, match=r"the braces in .* are not balanced"):
            expand_braces(pattern)

    def test_a_range_that_would_fill_the_memory_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match=r"\{0\.\.99999999999\} in 'a\{.* is more than 10000000 shards"):
            expand_braces("a{0..99999999999}")


class TestOrder:
    """What the user wrote keeps its order; what is listed is sorted."""

    def test_braces_keep_their_order(self, here: Path) -> None:
        assert urls(resolve_shards("en/{b,a}.tar", STORAGE)) == ["en/b.tar", "en/a.tar"]

    def test_a_glob_is_listed_and_sorted(self, here: Path) -> None:
        assert urls(resolve_shards("*/[a-c].tar*", STORAGE)) == ["de/c.tar.gz", "en/a.tar", "en/b.tar"]

    @pytest.mark.parametrize("spec", ["{here}", "{here}/", "file://{here}/", "de", "./de/"])
    def test_a_directory_gives_every_tar_below_it_sorted(self, here: Path, spec: str) -> None:
        found = urls(resolve_shards(spec.format(here=here), STORAGE))
        wanted = ["de/c.tar.gz", "de/deep/d.tgz", "de/e.tar.zst", "de/f.tzst", "en/a.tar", "en/b.tar"]
        assert len(found) == (4 if "de" in spec else 6)
        assert all(url.endswith(end) for url, end in zip(found, wanted, strict=False))

    def test_braces_of_globs_and_directories_keep_the_order_of_the_braces(self, here: Path) -> None:
        assert names(resolve_shards("{en,de}/*.tar*", STORAGE)) == [
            "en/a.tar",
            "en/b.tar",
            "de/c.tar.gz",
            "de/e.tar.zst",
        ]
        assert names(resolve_shards("{en,de/deep}/", STORAGE)) == ["en/a.tar", "en/b.tar", "de/deep/d.tgz"]

    def test_a_list_of_anything_keeps_its_order(self, here: Path) -> None:
        spec = ["en/b.tar", manifest({"url": "de/f.tzst"}), "de/[ce]*", "{de/deep/d.tgz,en/a.tar}"]
        assert urls(resolve_shards(spec, STORAGE)) == [
            "en/b.tar",
            "de/f.tzst",
            "de/c.tar.gz",
            "de/e.tar.zst",
            "de/deep/d.tgz",
            "en/a.tar",
        ]

    def test_memory_urls_work_alike(self) -> None:
        filesystem = fsspec.filesystem("memory")
        filesystem.pipe({"/corpus/b.tar": b"12", "/corpus/sub/a.tar": b"1", "/corpus/x.txt": b"1"})
        try:
            for spec in ("memory://corpus/", "memory://corpus", "memory://corpus/**/*.tar"):
                table = resolve_shards(spec, STORAGE)
                assert urls(table) == ["memory://corpus/b.tar", "memory://corpus/sub/a.tar"]
                assert table.sizes.tolist() == [2, 1]
        finally:
            filesystem.store.clear()


class TestOddNames:
    """A file that is there is read, whatever characters its name has."""

    @pytest.mark.parametrize("name", ["why?.tar", "why?.tar.gz", "en [v1].tar", "a*b.tgz", "1%.tar", "a#b.tar"])
    @pytest.mark.parametrize("folder", ["x", "x [v1]", "x?"])
    def test_by_its_name_and_by_its_folder(self, here: Path, folder: str, name: str) -> None:
        Path(folder).mkdir()
        Path(folder, name).write_bytes(bytes(7))
        for spec in (f"{folder}/{name}", folder, f"{folder}/", f"{here}/{folder}/", [f"{here}/{folder}/{name}"]):
            [shard] = resolve_shards(spec, STORAGE)
            assert (Path(shard.url).resolve(), shard.name, shard.size) == (here / folder / name, name, 7)
            assert shard.whole == name.endswith("gz")
            assert STORAGE.read(shard.url) == bytes(7)

    @pytest.mark.parametrize(
        "name",
        ["{a,b}.tar", "x{0..3}.tar", "a{.tar", "**.tar", "a**b.tar", "a\nb.tar", "{a,b}/c.tar", "\n{/c.tar", "\\{.tar"],
    )
    def test_a_name_that_braces_or_a_line_feed_are_in_is_that_file(self, here: Path, name: str) -> None:
        Path("x", name).parent.mkdir(parents=True)
        Path("x", name).write_bytes(bytes(7))
        Path("x/other.tar").write_bytes(bytes(8))
        for spec in (f"x/{name}", [f"{here}/x/{name}", "x/other.tar"], [f"file://{here}/x/{name}"]):
            table = resolve_shards(spec, STORAGE)
            assert Path(table[0].url.removeprefix("file://")).resolve() == here / "x" / name
            assert len(table) == (2 if len(spec) == 2 else 1)
        folder = str(Path("x", name).parent)
        for spec in (folder, f"{folder}/"):
            assert f"{folder}/{name.rpartition('/')[2]}" in urls(resolve_shards(spec, STORAGE))
        with pytest.raises((ConfigError, ShardNotFoundError)):
            resolve_shards(f"y/{name}", STORAGE)

    def test_in_memory(self) -> None:
        filesystem = fsspec.filesystem("memory")
        filesystem.pipe({"/odd [1]/why?.tar": b"12", "/odd [1]/.hidden/a.tar": b"1"})
        try:
            for spec in ("memory://odd [1]/", "memory://odd [1]", "memory://odd [1]/why?.tar", "memory://odd*/*.tar"):
                assert urls(resolve_shards(spec, STORAGE)) == ["memory://odd [1]/why?.tar"]
        finally:
            filesystem.store.clear()

    def test_that_are_not_utf_8(self, here: Path) -> None:
        name = os.fsdecode(b"x/caf\xe9.tar")
        Path(name).parent.mkdir()
        Path(name).write_bytes(bytes(3))
        assert urls(resolve_shards("x", STORAGE)) == [name]
        spec = manifest({"url": name, "size": 3}, {"url": "caf\u00e9\U0001f600.tar", "size": 3})
        assert urls(resolve_shards(spec, STORAGE)) == [name, "caf\u00e9\U0001f600.tar"]
        with pytest.raises(ShardNotFoundError, match=r"caf\\udce8"):
            resolve_shards(os.fsdecode(b"caf\xe8.tar"), STORAGE)


class TestErrors:
    """Named with what was given and what to do."""

    def test_nothing_that_matches_is_an_error(self, here: Path) -> None:
        with pytest.raises(ShardNotFoundError, match=r"nothing matches 'en/\*\.tgz'"):
            resolve_shards("en/*.tgz", STORAGE)
        with pytest.raises(ShardNotFoundError, match="the directory nowhere/ is empty, or not there"):
            resolve_shards("nowhere/", STORAGE)

    def test_a_directory_without_a_tar_says_what_it_has(self, here: Path) -> None:
        for name in ("x/a.json", "x/b.json", "x/README"):
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_bytes(b"1")
        with pytest.raises(ShardNotFoundError, match=r"x/ has 3 files but no tar \(2 \.json, 1 without a suffix\)"):
            resolve_shards("x", STORAGE)

    def test_missing_shards_are_counted_and_the_first_is_named(self, here: Path) -> None:
        with pytest.raises(ShardNotFoundError, match=r"2 of 4 shards are not there; the first: en/c\.tar: there is no"):
            resolve_shards("en/{a,b,c,d}.tar", STORAGE)

    def test_a_shard_twice_is_an_error(self, here: Path) -> None:
        with pytest.raises(ConfigError, match=r"1 of 3 shards are given more than once, the first is en/a\.tar"):
            resolve_shards(["en/a.tar", "en/*.tar"], STORAGE)

    @pytest.mark.parametrize("spec", ["en/z.tar", "en/*.tar", "@m.jsonl"])
    def test_an_empty_shard_is_an_error(self, here: Path, spec: str) -> None:
        Path("en/z.tar").write_bytes(b"")
        manifest({"url": "en/z.tar", "size": 0})
        with pytest.raises(ShardError, match=r"en/z\.tar: the shard is empty \(0 bytes\)"):
            resolve_shards(spec, STORAGE)

    @pytest.mark.parametrize("spec", ["", "@", [""], [Path("a.tar")]], ids=str)
    def test_what_is_no_specification_is_an_error(self, spec: Any) -> None:
        with pytest.raises(ConfigError, match="is not a shard specification; give a URL, a glob"):
            resolve_shards(spec, STORAGE)

    def test_documents_in_the_place_of_names_are_an_error_before_any_request(self) -> None:
        texts = [f"Line {number}.\nAnother line." for number in range(1000)]
        with pytest.raises(ConfigError, match=r"'Line 0\.\\nAnother line\.'\.\.\. .* is a text, and not the URL"):
            resolve_shards(texts, Told({}))
        with pytest.raises(ConfigError, match="is a text"):
            resolve_shards(["a.tar", "word " * 100], Told({}))
        with pytest.raises(ShardNotFoundError, match=r"2 of 2 shards are not there; .* Are these documents\?"):
            resolve_shards(["A short one", "another"], STORAGE)

    @pytest.mark.parametrize("name", ["x.parquet", "x.jsonl", "x.jsonl.zst", "x.tar.xz", "README.md"])
    def test_other_data_is_an_error_by_a_name_a_glob_and_a_manifest(self, here: Path, name: str) -> None:
        Path("en", name).write_bytes(b"1")
        for spec in (f"en/{name}", "en/[x-zR]*", manifest({"url": f"en/{name}", "size": 1})):
            with pytest.raises(ConfigError, match="1 of 1 files given as shards are no tars"):
                resolve_shards(spec, STORAGE)

    def test_a_folder_with_what_may_be_shards_and_is_not_read_is_an_error(self, here: Path) -> None:
        Path("en/b.tar.xz").write_bytes(b"1")
        with pytest.raises(ConfigError, match=r"^1 of 4 files below en/ look like shards .*: en/b\.tar\.xz"):
            resolve_shards("en", STORAGE)
        assert len(resolve_shards("en/**/*.tar", STORAGE)) == 2  # as the error says

    def test_one_shard_by_two_names_is_an_error(self, here: Path) -> None:
        Path("link.tar").symlink_to("en/b.tar")
        Path("hard.tar").hardlink_to("en/b.tar")
        Path("again").symlink_to("en")
        Path("en/other.tar").write_bytes(bytes(2))  # of the same size
        others = ["./en/b.tar", "en//b.tar", f"{here}/en/b.tar", f"file://{here}/en/b.tar", "link.tar", "again/b.tar"]
        others += ["hard.tar"]
        for other in others:
            with pytest.raises(ConfigError, match=rf"1 of 3 shards .*, the first is en/b\.tar, also given as {other};"):
                resolve_shards(["en/b.tar", "en/other.tar", other], STORAGE)
        with pytest.raises(ConfigError, match="3 of 6 shards are given more than once"):
            resolve_shards(["en/", "again/"], STORAGE)
        assert len(resolve_shards(["en/b.tar", "en/other.tar"], STORAGE)) == 2

    def test_one_shard_by_two_urls_is_an_error(self) -> None:
        for first, second in (("http://h/en/%61.tar", "http://h/en/a.tar"), ("s3://b/a.tar", "s3a://b/a.tar")):
            with pytest.raises(ConfigError, match="1 of 2 shards are given more than once"):
                resolve_shards([first, second], Told({first: 5, second: 5}))

    def test_an_at_sign_before_a_shard_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match=r"'@en/a\.tar': @ is for a manifest, and this is a shard"):
            resolve_shards("@en/a.tar", STORAGE)

    def test_an_empty_list_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match=r"no shards: \[\] is empty"):
            resolve_shards([], STORAGE)

    def test_shells_are_refused_everywhere(self, here: Path) -> None:
        for spec in (
            "pipe:cat en/a.tar",
            "@pipe:cat m",
            "{pipe:cat x,en/a.tar}",
            manifest({"url": "pipe:rm x", "size": 1}),
        ):
            with pytest.raises(ConfigError, match=r"'pipe:.*would run a shell.*Storage"):
                resolve_shards(spec, STORAGE)

    def test_directories_out_of_braces_need_their_slash(self, here: Path) -> None:
        with pytest.raises(StorageError, match="a directory of shards is given with a '/' at its end"):
            resolve_shards("{en,de}", STORAGE)


class TestManifest:
    """Typed lines; an error names its line."""

    def test_a_line_tells_all_that_is_known(self, here: Path) -> None:
        spec = manifest(
            {
                "url": "en/b.tar",
                "size": 7,
                "etag": "v1",
                "digest": "xxh3:ab12cd34ef56ab78",
                "num_samples": 3,
                "whole": True,
            },
            {"url": "s3://b/c.tar", "size": 8, "count": 4},
            {"url": "en/a.tar"},
        )
        first, second, third = resolve_shards(spec, STORAGE)
        assert (first.url, first.size, first.digest, first.num_samples) == ("en/b.tar", 7, "xxh3:ab12cd34ef56ab78", 3)
        assert (first.etag, second.etag) == ("v1", None)
        assert (first.whole, second.whole, third.whole) == (True, False, False)
        assert (second.size, second.num_samples, second.digest) == (8, 4, None)
        assert (third.size, third.size_known, third.num_samples) == (1, True, None)  # looked up

    @pytest.mark.parametrize("size", [{}, {"size": 5}])
    @pytest.mark.parametrize("url", ["en/*.tar", "en/{a,b}.tar", "en/?.tar"])
    def test_a_pattern_in_a_line_is_an_error_that_says_so(self, here: Path, url: str, size: dict[str, int]) -> None:
        spec = manifest({"url": "en/a.tar"}, {"url": url, **size})
        with pytest.raises(ConfigError, match=rf"^m\.jsonl: shard 2: there is no file {re.escape(url)}; a manifest"):
            resolve_shards(spec, STORAGE)
        Path(url).write_bytes(b"12345")  # a file of this name
        assert urls(resolve_shards(spec, STORAGE)) == ["en/a.tar", url]
        with pytest.raises(ConfigError, match=r"shard 1: 'en/' is a folder; a manifest has a line for each shard"):
            resolve_shards(manifest({"url": "en/"}), STORAGE)
        with pytest.raises(ShardNotFoundError, match=r"memory://nowhere/\*\.tar: .*; a manifest has a line"):
            resolve_shards(manifest({"url": "memory://nowhere/*.tar"}), STORAGE)

    @pytest.mark.parametrize(
        ("place", "url", "expected"),
        [
            ("m.jsonl", "a.tar", "a.tar"),
            ("lists/m.jsonl", "a.tar", "lists/a.tar"),
            ("lists/m.jsonl", "../en/a.tar", "en/a.tar"),
            ("lists/m.jsonl", "/abs/a.tar", "/abs/a.tar"),
            ("lists/m.jsonl", "gs://b/a.tar", "gs://b/a.tar"),
            ("memory://m.jsonl", "x/a.tar", "memory://x/a.tar"),
            ("memory://b/lists/m.jsonl", "../a.tar", "memory://b/a.tar"),
        ],
    )
    def test_relative_urls_are_relative_to_the_manifest(self, here: Path, place: str, url: str, expected: str) -> None:
        Path("lists").mkdir()
        with fsspec.open(place, "w") as file:
            file.write(json.dumps({"url": url, "size": 1}))
        assert urls(resolve_shards(f"@{place}", STORAGE)) == [expected]

    def test_a_path_of_one_machine_in_a_remote_manifest_is_an_error(self) -> None:
        with fsspec.open("memory://b/m.jsonl", "w") as file:
            file.write('{"url": "/data/a.tar", "size": 1}')
        with pytest.raises(ConfigError, match=r"'/data/a\.tar' is a path of one machine.*file:///data/a\.tar"):
            resolve_shards("@memory://b/m.jsonl", STORAGE)

    @pytest.mark.parametrize(
        ("line", "text"),
        [
            ({"url": "a.tar", "sise": 1}, r"line 2 of the manifest: unknown key 'sise'; did you mean 'size'\?"),
            (
                {"url": "a.tar", "quite_other": 1},
                "line 2 .*unknown key 'quite_other'; a line has url, size, etag, digest",
            ),
            ({"size": 1}, "line 2 of the manifest: .*missing required field `url`"),
            ({"url": "a.tar", "size": "12"}, r"line 2 of the manifest: Expected `int.*`, got `str` - at `\$\.size`"),
            ({"url": "a.tar", "size": -1}, "line 2 of the manifest: Expected `int` >= 0"),
            ({"url": "a.tar", "digest": "ab12"}, "line 2 of the manifest: Expected `str` matching"),
            ({"url": "a.tar", "size": 2**63}, r"line 2 of the manifest: Expected `int` <= 1125899906842624"),
            ({"url": ""}, "line 2 of the manifest: Expected `str` of length >= 1"),
            ('{"url": "a.tar"', "line 2 of the manifest: Input data was truncated"),
            ("a.tar", "line 2 of the manifest: JSON is malformed"),
        ],
    )
    def test_a_wrong_line_is_named_with_what_is_wrong(self, here: Path, line: object, text: str) -> None:
        spec = manifest({"url": "en/b.tar", "size": 2}, line, {"url": "en/c.tar", "size": 2})
        with pytest.raises(ConfigError, match=rf"^m\.jsonl: {text}"):
            resolve_shards(spec, STORAGE)

    @pytest.mark.parametrize(
        ("data", "text"),
        [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "the manifest is a Git LFS pointer"),
            ('{"url": "a.tar", "size": 1}'.encode("utf-16"), "the manifest is text in UTF-16"),
            (b"\x1f\x8b\x08\x00", "the manifest is compressed: decompress it"),
            (b'[{"url": "a.tar", "size": 1}]', "the manifest is a JSON array: .* without brackets"),
            (b'{\n  "url": "a.tar",\n  "sise": 1\n}\n', "the manifest is one JSON value over several lines"),
            (b"a.tar\nb.tar\n", 'the manifest is no JSON object on each line, as {"url": "a.tar"'),
            (b"<html>", "the manifest is HTML or XML"),
        ],
    )
    def test_what_is_no_manifest_is_named(self, here: Path, data: bytes, text: str) -> None:
        Path("m.jsonl").write_bytes(data)
        with pytest.raises(ConfigError, match=rf"^m\.jsonl: line 1 of the manifest: .*; {text}"):
            resolve_shards("@m.jsonl", STORAGE)

    def test_a_byte_that_is_not_utf_8_is_named_with_its_escape(self, here: Path) -> None:
        Path("m.jsonl").write_bytes(b'{"url": "caf\xe9.tar", "size": 1}\n')
        with pytest.raises(ConfigError, match=r"line 1 .*: byte 0xe9 is not UTF-8; .* write it as \\udce9"):
            resolve_shards("@m.jsonl", STORAGE)

    @pytest.mark.parametrize("end", [b"\n", b"\r\n"])
    def test_a_byte_order_mark_and_the_line_ends_of_windows_are_read(self, here: Path, end: bytes) -> None:
        lines = [b'{"url": "a.tar", "size": 1}', b'{"url": "b.tar", "size": 2}', b""]
        Path("m.jsonl").write_bytes(b"\xef\xbb\xbf" + end.join(lines))
        assert urls(resolve_shards("@m.jsonl", STORAGE)) == ["a.tar", "b.tar"]

    def test_samples_are_counted_once(self, here: Path) -> None:
        with pytest.raises(ConfigError, match="shard 1: give num_samples or count, not both"):
            resolve_shards(manifest({"url": "a.tar", "size": 1, "count": 1, "num_samples": 2}), STORAGE)

    @pytest.mark.parametrize(
        ("digest", "text"),
        [
            ("sha256:ab12", "shard 1: a sha256 digest of 4 hex digits; a shard of 200000 bytes needs 64"),
            ("crc16:ab12", "shard 1: the digest 'crc16:ab12' is not .* with one of md5, sha1, sha256, sha512, xxh3"),
            (
                "xxh3/65536:" + "0" * 48,
                "shard 1: a xxh3/65536 digest of 48 hex digits; a shard of 200000 bytes needs 64",
            ),
            (
                "xxh3/999999999:" + "0" * 16,
                "shard 1: a digest of blocks of 999,999,999 bytes; a block may have at most 67,108,864",
            ),
        ],
    )
    def test_a_digest_that_could_never_be_right_is_an_error(self, here: Path, digest: str, text: str) -> None:
        with pytest.raises(ConfigError, match=rf"^m\.jsonl: {text}"):
            resolve_shards(manifest({"url": "a.tar", "size": 200_000, "digest": digest}), STORAGE)

    def test_digests_of_blocks_need_the_size(self, here: Path) -> None:
        with pytest.raises(ConfigError, match="shard 1: digests of blocks need the shard's size in the manifest"):
            resolve_shards(manifest({"url": "en/a.tar", "digest": "xxh3/65536:" + "0" * 16}), STORAGE)

    def test_sizes_that_add_up_to_more_than_can_be_counted_are_an_error(self, here: Path) -> None:
        lines = [{"url": f"{number}.tar", "size": 2**50} for number in range(4097)]
        with pytest.raises(ConfigError, match="the sizes of the 4097 shards add up to more than 4611686018427387904"):
            resolve_shards(manifest(*lines), STORAGE)

    def test_an_empty_manifest_is_an_error_and_blank_lines_are_not(self, here: Path) -> None:
        with pytest.raises(ConfigError, match=r"m\.jsonl: the manifest is empty"):
            resolve_shards(manifest(""), STORAGE)
        assert urls(resolve_shards(manifest("", {"url": "a.tar", "size": 1}, "", "  "), STORAGE)) == ["a.tar"]

    def test_a_manifest_that_is_not_there_is_named(self, here: Path) -> None:
        with pytest.raises(ShardNotFoundError, match=r"nowhere\.jsonl: there is no such file"):
            resolve_shards("@nowhere.jsonl", STORAGE)


class Told(StorageReader):
    """Tells the sizes that it was given, for URLs that lead nowhere."""

    def __init__(self, sizes: dict[str, int | None]) -> None:
        super().__init__()
        self.sizes = sizes

    def size(self, url: str) -> int | None:
        return self.sizes[url]


class TestSizes:
    """Known from the start, and flagged where they are not."""

    def test_an_unknown_size_counts_as_the_mean_of_the_known_ones(self) -> None:
        table = resolve_shards(["http://h/a.tar", "http://h/b.tar", "http://h/c.tar"], Told(
            {"http://h/a.tar": 10, "http://h/b.tar": None, "http://h/c.tar": 13}
        ))  # fmt: skip
        assert table.sizes.tolist() == [10, 11, 13]
        assert table.size_known.tolist() == [True, False, True]
        assert table.whole.tolist() == [False, True, False]
        assert table.total_bytes == 34

    def test_without_any_known_size_it_is_64_mib(self) -> None:
        table = resolve_shards(
            ["http://h/a.tar", "http://h/b.tar"], Told({"http://h/a.tar": None, "http://h/b.tar": None})
        )
        assert table.sizes.tolist() == [2**26, 2**26]
        assert not table.size_known.any()

    def test_compressed_shards_are_whole(self, here: Path) -> None:
        table = resolve_shards(".", STORAGE)
        assert [shard.whole for shard in table] == [True, True, True, True, False, False]

    @pytest.mark.parametrize(
        "url",
        ["a.tar", "a.tgz", "a.TAR.GZ", "http://h/a.tar.zst?part=.tar", "s3://b/a.tzst", "gz", "a.tar.gz.1"],
    )
    def test_what_is_whole_is_what_the_reader_decompresses(self, url: str) -> None:
        assert resolve_shards([url], Told({url: 5}))[0].whole == is_compressed(url)

    def test_progress_is_told_while_sizes_are_looked_up(self, here: Path) -> None:
        calls: list[tuple[int, int]] = []
        resolve_shards(["en/a.tar", "en/b.tar"], STORAGE, progress=lambda done, total: calls.append((done, total)))
        assert calls == [(1, 2), (2, 2)]
        calls.clear()
        resolve_shards("en/*.tar", STORAGE, progress=lambda done, total: calls.append((done, total)))
        assert calls == []  # the listing told them

    @pytest.fixture
    def web(self, here: Path) -> Iterator[str]:
        class Quiet(SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(here))) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join(5)

    def test_sizes_are_looked_up_in_parallel_over_http(self, here: Path, web: str) -> None:
        table = resolve_shards([f"{web}/en/{{a,b}}.tar", f"{web}/de/*.tar*"], STORAGE)
        assert names(table) == ["en/a.tar", "en/b.tar", "de/c.tar.gz", "de/e.tar.zst"]
        assert table.sizes.tolist() == [1, 2, 3, 5]
        with pytest.raises(ShardNotFoundError, match=r"1 of 2 shards are not there; the first: http://.*/en/x\.tar"):
            resolve_shards(f"{web}/en/{{a,x}}.tar", STORAGE)

    def test_a_web_server_lists_what_is_below_a_folder(self, here: Path, web: str) -> None:
        for name in ("x [v1]/why?.tar", "x [v1]/é & ü/b.tar", "x [v1]/.hidden/c.tar", "x [v1]/._b.tar"):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(bytes(9))
        for spec in (f"{web}/x%20%5Bv1%5D/", f"{web}/x [v1]/", f"{web}/x [v1]/**/*.tar"):
            table = resolve_shards(spec, STORAGE)
            assert [name.rpartition("/")[2] for name in names(table)] == ["b.tar", "why%3F.tar"]
            assert table.sizes.tolist() == [9, 9]
            assert [STORAGE.read(shard.url) for shard in table] == [bytes(9)] * 2
        assert urls(resolve_shards(f"{web}/x [v1]/why%3F.tar", STORAGE)) == [f"{web}/x%20%5Bv1%5D/why%3F.tar"]
        with pytest.raises(ConfigError, match="1 of 2 shards are given more than once"):
            resolve_shards([f"{web}/en/a.tar", f"{web}/en/%61.tar"], STORAGE)

    def test_a_web_server_that_does_not_list_is_named_as_such(self, web: str, monkeypatch: pytest.MonkeyPatch) -> None:
        refuse = lambda handler, _: handler.send_error(403, "no listing")  # noqa: E731
        monkeypatch.setattr(SimpleHTTPRequestHandler, "list_directory", refuse)
        for spec in (f"{web}/en/", f"{web}/en/*.tar"):
            with pytest.raises(StorageError, match="a web server lists a folder only where it has an index page"):
                resolve_shards(spec, STORAGE)

    def test_a_file_with_brackets_is_read_where_nothing_may_be_listed(self) -> None:
        class Closed(Told):
            def listing(self, url: str) -> list[tuple[str, int | None]]:
                raise StorageError("403", url=url)

            def size(self, url: str) -> int | None:
                return super().size(url) if url in self.sizes else StorageReader.size(self, "/nowhere/x")

        assert urls(resolve_shards("s3://b/a[1].tar", Closed({"s3://b/a[1].tar": 5}))) == ["s3://b/a[1].tar"]
        with pytest.raises(StorageError, match=r"s3://b/\*\.tar: 403"):
            resolve_shards("s3://b/*.tar", Closed({}))

    def test_a_manifest_over_http_has_relative_urls(self, here: Path, web: str) -> None:
        manifest({"url": "a.tar"}, {"url": "../de/e.tar.zst"}, name="en/m.jsonl")
        table = resolve_shards(f"@{web}/en/m.jsonl", STORAGE)
        assert urls(table) == [f"{web}/en/a.tar", f"{web}/de/e.tar.zst"]
        assert table.sizes.tolist() == [1, 5]


class TestNames:
    """They stay when the corpus moves."""

    @pytest.mark.parametrize(
        ("given_urls", "expected"),
        [
            (["s3://b/c/0.tar"], "0.tar"),
            (["s3://b/c/0.tar", "s3://b/c/1.tar"], "0.tar 1.tar"),
            (["s3://b/c/en/0.tar", "s3://b/c/de/0.tar"], "en/0.tar de/0.tar"),
            (
                ["s3://b/en0/0.tar", "s3://b/en1/0.tar"],
                "en0/0.tar en1/0.tar",
            ),  # folders, never parts of a folder's name
            (["s3://b/a/0.tar", "s3://b/0.tar"], "a/0.tar 0.tar"),
            (["s3://b/0.tar", "s3://c/0.tar"], "b/0.tar c/0.tar"),
            (["s3://b/0.tar", "gs://b/0.tar"], "s3://b/0.tar gs://b/0.tar"),
            (["a.tar", "b.tar"], "a.tar b.tar"),
            (["https://h/d/a.tar?sig=x/y", "https://h/d/b.tar?sig=z"], "a.tar b.tar"),
            (["https://h/d?file=a.tar", "https://h/d?file=b.tar"], "d?file=a.tar d?file=b.tar"),
        ],
    )
    def test_the_folders_that_all_share_are_left_out(self, given_urls: list[str], expected: str) -> None:
        assert relative_names(given_urls) == expected.split(" ")

    @given(st.lists(st.text("ab/", min_size=1, max_size=8), min_size=1, max_size=6, unique=True))
    def test_names_are_tails_that_differ_and_begin_at_a_folder(self, paths: list[str]) -> None:
        found = relative_names(paths)
        assert len(set(found)) == len(paths)
        heads = {path[: len(path) - len(name)] for path, name in zip(paths, found, strict=True)}
        assert len(heads) == 1
        assert heads.pop()[-1:] in ("", "/")

    def test_another_bucket_gives_the_same_digests(self) -> None:
        here, there = (
            resolve_shards(f"{root}/{{en,de}}/{{00..04}}.tar", _sized(f"{root}/{{en,de}}/{{00..04}}.tar"))
            for root in ("s3://b/c", "/mnt/data")
        )
        assert here.digest == there.digest
        assert here.block_digests() == there.block_digests()
        assert urls(here) != urls(there)


def _sized(pattern: str, **changes: int) -> Told:
    return Told({url: changes.get(Path(url).stem, 1_000 + i) for i, url in enumerate(expand_braces(pattern))})


class TestDigests:
    """They name where two tables differ."""

    PATTERN = "s3://b/s{000..249}.tar"

    def test_they_never_change(self) -> None:
        table = resolve_shards(self.PATTERN, _sized(self.PATTERN))
        assert table.digest == "1e6dd35f1894d8bea3f1222b0f21e4d8"
        assert table.block_digests(2) == ["23677331f8c30c63", "bb6f277ebb59a6ca"]

    def test_there_are_about_a_hundred_and_never_more_than_shards(self) -> None:
        assert len(resolve_shards(self.PATTERN, _sized(self.PATTERN)).block_digests()) == 100
        assert len(resolve_shards("s3://b/{0..6}.tar", _sized("s3://b/{0..6}.tar")).block_digests()) == 7

    @pytest.mark.parametrize(
        ("stem", "expected"), [("s000", range(2)), ("s124", range(122, 125)), ("s249", range(247, 250))]
    )
    def test_the_block_that_differs_is_named(self, stem: str, expected: range) -> None:
        then = resolve_shards(self.PATTERN, _sized(self.PATTERN))
        now = resolve_shards(self.PATTERN, _sized(self.PATTERN, **{stem: 7}))
        assert then.digest != now.digest
        found = differing_block(then.block_digests(), now.block_digests(), num_shards=250)
        assert found is not None and found[1] == expected
        assert now.block_names()[found[0]] == f"s{expected.start:03d}.tar"
        assert differing_block(then.block_digests(), then.block_digests(), num_shards=250) is None

    def test_the_order_and_the_borders_of_names_count(self) -> None:
        digests = [
            resolve_shards(list(spec), _sized("{" + ",".join(spec) + "}", **dict.fromkeys("abc", 5), ab=5, bc=5)).digest
            for spec in (("x/a", "x/bc"), ("x/ab", "x/c"), ("x/bc", "x/a"))
        ]
        assert len(set(digests)) == 3


class TestTable:
    """Compact, and the same in every process."""

    def _table(self) -> ShardTable:
        Path("m.jsonl").write_text(
            '{"url": "a/\u00e4\U0001f600.tar", "size": 5}\n'
            '{"url": "a/b.tar.gz", "size": 6, "digest": "md5:0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f", "num_samples": 0}\n'
        )
        return resolve_shards("@m.jsonl", STORAGE)

    @pytest.mark.parametrize("way", ["pickle", "bytes"])
    def test_it_arrives_whole_in_another_process(self, here: Path, way: str) -> None:
        table = self._table()
        copy = pickle.loads(pickle.dumps(table)) if way == "pickle" else ShardTable.from_bytes(table.to_bytes())
        assert list(copy) == list(table)
        assert copy.digest == table.digest
        assert copy[1].digest == "md5:" + "0f" * 16
        assert (copy[0].num_samples, copy[1].num_samples) == (None, 0)

    def test_the_marks_of_a_manifest_are_told_by_index(self, here: Path) -> None:
        marks = [0, 1, 1, 1, 0, 1, 0]
        lines = [{"url": f"{i}.tar", "size": 1, "whole": bool(mark)} for i, mark in enumerate(marks)]
        lines.append({"url": "7.tar.gz", "size": 1, "whole": True})  # a mark that changes nothing
        assert resolve_shards(manifest(*lines), STORAGE).marked_whole() == "1-3,5"
        unmarked = [{"url": f"{i}.tar.zst", "size": 1} for i in range(3)]
        assert resolve_shards(manifest(*unmarked), STORAGE).marked_whole() == ""
        many = [{"url": f"{i:03}.tar", "size": 1, "whole": i % 2 == 0} for i in range(300)]
        assert resolve_shards(manifest(*many), STORAGE).marked_whole().startswith("150 shards, ")

    def test_it_is_a_sequence(self, here: Path) -> None:
        table = self._table()
        assert len(table) == 2
        assert table[-1] == table[1]
        assert table[0].name == "\u00e4\U0001f600.tar"
        with pytest.raises(IndexError):
            table[2]

    def test_names_that_are_not_utf_8_survive(self) -> None:
        texts = Texts.of(["caf\udce9.tar", "", "b"])
        assert [texts[0], texts[1], texts[2]] == ["caf\udce9.tar", "", "b"]

    def test_bytes_of_something_else_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="not a shard table of this version .*one version on all ranks"):
            ShardTable.from_bytes(b"\x93\x01\x02\x03")

    def test_a_hundred_thousand_shards_are_quick_and_hold_no_object_each(
        self, here: Path, record_property: Any
    ) -> None:
        lines = "".join(f'{{"url": "s3://bucket/corpus/part-{i:06d}.tar", "size": {i + 1}}}\n' for i in range(100_000))
        Path("m.jsonl").write_text(lines)
        began = time.perf_counter()
        table = resolve_shards("@m.jsonl", STORAGE)
        record_property("expand_s", time.perf_counter() - began)
        began = time.perf_counter()
        copy = ShardTable.from_bytes(table.to_bytes())
        record_property("to_and_from_bytes_s", time.perf_counter() - began)
        began = time.perf_counter()
        assert copy.digest == table.digest
        record_property("two_digests_s", time.perf_counter() - began)
        assert copy[99_999].name == "part-099999.tar"
        assert len(table.to_bytes()) < 10_000_000
        arrays = (table.sizes, table.size_known, table.whole, table.num_samples, table.urls.offsets)
        assert all(isinstance(array, np.ndarray) and array.dtype != object for array in arrays)


@pytest.mark.parametrize("urls", [["/a/0.tar", "s3://b/1.tar"], ["s3://b/1.tar", "/a/0.tar"], ["file:///a/0.tar"]])
def test_one_remote_shard_makes_a_corpus_remote(tmp_path: Path, urls: list[str]) -> None:
    manifest = tmp_path / "shards.jsonl"
    manifest.write_text("".join(json.dumps({"url": url, "size": 1024}) + "\n" for url in urls))
    table = resolve_shards(f"@{manifest}", STORAGE)
    assert [table.is_remote, table.is_remote] == [len(urls) > 1] * 2
