"""Members as bytes in, documents and bad records out."""

import dataclasses
import functools
import gzip
import io
import json
import pickle
import struct
from collections.abc import Callable

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from streampack import hashing
from streampack.documents.fields import Field, parse_field
from streampack.documents.reader import DocumentReader, Record
from streampack.documents.split import HoldOut
from streampack.errors import ConfigError, DocumentTooLongError, MissingFieldError, RecordError
from streampack.metrics import heartbeat
from streampack.records import WHOLE_SAMPLE, BadRecord, Document, Sample

URL = "s3://b/c/00001.tar"
KINDS = "; say what a document is with field= (--field): txt, json:KEY, jsonl:KEY or npy"
WHICH = "; field= (--field) says which is read"


def sample(members: dict[str, bytes], **sizes: int) -> Sample:
    """As the reader makes it: sizes of all members, content of the wanted ones; `sizes` adds others."""
    all_sizes = {extension: len(data) for extension, data in members.items()} | sizes
    return Sample(key="dir/k7", position=512, members=members, sizes=all_sizes)


def read(
    members: dict[str, bytes] | Sample,
    field: str,
    *,
    epoch: int = 0,
    position: int = 512,
    record: int = 0,
    part: int = 0,
    **options: object,
) -> list[Document | BadRecord]:
    reader = DocumentReader(field=parse_field(field), **options)
    items = reader.read(
        (members if isinstance(members, Sample) else sample(members))._replace(position=position),
        url=URL,
        shard_name="c/00001.tar",
        shard_index=1,
        epoch=epoch,
        first_record=record,
        first_part=part,
    )
    return list(items)


def the_error(items: list[Document | BadRecord], *, record: int = 0) -> RecordError:
    (bad,) = items
    assert isinstance(bad, BadRecord)
    assert bad.record == record
    assert bad.error.url == URL
    return bad.error


def texts(items: list[Document | BadRecord]) -> list[str | None]:
    return [item.text if isinstance(item, Document) else None for item in items]


def as_npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version)
    return stream.getvalue()


def as_lines(*values: object, key: str = "text") -> bytes:
    return b"".join(json.dumps({key: value}).encode() + b"\n" for value in values)


# field


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("txt", Field("txt")),
        ("npy", Field("npy")),
        ("json:text", Field("json", ("text",))),
        ("jsonl:meta.text", Field("jsonl", ("meta", "text"))),
        ("json:a:b", Field("json", ("a:b",))),
        (".txt", Field("txt", exact="txt")),
        (".meta.json:text", Field("json", ("text",), "meta.json")),
        (".a.jsonl.gz:text", Field("jsonl", ("text",), "a.jsonl.gz")),
    ],
)
def test_a_field_is_read_and_written_alike(text: str, field: Field) -> None:
    assert parse_field(text) == field
    assert str(field) == text
    assert field.holds_many == ("jsonl" in text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "field='' is not known; choose one of txt, json:KEY, jsonl:KEY, npy"),
        ("text", "field='text' is not known"),
        ("TXT", "field='TXT' is not known"),
        ("txt:a", "field='txt:a' is not known"),
        (".txt:a", "field='.txt:a' is not known"),
        (".text", "field='.text' is not known"),
        (".", "field='.' is not known"),
        (".meta.json", "field='.meta.json' names no key: write '.meta.json:text'"),
        ("npy:", "field='npy:' is not known"),
        ("json", "field='json' names no key: write 'json:text'"),
        ("json:", "field='json:' names no key"),
        ("jsonl:a..b", "field='jsonl:a..b' names no key: write 'jsonl:text', or 'jsonl:meta.text'"),
    ],
)
def test_a_field_that_is_none_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_field(text)


@pytest.mark.parametrize(
    ("field", "wanted", "unwanted"),
    [
        ("txt", ["txt", "page.txt", "a.b.txt"], ["text", "txt.gz", "mytxt", "json"]),
        ("json:text", ["json", "meta.json"], ["jsonl", "xjson", "json.gz"]),
        ("jsonl:text", ["jsonl", "jsonl.gz", "jsonl.zst", "a.jsonl.gz"], ["json", "jsonl.bz2", "gz"]),
        ("npy", ["npy", "tokens.npy"], ["npz"]),
        (".a.jsonl.gz:text", ["a.jsonl.gz"], ["jsonl.gz", "jsonl", "b.a.jsonl.gz"]),
    ],
)
def test_a_field_wants_the_members_that_may_hold_it(field: str, wanted: list[str], unwanted: list[str]) -> None:
    assert all(parse_field(field).wanted(extension) for extension in wanted)
    assert not any(parse_field(field).wanted(extension) for extension in unwanted)


def test_a_field_with_a_dot_is_a_whole_extension_and_names_one_of_several_that_fit() -> None:
    members = {"page.txt": b"page", "txt": b"text"}
    assert texts(read({"page.txt": b"only"}, "txt")) == ["only"]
    assert texts(read(members, ".txt")) == ["text"]
    assert texts(read(members, ".page.txt")) == ["page"]
    assert texts(read({"a.jsonl": as_lines("a"), "jsonl": as_lines("b")}, ".a.jsonl:text")) == ["a"]
    too_large = sample({"page.txt": b"no"}, txt=10**9)
    assert isinstance(the_error(read(too_large, ".txt")), DocumentTooLongError)
    assert "more than one member" in str(the_error(read(too_large, "txt"))), "and not the other one in silence"
    assert DocumentReader(field=parse_field(".txt")).contents([sample({"txt": b"a"})]) == ["a"]
    assert DocumentReader(field=parse_field("txt")).contents([sample(members)]) is None


def test_a_member_with_a_flaw_is_a_bad_record_that_says_why() -> None:
    linked = Sample("k", 0, {}, {"txt": 0}, {"txt": "a hard link to 'a.txt'"})
    assert str(the_error(read(linked, "txt"))) == f"{URL}, member 'k.txt': a hard link to 'a.txt'"
    beside = Sample("k", 0, {"a.txt": b"other"}, {"a.txt": 5, "txt": 0}, {"txt": "a hard link to 'a.txt'"})
    assert "more than one member for field='txt': a.txt, txt" in str(the_error(read(beside, "txt")))
    seam = Sample("", 0, {}, {}, {WHOLE_SAMPLE: "two archives in one file"})
    for field, record in (("txt", 0), ("jsonl:text", -1)):
        assert str(the_error(read(seam, field), record=record)) == f"{URL}: two archives in one file"
    for part in ("train", "val"):  # nobody knows in which part it would be
        assert len(read(seam, "txt", hold_out=HoldOut(part, 0.5))) == 1


@pytest.mark.parametrize(
    ("members", "field", "names"),
    [
        ({"b.txt": b"", "a.txt": b"", "c.json": b""}, "txt", "a.txt, b.txt"),
        ({"txt": b"", "1.txt": b"", "2.txt": b""}, "txt", "1.txt, 2.txt, txt"),
        ({"jsonl": b"", "jsonl.gz": b""}, "jsonl:text", "jsonl, jsonl.gz"),
    ],
)
def test_two_members_that_fit_are_an_error_that_names_both(members: dict[str, bytes], field: str, names: str) -> None:
    error = the_error(read(members, field), record=-1 if field.startswith("jsonl") else 0)
    said = f"{URL}, member 'dir/k7': more than one member for field='{field}': {names}; keep one, or name one"
    assert str(error).startswith(f"{said} as a whole: field='.{names.partition(',')[0]}")


def test_a_missing_member_is_an_error_that_lists_the_extensions() -> None:
    error = the_error(read(sample({}, json=3, png=9), "txt"))
    assert isinstance(error, MissingFieldError)
    assert str(error) == f"{URL}, member 'dir/k7': no member for field='txt'; the sample's extensions: json, png{KINDS}"
    assert isinstance(the_error(read({"txt": b""}, "jsonl:text"), record=-1), MissingFieldError)


@pytest.mark.parametrize(
    "data", [b'[\n{"text": "a"},\n{"text": "b"}\n]\n', b'\xef\xbb\xbf \n[{"text": "a"}, {"text": "b"}]']
)
def test_a_json_array_in_the_place_of_lines_is_one_error(data: bytes) -> None:
    error = the_error(read({"jsonl": data}, "jsonl:text"), record=-1)
    said = "one JSON array and not JSON lines: write each of its records in a line of its own"
    assert str(error) == f"{URL}, member 'dir/k7.jsonl': {said}"


@pytest.mark.parametrize("last", [b'["footer"]', b"[]", b'{"text": "b"}'])
def test_lines_that_are_arrays_cost_themselves_and_not_the_member(last: bytes) -> None:
    items = read({"jsonl": b'["header", NaN]\n' + as_lines("a", "b") + last + b"\n"}, "jsonl:text")
    assert texts(items)[:3] == [None, "a", "b"]
    assert len(items) == 4
    one_line = b'[{"text": "a"}, {"text": "b"}]\n \n'
    assert "one JSON array" in str(the_error(read({"jsonl": one_line}, "jsonl:text"), record=-1))


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        (b'{"text": "a"},\n{"text": "b"},\n', "there is a comma after the record: lines of JSON have none"),
        (b'{"text": "a"} {"text": "b"}\n', "there are two records in one line: each must have a line of its own"),
        (b'{"text": "a"}\r{"text": "b"}\r', "its lines end with CR alone: end them with LF"),
    ],
)
def test_lines_that_are_not_one_record_each_are_explained(data: bytes, advice: str) -> None:
    first = read({"jsonl": data}, "jsonl:text")[0]
    assert isinstance(first, BadRecord)
    assert advice in str(first.error)


@pytest.mark.parametrize(
    ("extension", "field"),
    [("txt", "txt"), ("jsonl", "jsonl:text"), ("jsonl.gz", "jsonl:text"), ("json", "json:text"), ("npy", "npy")],
)
def test_a_git_lfs_pointer_is_named(extension: str, field: str) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"
    error = the_error(read({extension: pointer}, field), record=-1 if field.startswith("jsonl") else 0)
    assert f"member 'dir/k7.{extension}': a Git LFS pointer, not the file it stands for: fetch that" in str(error)


def test_a_mark_on_a_line_of_its_own_is_no_record() -> None:
    assert texts(read({"jsonl": b"\xef\xbb\xbf\n" + as_lines("a")}, "jsonl:text")) == ["a"]


def test_lines_that_begin_with_a_mark_or_hold_numbers_that_are_none_are_read() -> None:
    bom = b"\xef\xbb\xbf"
    data = bom + as_lines("a", "b") + bom + as_lines("c") + b'{"x": NaN, "text": "d"}\n'  # as cat joins files
    assert texts(read({"jsonl": data}, "jsonl:text")) == ["a", "b", "c", "d"]
    assert "UTF-16, by its byte order mark ff fe" in str(
        the_error(read({"jsonl": '{"text": "a"}\n'.encode("utf-16")}, "jsonl:text"), record=-1)
    )
    for encoding, mark in (("utf-32-le", b"\xff\xfe\0\0"), ("utf-32-be", b"\0\0\xfe\xff")):
        members = {"txt": mark + "text".encode(encoding)}
        assert f"not UTF-8 but UTF-32, by its byte order mark {mark.hex(' ')}" in str(the_error(read(members, "txt")))
    assert "not UTF-8 but UTF-16, by its byte order mark ff fe" in str(
        the_error(read({"txt": "text".encode("utf-16")}, "txt"))
    )


@pytest.mark.parametrize("beside", [b'"n": 1e999', b'"n": "\xe9"', b'"n": NaN', b'"n": [-Infinity]'])
def test_what_stands_beside_messages_is_not_looked_at(beside: bytes) -> None:
    data = b"{" + beside + b', "messages": [{"role": "user", "content": "q"}], "z": {' + beside + b"}}"
    one = (np.zeros(1, np.int32), np.ones(1, np.bool_))
    for field in ("json:messages", "jsonl:messages"):
        (document,) = read({field.partition(":")[0]: data}, field, chat=lambda *_: one)
        assert isinstance(document, Document)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_no_weight_of_a_message(number: str) -> None:
    data = f'{{"messages": [{{"role": "user", "content": "q", "weight": {number}}}]}}'
    for whole in (data, data.replace("{", '{"n": NaN, ', 1)):
        error = the_error(read({"json": whole.encode()}, "json:messages"))
        assert "NaN, Infinity or a number out of range" in str(error)


# txt


@pytest.mark.parametrize(
    "text", ["", " a ", "\ufeffwith a BOM", "\r\n\r\n", "a\x00b", "Ünïcode 日本", "<s>", "\ufffe\U0010ffff"]
)
def test_a_text_is_given_as_it_is(text: str) -> None:
    (document,) = read({"txt": text.encode()}, "txt")
    assert document == Document(text=text, key="dir/k7", url=URL, record=0, part=0, sample=512)


@pytest.mark.parametrize(
    ("data", "offset", "reason"),
    [
        (b"good \xff bad", 5, "byte 0xff, invalid start byte"),
        ("żółć".encode("iso-8859-2"), 0, "byte 0xbf"),
        (b"cut \xe2\x82", 4, "byte 0xe2, unexpected end of data"),
        (b"\xed\xa0\x80", 0, "byte 0xed"),  # a surrogate in UTF-8's clothes
        (b"overlong \xc0\xaf", 9, "byte 0xc0"),
    ],
)
def test_what_is_not_utf8_is_an_error_at_its_first_bad_byte(data: bytes, offset: int, reason: str) -> None:
    error = the_error(read({"page.txt": data}, "txt"))
    assert error.offset == offset
    assert f"{URL}, member 'dir/k7.page.txt', byte {offset}: not UTF-8: {reason}" in str(error)


# json


@pytest.mark.parametrize(
    ("data", "field", "text"),
    [
        (b'{"text": "a"}', "json:text", "a"),
        (b' \n{"id": 1, "text": "a\\u00e9\\n", "x": {"text": "no"}} ', "json:text", "aé\n"),
        (b'{"meta": {"text": "deep", "n": [1, {}]}, "text": "no"}', "json:meta.text", "deep"),
        (b'{"a": {"b": {"c": ""}}}', "json:a.b.c", ""),
        (b'{"te-xt \\"q": "k"}', 'json:te-xt "q', "k"),
        ('{"текст": "а"}'.encode(), "json:текст", "а"),
        (b'{"value": "v"}', "json:value", "v"),
        (b'{"class": "v"}', "json:class", "v"),
        (b'{"text": "\\ud83d\\ude00"}', "json:text", "😀"),
        (b'{"text": 1, "text": "last wins"}', "json:text", "last wins"),
        (b'{"text": "\xef\xbb\xbfBOM"}', "json:text", "\ufeffBOM"),
        (b'\xef\xbb\xbf{"text": "a"}', "json:text", "a"),
        (b'{"x": [NaN, -Infinity,Infinity], "y": "NaN", "text": "\\"NaN, Infinity"}', "json:text", '"NaN, Infinity'),
        (b'{"x": 1e999, "y": "\xe9", "text": "a"}', "json:text", "a"),
    ],
)
def test_a_string_is_found_under_its_key(data: bytes, field: str, text: str) -> None:
    assert texts(read({"json": data}, field)) == [text]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    ),
    st.text(),
)
def test_any_json_with_the_key_gives_its_string(beside: object, text: str) -> None:
    for data in (
        json.dumps({"a": beside, "text": text, "z": beside}),
        json.dumps({"a": beside, "text": text}, ensure_ascii=False, indent=1),
    ):
        assert texts(read({"json": data.encode()}, "json:text")) == [text]


@pytest.mark.parametrize(
    ("data", "offset", "message"),
    [
        (b'{"text": "a"', None, "broken JSON: Input data was truncated"),
        (b"", None, "broken JSON: Input data was truncated"),
        (b'{"text": "a", }', 14, "broken JSON: JSON is malformed"),
        (b'{"x": NaNs, "text": "a"}', 6, "broken JSON: JSON is malformed: invalid character"),
        (b'{"text": NaN}', None, "the value under 'text' is a number and not a string"),
        (b'{"text": "a"}\n{"text": "b"}\n', 15, "broken JSON: .*trailing characters; several records.*are .jsonl"),
        ('{"text": "a"}'.encode("utf-16-le"), 1, "broken JSON: .*; it holds NUL bytes, as UTF-16 does"),
        ('{"text": "a"}'.encode("utf-16"), 0, "broken JSON: .*it holds NUL bytes, as UTF-16 does"),
        (b'{"text": "a\nb"}', 11, "broken JSON: JSON is malformed: invalid character"),
        (b'{"text": "ab\xff"}', 12, "broken JSON: not UTF-8 .invalid start byte"),
        (b'{"text": "\\ud800"}', None, "broken JSON: .*; an escaped half of a surrogate pair is not text"),
        (b'{"x": ' + b"[" * 100_000, None, "broken JSON: .*recursion"),
        (b'["text"]', None, "the record is a list and not an object with the key 'text'"),
        (b'"text"', None, "the record is a string and not an object"),
        (b'{"text": 5}', None, "the value under 'text' is a number and not a string"),
        (b'{"text": null}', None, "the value under 'text' is null and not a string"),
        (b'{"text": true}', None, "the value under 'text' is a boolean and not a string"),
        (b'{"text": ["a"]}', None, "the value under 'text' is a list and not a string"),
    ],
)
def test_json_that_gives_no_string_is_an_error(data: bytes, offset: int | None, message: str) -> None:
    error = the_error(read({"json": data}, "json:text"))
    assert type(error) is RecordError
    assert error.offset == offset
    with pytest.raises(RecordError, match=f"^{URL}, member 'dir/k7.json'.*: {message}"):
        raise error


@pytest.mark.parametrize(
    ("data", "field", "message"),
    [
        (b'{"txt": "a", "id": 1}', "json:text", "the record has no key 'text'; the keys there: id, txt"),
        (b"{}", "json:text", "the record has no key 'text'; the keys there: none"),
        (b'{"meta": {"b": 1}}', "json:meta.text", "meta has no key 'text'; the keys there: b"),
        (b'{"a": {"b": {"d": ""}}}', "json:a.b.c", "a.b has no key 'c'; the keys there: d"),
        (b'{"text": "a"}', "json:meta.text", "the record has no key 'meta'; the keys there: text"),
    ],
)
def test_a_missing_key_is_an_error_that_lists_the_keys(data: bytes, field: str, message: str) -> None:
    error = the_error(read({"json": data}, field))
    assert isinstance(error, MissingFieldError)
    assert str(error) == f"{URL}, member 'dir/k7.json': {message}{WHICH}"


def test_a_key_of_what_is_no_object_is_an_error() -> None:
    error = the_error(read({"json": b'{"meta": "m"}'}, "json:meta.text"))
    assert str(error).endswith("meta is a string and not an object with the key 'text'")


# jsonl


COMPRESSIONS = {
    "jsonl": lambda data: data,
    "jsonl.gz": gzip.compress,
    "jsonl.zst": zstandard.compress,
    "a.jsonl.gz": lambda data: gzip.compress(data[:50]) + gzip.compress(data[50:]) + bytes(512),  # padded members
    "a.jsonl.zst": lambda data: (
        struct.pack("<II", 0x184D2A50, 3) + b"abc" + zstandard.compress(data[:50]) + zstandard.compress(data[50:])
    ),
}


@pytest.mark.parametrize("extension", COMPRESSIONS)
def test_lines_are_documents_in_order(extension: str) -> None:
    values = [f"document {number} " * 40 for number in range(100)]
    items = read({extension: COMPRESSIONS[extension](as_lines(*values))}, "jsonl:text")
    assert texts(items) == values
    assert [item.record for item in items] == list(range(100))
    assert {(item.key, item.url, item.sample, item.part) for item in items} == {("dir/k7", URL, 512, 0)}


def test_blank_lines_are_no_records_and_the_last_line_needs_no_end() -> None:
    data = b'\n  \r\n{"text": "a"}\r\n\n\t\n{"text": "b"}\n \n{"text": "c"}'
    items = read({"jsonl": data}, "jsonl:text")
    assert [(item.record, item.text) for item in items] == [(0, "a"), (1, "b"), (2, "c")]
    assert read({"jsonl": b""}, "jsonl:text") == []
    assert read({"jsonl": b" \n\n"}, "jsonl:text") == []


def test_a_bad_line_stands_between_good_ones_and_is_located() -> None:
    data = b'{"text": "a"}\n\n{"text": "b}\n{"text": "c"}\n{"id": 4}\n{"text": "\xff"}\n'
    items = read({"jsonl": data}, "jsonl:text")
    assert texts(items) == ["a", None, "c", None, None]
    assert [item.record for item in items] == [0, 1, 2, 3, 4]
    errors = [str(item.error) for item in items if isinstance(item, BadRecord)]
    start = f"{URL}, member 'dir/k7.jsonl', byte "
    no_key = data.index(b'{"id"')
    advice = "is one record written over several lines? A member .jsonl has one record in each line"
    assert errors[0] == f"{start}15: line 3: broken JSON: Input data was truncated; {advice}"
    assert errors[1] == f"{start}{no_key}: line 5: the record has no key 'text'; the keys there: id{WHICH}"
    assert errors[2] == f"{start}{data.index(0xFF)}: line 6: broken JSON: not UTF-8 (invalid start byte)"


@pytest.mark.parametrize("first", range(6))
def test_reading_from_a_record_gives_the_rest_of_the_records(first: int) -> None:
    data = b'{"text": "0"}\n\nbroken\n{"text": "2"}\n \n{"text": "3"}\n{"no": 1}'
    everything = read({"jsonl": data}, "jsonl:text")
    rest = read({"jsonl": data}, "jsonl:text", record=first)
    assert [(item.record, *texts([item])) for item in rest] == [
        (item.record, *texts([item])) for item in everything[first:]
    ]


def test_skipped_lines_are_not_parsed() -> None:
    data = b"broken " * 1000 + b"\n" + as_lines("good")
    assert texts(read({"jsonl": data}, "jsonl:text", record=1)) == ["good"]


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :]


LINES = as_lines(*(f"{number} {hashing.hash_words(number)}" for number in range(500)))


@pytest.mark.parametrize(
    ("extension", "data", "message"),
    [
        ("jsonl.gz", gzip.compress(LINES)[:-1], "cut after [0-9,]+ compressed bytes"),
        ("jsonl.gz", gzip.compress(LINES)[:3000], "cut after 3,000 compressed bytes"),
        ("jsonl.gz", flipped(gzip.compress(LINES), -5), "incorrect data check"),
        ("jsonl.gz", gzip.compress(LINES) + b"rest", "incorrect header check"),
        ("jsonl.gz", b"", "cut after 0 compressed bytes"),
        ("jsonl.gz", LINES, "incorrect header check"),
        ("jsonl.zst", zstandard.compress(LINES)[:-1], "cut after [0-9,]+ compressed bytes"),
        ("jsonl.zst", zstandard.compress(LINES)[:3000], "cut after 3,000 compressed bytes"),
        ("jsonl.zst", zstandard.compress(LINES) + b"rest of it", "[Uu]nknown frame descriptor"),
        ("jsonl.zst", gzip.compress(LINES), "[Uu]nknown frame descriptor"),
    ],
)
@pytest.mark.parametrize("first", [0, 3])
def test_half_a_compressed_member_gives_no_document_but_one_bad_record(
    extension: str, data: bytes, message: str, first: int
) -> None:
    error = the_error(read({extension: data}, "jsonl:text", record=first), record=-1)
    with pytest.raises(RecordError, match=f"member 'dir/k7.{extension}': cannot be decompressed.*{message}"):
        raise error


@pytest.mark.parametrize("extension", ["jsonl.gz", "jsonl.zst"])
def test_a_bomb_is_an_error(extension: str) -> None:
    bomb = COMPRESSIONS[extension](bytes(50_000_000))
    error = the_error(read({extension: bomb}, "jsonl:text", max_member_bytes=1_000_000), record=-1)
    assert "decompresses to more than 1,000,000 bytes; split the member" in str(error)


@pytest.mark.parametrize("extension", ["jsonl.gz", "jsonl.zst"])
def test_a_member_may_decompress_to_its_limit_exactly(extension: str) -> None:
    data = {extension: COMPRESSIONS[extension](LINES)}
    assert len(read(data, "jsonl:text", max_member_bytes=len(LINES))) == 500
    assert "more than" in str(the_error(read(data, "jsonl:text", max_member_bytes=len(LINES) - 1), record=-1))


# npy


@pytest.mark.parametrize("dtype", ["<i4", ">i4", "<u4", "<i8", ">u8", "<i2", "<u2", ">u2", "|u1", "|i1"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_integers_of_any_kind_become_int32(dtype: str, version: tuple[int, int]) -> None:
    array = np.array([0, 1, 127, 5], dtype=dtype)
    (document,) = read({"npy": as_npy(array, version)}, "npy")
    assert document.text is None
    assert document.tokens.dtype == np.int32
    assert document.tokens.tolist() == [0, 1, 127, 5]
    (empty,) = read({"npy": as_npy(array[:0], version)}, "npy")
    assert (empty.tokens.dtype, empty.tokens.shape) == (np.int32, (0,))


@given(st.lists(st.integers(0, 2**31 - 1)), st.sampled_from(["<i4", "<u4", "<i8", ">i8", "<u8"]))
def test_all_token_ids_come_back(ids: list[int], dtype: str) -> None:
    (document,) = read({"npy": as_npy(np.array(ids, dtype=dtype))}, "npy")
    assert document.tokens.tolist() == ids


def test_int32_is_not_copied() -> None:
    data = as_npy(np.arange(1000, dtype=np.int32))
    (document,) = read({"npy": data}, "npy")
    assert np.shares_memory(document.tokens, np.frombuffer(data, dtype=np.uint8))


def test_a_header_that_numpy_save_would_not_write_is_read_too() -> None:
    header = b"{ 'shape':(3,),  'fortran_order': False, 'descr':'<i4'}\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + np.arange(3, dtype="<i4").tobytes()
    (document,) = read({"npy": data}, "npy")
    assert document.tokens.tolist() == [0, 1, 2]


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return pytest.fail, ("a pickle was loaded",)


GOOD = as_npy(np.arange(10, dtype=np.int32))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a .npy array"),
        (b"[1, 2, 3]", "not a .npy array .*magic"),
        (GOOD[:20], "not a .npy array"),
        (GOOD[:-1], "39 bytes after its header, which promises 10 of int32"),
        (GOOD + b"\0", "41 bytes after its header, which promises 10 of int32"),
        (GOOD.replace(b"(10,)", b"(99,)"), "40 bytes after its header, which promises 99 of int32"),
        (GOOD.replace(b"'shape'", b"'shope'"), "not a .npy array"),
        (GOOD[:8] + b"\x70" + GOOD[9:], "not a .npy array|bytes after its header"),  # another header length
        (GOOD.replace(b"\x01\x00v", b"\x07\x00v"), "not a .npy array"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "not a .npy array"),
        (as_npy(np.zeros((2, 3), dtype=np.int32)), r"a .npy of int32 \[2, 3\]; token ids are a 1-D array"),
        (as_npy(np.int32(3)), r"a .npy of int32 \[\]"),
        (as_npy(np.zeros(3)), r"a .npy of float64 \[3\]"),
        (as_npy(np.zeros(3, dtype=bool)), r"a .npy of bool \[3\]"),
        (as_npy(np.array([Evil()], dtype=object)), r"a .npy of object \[1\]"),
        (as_npy(np.array([0, -1], dtype=np.int32)), "token ids from -1 to 0; they must be from 0 to 2147483647"),
        (as_npy(np.array([0, -1], dtype=">i8")), "token ids from -1 to 0"),
        (as_npy(np.array([5, -1], dtype="<i2")), "token ids from -1 to 5"),
        (as_npy(np.array([5, -128], dtype="i1")), "token ids from -128 to 5"),
        (as_npy(np.array([2**31], dtype=np.uint32)), "token ids from 2147483648 to 2147483648"),
        (as_npy(np.array([0, 2**63], dtype=np.uint64)), "token ids from 0 to 9223372036854775808"),
    ],
)
def test_what_is_no_array_of_token_ids_is_an_error(data: bytes, message: str) -> None:
    error = the_error(read({"npy": data}, "npy"))
    with pytest.raises(RecordError, match=f"^{URL}, member 'dir/k7.npy': .*{message}"):
        raise error


@given(st.integers(0, 127), st.integers(0, 255))
def test_a_changed_header_gives_the_array_or_an_error(position: int, value: int) -> None:
    data = GOOD[:position] + bytes([value]) + GOOD[position + 1 :]
    (item,) = read({"npy": data}, "npy")
    assert isinstance(item, BadRecord) or item.tokens.ndim == 1


# too long


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"txt": "é" * 50 + "a"}, "txt"),
        ({"json": json.dumps({"text": "é" * 50 + "a"})}, "json:text"),
        ({"jsonl": json.dumps({"text": "é" * 50 + "a"})}, "jsonl:text"),
    ],
)
def test_a_text_may_have_max_document_bytes_and_not_one_more(members: dict[str, str], field: str) -> None:
    data = {extension: text.encode() for extension, text in members.items()}
    assert texts(read(data, field, max_document_bytes=101)) == ["é" * 50 + "a"]
    error = the_error(read(data, field, max_document_bytes=100))
    assert isinstance(error, DocumentTooLongError)
    assert "a document of 101 bytes, above limits.document_bytes=100" in str(error)


def test_tokens_count_four_bytes_each() -> None:
    data = {"npy": as_npy(np.zeros(10, dtype=np.uint16))}
    assert len(read(data, "npy", max_document_bytes=40)[0].tokens) == 10
    assert "a document of 40 bytes, above limits.document_bytes=39" in str(
        the_error(read(data, "npy", max_document_bytes=39))
    )


def test_what_stands_beside_the_text_does_not_count() -> None:
    data = {"json": json.dumps({"text": "short", "html": "x" * 1000}).encode()}
    assert texts(read(data, "json:text", max_document_bytes=5)) == ["short"]


@pytest.mark.parametrize(
    ("field", "extension", "message"),
    [
        ("txt", "txt", "a document of 2,000,000,000 bytes, above limits.document_bytes=67,108,864"),
        ("npy", "a.npy", "2,000,000,000 bytes in .a.npy, more than is read of one member (134,283,274)"),
        ("json:text", "json", "2,000,000,000 bytes in .json, more than is read of one member (536,870,912)"),
        ("jsonl:text", "jsonl.gz", "2,000,000,000 bytes in .jsonl.gz, more than is read of one member (1,073,741,824)"),
    ],
)
def test_a_member_that_was_too_large_to_read_is_a_document_too_long(field: str, extension: str, message: str) -> None:
    error = the_error(read(sample({}, **{extension: 2 * 10**9}), field), record=-1 if "jsonl" in field else 0)
    assert isinstance(error, DocumentTooLongError)
    assert message in str(error)
    assert f"member 'dir/k7.{extension}'" in str(error)


# split


def test_train_and_val_share_the_documents_by_file_name_key_and_record() -> None:
    data = {"jsonl": as_lines(*map(str, range(300)))}
    train = read(data, "jsonl:text", hold_out=HoldOut("train", 0.3))
    val = read(data, "jsonl:text", hold_out=HoldOut("val", 0.3))
    assert sorted(int(item.text) for item in [*train, *val]) == list(range(300))
    assert 60 < len(val) < 120
    held_out = [
        record for record in range(300)
        if hashing.is_held_out(name="00001.tar", key="dir/k7", record=record, fraction=0.3)
    ]  # fmt: skip
    assert [item.record for item in val] == held_out
    again = read(data, "jsonl:text", hold_out=HoldOut("val", 0.3), seed=5, epoch=7, position=9)
    assert texts(again) == texts(val), "the same for every seed, epoch and place"


@pytest.mark.parametrize("field", ["txt", "json:text", "npy"])
def test_what_the_split_leaves_out_is_not_even_looked_at(field: str) -> None:
    fraction = 0.999999 if hashing.is_held_out(name="00001.tar", key="dir/k7", record=0, fraction=0.999999) else 0
    assert fraction, "the sample is held out by nearly everything"
    broken = {"txt": b"\xff", "json": b"{", "npy": b"?"}
    assert read(broken, field, hold_out=HoldOut("train", fraction)) == []
    the_error(read(broken, field, hold_out=HoldOut("val", fraction)))


def test_bad_lines_belong_to_the_split_of_their_record() -> None:
    data = {"jsonl": b"broken\n" * 200}
    train, val = (read(data, "jsonl:text", hold_out=HoldOut(part, 0.5)) for part in ("train", "val"))
    assert sorted(item.record for item in [*train, *val]) == list(range(200))
    assert train
    assert val


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("test", 0.1), ConfigError, "part='test' is not known; choose one of train, val"),
        (("train", 1.0), ConfigError, "fraction=1.0 must be a number of at least 0 and below 1"),
        (("train", -0.1), ConfigError, "fraction=-0.1 must be"),
        (("train", float("nan")), ConfigError, "fraction=nan must be"),
        (("train", True), ConfigError, "fraction=True must be a number"),
        (("train", "0.1"), ConfigError, "fraction='0.1' must be a number"),
        (("val", 0), ConfigError, "part='val' with fraction=0 holds nothing"),
        (("train", 0.1, "shard"), ConfigError, "by='shard' is not known; choose one of document, block"),
    ],
)
def test_a_part_that_cannot_be_held_out_is_an_error(
    arguments: tuple[object, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        HoldOut(*arguments)


# transform


def shout(document: Document, rng: np.random.Generator) -> Document:
    return dataclasses.replace(document, text=document.text.upper())


def by_words(document: Document, rng: np.random.Generator) -> list[Document]:
    return [
        dataclasses.replace(document, text=word, key="x", url="x", record=9, part=9) for word in document.text.split()
    ]


def drop_short(document: Document, rng: np.random.Generator) -> Document | None:
    return document if len(document.text) > 3 else None


def draw(document: Document, rng: np.random.Generator) -> Document:
    return dataclasses.replace(document, text=str(rng.integers(2**60)))


def tokenize(document: Document, rng: np.random.Generator) -> Document:
    tokens = np.array([len(word) for word in document.text.split()], dtype=np.int64)
    return dataclasses.replace(document, text=None, tokens=tokens, loss_mask=tokens > 2)


def doubled(document: Document, rng: np.random.Generator) -> Document:
    return dataclasses.replace(document, tokens=np.tile(document.tokens, 2))


def test_a_transform_gives_one_document_several_or_none() -> None:
    assert texts(read({"txt": b"abc"}, "txt", transform=shout)) == ["ABC"]
    assert texts(read({"jsonl": as_lines("abc", "abcd", "")}, "jsonl:text", transform=drop_short)) == ["abcd"]
    parts = read({"jsonl": as_lines("a b", "", "c d e")}, "jsonl:text", transform=by_words)
    assert [(item.text, item.record, item.part) for item in parts] == [
        ("a", 0, 0),
        ("b", 0, 1),
        ("c", 2, 0),
        ("d", 2, 1),
        ("e", 2, 2),
    ]
    assert {(item.key, item.url, item.sample) for item in parts} == {("dir/k7", URL, 512)}, "the place is ours to say"


def test_reading_from_a_part_gives_the_rest() -> None:
    data = {"jsonl": as_lines("a b", "", "c d e", "f")}
    everything = read(data, "jsonl:text", transform=by_words)
    for index, item in enumerate(everything):
        rest = read(data, "jsonl:text", transform=by_words, record=item.record, part=item.part)
        assert rest == everything[index:]
    assert read({"txt": b"a b"}, "txt", transform=by_words, part=2) == []
    assert read({"txt": b"a b"}, "txt", part=1) == [], "without a transform a record has one part"
    assert texts(read({"jsonl": as_lines("a", "b")}, "jsonl:text", part=1)) == ["b"]
    assert read({"txt": b"a b"}, "txt", record=1) == []


def test_the_random_generator_is_that_of_the_documents_place() -> None:
    data = {"jsonl": as_lines("", "", "")}

    def drawn(**place: int) -> list[str | None]:
        return texts(read(data, "jsonl:text", transform=draw, **place))

    first = drawn(seed=1, epoch=2, position=3)
    assert first == [str(hashing.generator(1, 2, 1, 3, record).integers(2**60)) for record in range(3)]
    assert drawn(seed=1, epoch=2, position=3, record=1) == first[1:]
    others = [
        drawn(seed=0, epoch=2, position=3),
        drawn(seed=1, epoch=1, position=3),
        drawn(seed=1, epoch=2, position=4),
    ]
    assert len({*first, *(text for other in others for text in other)}) == 12


def test_a_transform_may_tokenize_and_mask() -> None:
    (document,) = read({"txt": b"to the ferry"}, "txt", transform=tokenize)
    assert document.text is None
    assert (document.tokens.dtype, document.tokens.tolist()) == (np.int32, [2, 3, 5])
    assert document.loss_mask.tolist() == [False, True, True]


def test_a_bad_record_is_not_shown_to_the_transform() -> None:
    items = read({"jsonl": as_lines("ab") + b"broken\n" + as_lines("c")}, "jsonl:text", transform=shout)
    assert texts(items) == ["AB", None, "C"]


def test_a_record_with_one_part_too_long_gives_no_part_of_it() -> None:
    data = {"jsonl": as_lines("aa bbbbbbb cc", "dd")}
    items = read(data, "jsonl:text", transform=by_words, max_document_bytes=100)
    assert texts(items) == ["aa", "bbbbbbb", "cc", "dd"]

    def grow(document: Document, rng: np.random.Generator) -> list[Document]:
        return [dataclasses.replace(document, text=word * 10) for word in document.text.split()]

    items = read(data, "jsonl:text", transform=grow, max_document_bytes=60)
    assert texts(items) == [None, "dd" * 10]
    assert isinstance(items[0].error, DocumentTooLongError)
    assert "a document of 70 bytes, above limits.document_bytes=60" in str(items[0].error)


def test_tokens_that_a_transform_makes_count_four_bytes_each() -> None:
    assert len(read({"txt": b"to the ferry"}, "txt", transform=tokenize, max_document_bytes=12)) == 1
    error = the_error(read({"npy": GOOD}, "npy", transform=doubled, max_document_bytes=79))
    assert "a document of 80 bytes, above limits.document_bytes=79" in str(error)


def returns(**changes: object) -> Callable[[Document, np.random.Generator], Document]:
    def returning(document: Document, rng: np.random.Generator) -> Document:
        return dataclasses.replace(document, **changes)

    return returning


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda document, rng: document.text, "a str: return dataclasses.replace"),
        (lambda document, rng: [document, None], "a NoneType: return"),
        (lambda document, rng: (part for part in [document]), "a generator: return .*a list of documents or None"),
        (returns(text=None), "a document without exactly one of text, tokens and messages"),
        (returns(tokens=np.arange(3)), "a document without exactly one of text, tokens and messages"),
        (returns(text=b"bytes"), "a document whose text is a bytes, not a str"),
        (returns(text=None, tokens=[1, 2]), "tokens that are a list; token ids are a 1-D NumPy array of integers"),
        (returns(text=None, tokens=np.zeros(3)), r"tokens that are float64 \[3\]"),
        (returns(text=None, tokens=np.zeros((3, 1), dtype=int)), r"tokens that are int64 \[3, 1\]"),
        (returns(text=None, tokens=np.array([5, -100])), "token ids from -100 to 5; they must be from 0"),
        (returns(loss_mask=np.ones(3, dtype=bool)), "a document of text with a loss_mask"),
        (
            returns(text=None, tokens=np.arange(3), loss_mask=np.ones(2, dtype=bool)),
            r"a loss_mask that is bool \[2\]; 3 tokens need a bool array \[n\]",
        ),
        (
            returns(text=None, tokens=np.arange(2), loss_mask=np.ones(2)),
            r"a loss_mask that is float64 \[2\]; 2 tokens need",
        ),
        (returns(text=None, tokens=np.arange(2), loss_mask=[True, True]), "a loss_mask that is a list; 2 tokens"),
    ],
)
def test_a_transform_that_returns_no_document_is_named_and_so_is_the_place(
    transform: Callable[[Document, np.random.Generator], Document], message: str
) -> None:
    name = "(<lambda>|returns.<locals>.returning)"
    with pytest.raises(
        ConfigError, match=f"^transform .*{name}, called with {URL}, key 'dir/k7', record 0, returned {message}"
    ):
        read({"txt": b"text"}, "txt", transform=transform)


def test_what_a_transform_raises_passes_with_a_note_of_the_place() -> None:
    def faulty(document: Document, rng: np.random.Generator) -> Document:
        raise KeyError(document.text)

    with pytest.raises(KeyError) as caught:
        read({"jsonl": as_lines("a", "b")}, "jsonl:text", transform=faulty, record=1)
    assert caught.value.args == ("b",)
    name = "test_what_a_transform_raises_passes_with_a_note_of_the_place.<locals>.faulty"
    assert caught.value.__notes__ == [f"raised by transform {name}, called with {URL}, key 'dir/k7', record 1"]


def test_every_record_is_a_sign_of_life_also_where_a_transform_drops_all_of_them() -> None:
    """A worker that reads a large member without finding anything in it is no silent one."""
    row = memoryview(bytearray(8 * heartbeat.NUM_FIELDS)).cast("q")
    signs: list[int] = []

    def drop(document: Document, rng: np.random.Generator) -> None:
        signs.append(row[0])

    heartbeat.report_to(row)
    try:
        assert read({"jsonl": b'{"text": "a"}\n' * 20}, "jsonl:text", transform=drop) == []
    finally:
        heartbeat.report_to(None)
    assert signs == sorted(set(signs))
    assert len(signs) == 20


def test_a_callable_without_a_name_is_called_by_its_type() -> None:
    with pytest.raises(ConfigError, match="^transform partial, called with"):
        read({"txt": b""}, "txt", transform=functools.partial(lambda document, rng: 3))


def test_a_reader_survives_pickling() -> None:
    reader = DocumentReader(field=parse_field("json:text"), transform=shout, hold_out=HoldOut("train", 0.1), seed=3)
    assert pickle.loads(pickle.dumps(reader)) == reader


# several samples at once

@given(
    kind=st.sampled_from(["npy", "npy", "txt", "json:text"]),
    contents=st.lists(
        st.tuples(
            st.sampled_from(["<i4", "<i4", "<i4", "<u2", "<i8", ">i4"]),
            st.lists(st.sampled_from([0, 1, 7, 100, 32_000, -1]), max_size=40),
            st.text("ab\u00e9", max_size=30),
            st.sampled_from(["", "", "", "", "", "cut", "odd", "other"]),
        ),
        min_size=1,
        max_size=5,
    ),
    limit=st.sampled_from([60, 2**20]),
)
def test_what_several_samples_hold_at_once_is_what_they_hold_one_by_one(
    kind: str, contents: list[tuple[str, list[int], str, str]], limit: int
) -> None:
    samples = []
    for dtype, ids, text, change in contents:
        data = {
            "npy": as_npy(np.array(ids).astype(dtype)),
            "txt": text.encode(),
            "json:text": json.dumps({"text": text}).encode(),
        }[kind]
        data = {"cut": data[:-1], "odd": data[:60] + b"\xff" + data[61:]}.get(change, data)
        name = kind.partition(":")[0]
        samples.append(sample({f"page.{name}" if change == "other" else name: data}))
    reader = DocumentReader(field=parse_field(kind), max_document_bytes=limit)
    found = reader.contents(samples)
    each = [item for one in samples for item in read(one, kind, max_document_bytes=limit)]
    if isinstance(found, list):
        assert found == texts(each)
    elif found is not None:
        tokens = np.split(found.tokens, np.cumsum(found.lengths)[:-1])
        assert [ids.tolist() for ids in tokens] == [item.tokens.tolist() for item in each]
        assert (found.tokens.dtype, found.loss_mask) == (np.int32, None)
    else:  # one by one: something is bad, or they are not alike
        bad = any(isinstance(item, BadRecord) for item in each)
        assert bad or kind == "npy" or any(change == "other" for *_, change in contents)


def test_what_a_transform_decides_on_is_read_one_by_one() -> None:
    reader = DocumentReader(field=parse_field("txt"), transform=lambda document, _: document, transform_version="1")
    assert reader.contents([sample({"txt": b"a"})]) is None
    assert DocumentReader(field=parse_field("txt")).contents([sample({"txt": b"a"})] * 2) == ["a", "a"]
    joined = DocumentReader(field=parse_field("npy")).contents([sample({"npy": GOOD})] * 2)
    assert joined is not None
    assert joined.lengths == [10, 10]


def records_of(reader: DocumentReader, *samples: Sample) -> list[Record]:
    found = [record for one in samples for record in reader.records(one, url=URL, shard_name="c/00001.tar")]
    return [record for record in found if not isinstance(record, BadRecord)]


def test_lines_are_read_at_once_unless_one_is_bad() -> None:
    reader = DocumentReader(field=parse_field("jsonl:text"))
    records = records_of(reader, sample({"jsonl": as_lines("a", "b")}), sample({"jsonl": b"\n" + as_lines("c")}))
    assert reader.contents(records) == ["a", "b", "c"]
    assert reader.contents([*records, *records_of(reader, sample({"jsonl": b"{"}))]) is None


def test_a_member_of_lines_that_is_bad_as_a_whole_is_one_bad_record() -> None:
    reader = DocumentReader(field=parse_field("jsonl:text"))
    [bad] = reader.records(sample({"jsonl": b"\xff\xfe"}), url=URL, shard_name="c/00001.tar")
    assert isinstance(bad, BadRecord)
    assert bad.record == -1


def test_the_samples_that_are_held_out_are_no_records() -> None:
    samples = [sample({"txt": b"a"})._replace(key=f"{number}") for number in range(40)]
    parts = [
        DocumentReader(field=parse_field("txt"), hold_out=HoldOut(part, 0.5)).chosen(samples, shard_name="c/00001.tar")
        for part in ("train", "val")
    ]
    assert sorted(parts[0] + parts[1]) == sorted(samples)
    assert all(parts)
