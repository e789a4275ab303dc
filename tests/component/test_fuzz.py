"""Input that was changed at random: what goes out is data or an error of the tree, never anything else, and in time."""

import gzip
import json
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.fuzzing import TARGETS, read_whole
from support.seeds import SEEDS, TARS
from support.tars import with_checksum

import streampack
from streampack.errors import StreampackError
from streampack.tar.reader import read_samples
from streampack.testing import ByteTokenizer

Change = Callable[[bytes], bytes]


def examples(count: int) -> settings:
    """A sixth of so many in the normal run, four times as many where the profile searches."""
    is_more = settings.default.max_examples > settings.get_profile("ci").max_examples
    return settings(max_examples=count * 4 if is_more else count // 6)


NUMBERS = [
    b"0" * 11 + b"\0",
    b"7" * 12,
    b"-1",
    b"\x80" + b"\xff" * 11,
    b"\xff" * 12,
    b"00000001000\0",
    b"1e3",
    b"\0" * 12,
]
"""For the size of a header."""
KINDS = b"0127xgLKSDXVA5\0\xff"


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """One change of some bytes, at a place given as a part of their length."""
    place = draw(st.floats(0, 1))
    kind = draw(st.sampled_from(["flip", "cut", "insert", "delete", "repeat", "zero", "swap"]))
    size = draw(st.sampled_from([1, 2, 4, 100, 512, 1024, 4096]))
    new = draw(st.binary(min_size=1, max_size=20)) if kind == "insert" else bytes([1 << draw(st.integers(0, 7))])
    aligned = draw(st.booleans())

    def change(data: bytes) -> bytes:
        at = min(int(place * len(data)), max(len(data) - 1, 0))
        at = at // 512 * 512 if aligned else at
        piece = data[at : at + size]
        return {
            "flip": data[:at] + bytes(byte ^ new[0] for byte in data[at : at + 1]) + data[at + 1 :],
            "cut": data[:at],
            "insert": data[:at] + new + data[at:],
            "delete": data[:at] + data[at + size :],
            "repeat": data[:at] + piece * 2 + data[at + size :],
            "zero": data[:at] + bytes(len(piece)) + data[at + size :],
            "swap": piece + data[len(piece) : at] + data[: len(piece)] + data[at + size :],
        }[kind]

    return change


@st.composite
def headers(draw: st.DrawFn) -> Change:
    """Another kind, size or name in the header at a place, with the right checksum."""
    place = draw(st.floats(0, 1))
    kind = draw(st.sampled_from([*KINDS, None]))
    size = draw(st.sampled_from([*NUMBERS, None]))
    name = draw(st.sampled_from([b"a.txt", b"__x__/a.txt", b"\xff.txt", b"", b"." * 100, None]))

    def change(data: bytes) -> bytes:
        found = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
        if not found:
            return data
        at = found[min(int(place * len(found)), len(found) - 1)]
        block = bytearray(data[at : at + 512])
        if kind is not None:
            block[156] = kind
        if size is not None:
            block[124:136] = size.ljust(12, b"\0")
        if name is not None:
            block[:100] = name.ljust(100, b"\0")
        return data[:at] + with_checksum(block) + data[at + 512 :]

    return change


def changed(seeds: list[bytes], change: st.SearchStrategy[Change], at_most: int = 3) -> st.SearchStrategy[bytes]:
    def apply(seed: bytes, made: list[Change]) -> bytes:
        for one in made:
            seed = one(seed)
        return seed

    return st.builds(apply, st.sampled_from(seeds), st.lists(change, min_size=1, max_size=at_most))


@examples(1000)
@given(changed(TARS, changes() | headers()))
def test_a_changed_tar_is_samples_or_a_shard_error_however_it_is_read(data: bytes) -> None:
    TARGETS["tar"](data)


@examples(500)
@given(st.sampled_from(TARS), changes() | headers())
def test_samples_before_the_first_change_are_those_of_the_whole_shard(good: bytes, change: Change) -> None:
    data = change(good)
    first = next((at for at, (old, new) in enumerate(zip(good, data)) if old != new), min(len(good), len(data)))
    whole = list(read_samples([good], url="a.tar", wanted=lambda _: True, max_member_bytes=1 << 20))
    found, _ = read_whole(data)
    safe = sum(sample.position <= first for sample in whole[2:])  # the sample behind each of them is whole, too
    assert found[:safe] == whole[:safe]


@examples(100)
@given(
    changed(TARS, changes() | headers()),
    st.sampled_from(["tar", "tar.gz", "tar.zst"]),
    st.sampled_from(["txt", "json:n", "npy"]),
)
def test_a_run_over_a_changed_shard_ends_with_packs_or_with_an_error_of_the_tree(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str, field: str
) -> None:
    compress = {"tar": bytes, "tar.gz": gzip.compress, "tar.zst": zstandard.compress}[suffix]
    path = tmp_path_factory.getbasetemp() / f"changed.{suffix}"
    path.write_bytes(compress(data))
    packs: dict[str, int | str] = {}
    for on_error in ("skip", "raise"):
        try:
            dataset = streampack.PackedDataset(
                str(path),
                None if field == "npy" else ByteTokenizer(),
                16,
                field=field,
                num_lanes=3,
                epochs=1,
                on_error=on_error,
                max_bad=3,
                storage=streampack.Storage(retry=streampack.RetryPolicy.immediate()),
                **({"add_bos": False, "add_eos": False} if field == "npy" else {}),
            )
            packs[on_error] = sum(1 for _ in dataset)
        except StreampackError as error:
            packs[on_error] = type(error).__name__
    # What is no error when errors are raised is none when they are passed over, and all of it is there.
    assert isinstance(packs["raise"], str) or packs["raise"] == packs["skip"]


@examples(500)
@given(changed(SEEDS["compressed"], changes()))
def test_changed_compressed_bytes_are_chunks_or_a_shard_error(data: bytes) -> None:
    TARGETS["compressed"](data)


RECORDS = ["text", "json", "messages", "lines", "lines.gz", "lines.zst", "npy"]


@pytest.mark.parametrize("name", RECORDS)
@examples(250)
@given(data=st.data())
def test_a_changed_member_is_documents_or_bad_records(name: str, data: st.DataObject) -> None:
    TARGETS[name](data.draw(changed(SEEDS[name], changes()) | st.binary(max_size=200)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "meta", "role", "content"]), inner)
    ),
    max_leaves=9,
)


@examples(400)
@given(st.sampled_from(["url", "size", "etag", "digest", "num_samples", "count", "whole", "x"]), JSON, st.booleans())
def test_any_value_of_a_manifest_is_a_shard_or_an_error(key: str, value: object, last: bool) -> None:
    line = {"url": "a.tar", "size": 3, key: value}
    TARGETS["manifest"](b'{"url": "b.tar", "size": 4}\n' * last + json.dumps(line).encode() + b"\n")


@examples(300)
@given(changed(SEEDS["manifest"], changes()))
@example(b'{"url": "a.tar", "size": 1, "num_samples": 9223372036854775808}')
@example(b'{"url": ' + b"[" * 100_000)
@example(b'{"x": ' + b'{"x":' * 100_000)
@example(b'{"url": "\\ud800", "x": ' + b"[" * 100_000)
@example(b'{"url": "http://[", "size": 1}\n{"url": "~nobody", "size": 1}\n{"url": "a\\u0000b", "size": 1}')
def test_a_changed_manifest_is_shards_or_an_error(data: bytes) -> None:
    TARGETS["manifest"](data)


@examples(400)
@given(st.text(alphabet="{},.\\1a09-z", max_size=25))
def test_any_braces_are_urls_or_an_error(text: str) -> None:
    TARGETS["braces"](text.encode())


KEYS = [
    "dataset",
    "loader",
    "data",
    "tokenizer",
    "seq_len",
    "boundary",
    "replace",
    "limits",
    "packing",
    "chat",
    "storage",
    "options",
    "retry",
    "x",
    "1",
]
VALUES = [
    *("a.tar", "1", "1.5", "1e3", "null", "true", "[]", "{}", "*a", "&a x", "!!set {a, b}", "2001-01-01", "[*a, *a]"),
    *(
        "{<<: *a}",
        "{replace: x}",
        "512MiB",
        "package://x/y",
        "./a",
        "~",
        ".nan",
        "- a",
        "? b",
        "|",
        "'",
        "!x y",
        "0x1f",
    ),
    *("12:30:45", "!!omap [a: 1]", "!!python/object:os.system x", "\x85", "{[1]: 2}", "{1: {2: 3}}", "!!binary aGk="),
]


@examples(700)
@given(
    st.lists(
        st.builds(
            "{}{}: {}".format, st.sampled_from(["", "  ", "    "]), st.sampled_from(KEYS), st.sampled_from(VALUES)
        ),
        max_size=9,
    ).map("\n".join)
)
@example("dataset: {data: a, tokenizer: t, storage: {options: {1: {2: x}}}}")
def test_any_yaml_is_a_config_or_an_error_that_names_the_file(text: str) -> None:
    TARGETS["config"](text.encode())


@examples(500)
@given(changed(SEEDS["config"], changes()))
def test_a_changed_config_is_a_config_or_an_error_that_names_the_file(data: bytes) -> None:
    TARGETS["config"](data)
