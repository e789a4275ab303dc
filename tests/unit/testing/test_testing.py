"""The shards that `write_shards` makes, read back by webdataset, tarfile and our own document reader."""

import gc
import gzip
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import webdataset
import zstandard

from streampack.documents.fields import parse_field
from streampack.documents.reader import DocumentReader
from streampack.errors import ConfigError
from streampack.records import BadRecord, Document, Sample
from streampack.testing import ByteTokenizer, write_shards
from streampack.tokenizers.loading import check_tokenizer

TEXTS = ["first", "", " second\n", "dritter Text: größer", "第四\x00", "\ufefffifth", "x" * 2000]


def tar_bytes(path: str) -> bytes:
    data = Path(path).read_bytes()
    if path.endswith(".gz"):
        return gzip.decompress(data)
    return zstandard.decompress(data, max_output_size=2**24) if path.endswith(".zst") else data


def members(path: str) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(tar_bytes(path))) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}


def documents(path: str, field: str) -> list[Document | BadRecord]:
    reader = DocumentReader(field=parse_field(field))
    found = []
    for name, data in members(path).items():
        key, _, extension = name.partition(".")
        sample = Sample(key=key, position=0, members={extension: data})
        found += reader.read(sample, url=path, shard_name=path, shard_index=0, epoch=0)
    return found


@pytest.mark.parametrize("compression", [None, "gz", "zst"])
@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("txt", {}),
        ("json:text", {}),
        ("json:meta.text", {"format": "gnu"}),
        ("jsonl:text", {"documents_per_member": 2}),
        ("jsonl:text", {"documents_per_member": 2, "member_compression": "gz"}),
        ("jsonl:a.b", {"member_compression": "zst", "format": "ustar"}),
    ],
)
def test_texts_come_back(tmp_path: Path, field: str, compression: str | None, options: dict[str, object]) -> None:
    paths = write_shards(tmp_path, TEXTS, field=field, documents_per_shard=3, compression=compression, **options)
    suffix = f".{compression}" if compression else ""
    assert paths == [str(tmp_path / f"0000{index}.tar{suffix}") for index in range(3)]
    assert [[document.text for document in documents(path, field)] for path in paths] == [
        TEXTS[:3],
        TEXTS[3:6],
        TEXTS[6:],
    ]


def test_token_ids_come_back_and_keep_their_dtype(tmp_path: Path) -> None:
    arrays = [[1, 2, 3], np.array([65535, 0], dtype=np.uint16), range(4), []]
    (path,) = write_shards(tmp_path, arrays, field="npy")
    assert [document.tokens.tolist() for document in documents(path, "npy")] == [
        [1, 2, 3],
        [65535, 0],
        [0, 1, 2, 3],
        [],
    ]
    dtypes = [np.load(io.BytesIO(data)).dtype for data in members(path).values()]
    assert dtypes == [np.int32, np.uint16, np.int32, np.int32]


@pytest.mark.parametrize("field", ["txt", "json:text", "jsonl:text", "npy"])
def test_bytes_are_stored_as_they_are(tmp_path: Path, field: str) -> None:
    (path,) = write_shards(tmp_path, [b"\xff broken"], field=field)
    assert next(iter(members(path).values())).removesuffix(b"\n") == b"\xff broken"
    (bad,) = documents(path, field)
    assert isinstance(bad, BadRecord)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves its files to the collector
def test_webdataset_reads_what_was_written(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, TEXTS, documents_per_shard=4)
    dataset = webdataset.WebDataset(paths, shardshuffle=False).decode()
    assert [(sample["__key__"], sample["txt"]) for sample in dataset] == [
        (f"{number:08d}", text) for number, text in enumerate(TEXTS)
    ]
    del dataset
    gc.collect()  # now, where the warning is expected


@pytest.mark.parametrize("compression", [None, "gz", "zst"])
def test_the_same_documents_give_the_same_bytes(tmp_path: Path, compression: str | None) -> None:
    options = {"field": "jsonl:text", "compression": compression, "member_compression": "gz"}
    first, second = (write_shards(tmp_path / name, TEXTS, **options) for name in ("a", "b"))
    assert [Path(path).read_bytes() for path in first] == [Path(path).read_bytes() for path in second]
    if compression == "gz":
        assert Path(first[0]).read_bytes()[4:8] == bytes(4), "no time in the header"


def test_formats_are_what_they_are_called(tmp_path: Path) -> None:
    data = {name: tar_bytes(write_shards(tmp_path / name, ["a"], format=name)[0]) for name in ("pax", "gnu", "ustar")}
    assert data["pax"][156:157] == b"x", "a header before each member, as webdataset's ShardWriter puts there"
    assert data["gnu"][156:157] == data["ustar"][156:157] == b"0"
    assert data["gnu"][257:265] == b"ustar  \0"
    assert data["ustar"][257:265] == b"ustar\00000"


def test_shard_sizes_are_as_given(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, TEXTS, shard_sizes=[1, 0, 6])
    assert [len(members(path)) for path in paths] == [1, 0, 6]
    assert tar_bytes(paths[1]).strip(b"\0") == b"", "an archive without members has its end"


def test_urls_are_written_through_fsspec() -> None:
    paths = write_shards("memory://streampack-write/c", ["a", "b"], documents_per_shard=1)
    assert paths == ["memory://streampack-write/c/00000.tar", "memory://streampack-write/c/00001.tar"]
    with fsspec.open(paths[1], "rb") as file, tarfile.open(fileobj=file) as tar:
        assert tar.getnames() == ["00000001.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_sizes": [3]}, r"shard_sizes=\[3\] leaves documents over: they must add up"),
        ({"shard_sizes": [3, 9]}, r"shard_sizes=\[3, 9\] asks for more documents than there are"),
        ({"member_compression": "gz"}, "member_compression='gz' goes with field='jsonl:KEY', not with 'txt'"),
        ({"format": "zip"}, "not known: one of format='zip'"),
        ({"compression": "xz"}, "not known: .*compression='xz'"),
        ({"field": "text"}, "field='text' is not known"),
    ],
)
def test_arguments_that_cannot_be_are_errors(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_shards(tmp_path, TEXTS, **options)


def test_the_byte_tokenizer_is_a_tokenizer() -> None:
    assert check_tokenizer(ByteTokenizer()).encode("a").tolist() == [100]


def test_importing_it_imports_no_webdataset() -> None:
    program = "import sys, streampack.testing; print('webdataset' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"
    )
