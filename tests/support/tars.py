"""Builders of tars for tests: by the writers people use, and by hand where no writer makes what is needed."""

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from random import Random

from webdataset.writer import TarWriter

from streampack.records import Sample
from streampack.tar.reader import read_samples

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
URL = "memory://corpus/shard-000000.tar"
LIMIT = 1 << 30

Member = tuple[str, bytes | None]
"""Name and content; None makes a directory."""


def write_tar(members: Iterable[Member], form: str = "ustar", *, always_prefixed: bool = False) -> bytes:
    """A tar as Python's tarfile writes it. `always_prefixed`: in PAX form, a PAX header before every member."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[form]) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.mtime = 1.5 if always_prefixed else 1  # a fraction does not fit the header itself
            if content is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write_webdataset(samples: Iterable[dict[str, object]], *, form: str | None = None) -> bytes:
    """A tar as webdataset's TarWriter (which ShardWriter opens for each shard) writes it."""
    buffer = io.BytesIO()
    writer = TarWriter(buffer, mtime=1.5, format=f"{form.upper()}_FORMAT" if form else None)
    for sample in samples:
        writer.write(sample)
    writer.close()
    return buffer.getvalue()


def header(
    name: bytes | str, size: int | bytes = 0, kind: bytes = b"0", *, magic: bytes = b"ustar\x0000", prefix: bytes = b""
) -> bytes:
    """A header block with the right checksum, whatever is in it. `size` as bytes: the field itself."""
    name = name.encode() if isinstance(name, str) else name
    field = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(512)
    block[:100] = name[:100].ljust(100, b"\0")
    block[100:148] = b"0000644\0000000000\0000000000\0" + field.ljust(12, b"\0") + b"00000000001\0"
    block[156:157] = kind
    block[257:265] = magic
    block[345:500] = prefix.ljust(155, b"\0")
    return with_checksum(block)


def with_checksum(block: bytes | bytearray) -> bytes:
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def body(content: bytes) -> bytes:
    """Content padded to whole blocks."""
    return content + bytes(-len(content) % 512)


def entry(name: bytes | str, content: bytes = b"", kind: bytes = b"0") -> bytes:
    return header(name, len(content), kind) + body(content)


def pax(kind: bytes = b"x", **records: str) -> bytes:
    """A PAX header; `GNU_sparse_name` stands for `GNU.sparse.name`."""
    content = b""
    for keyword, value in records.items():
        rest = f" {keyword.replace('_', '.')}={value}\n".encode("utf-8", "surrogateescape")
        length = len(rest)
        while len(str(length)) + len(rest) != length:
            length = len(str(length)) + len(rest)
        content += str(length).encode() + rest
    return entry("PaxHeader", content, kind)


END = bytes(1024)


def chunked(data: bytes, size: int) -> Iterator[bytes]:
    for begin in range(0, len(data), size):
        yield data[begin : begin + size]


def read(data: bytes, *, chunk: int = 1 << 20, wanted: Callable[[str], bool] = lambda _: True) -> list[Sample]:
    """The samples of a whole shard."""
    return list(read_samples(chunked(data, chunk), url=URL, wanted=wanted, max_member_bytes=LIMIT))


class Shard:
    """A shard's bytes as ranges of a storage, which counts what it gives."""

    def __init__(self, data: bytes, chunk: int = 1 << 16) -> None:
        self.data = data
        self.chunk = chunk
        self.requests: list[int] = []
        self.num_bytes = 0

    def open_range(self, begin: int, end: int) -> Iterator[bytes]:
        assert begin < end, "a request for nothing"
        self.requests.append(begin)
        for at in range(begin, end, self.chunk):  # no copy of the whole range
            chunk = self.data[at : min(at + self.chunk, end)]
            self.num_bytes += len(chunk)
            yield chunk

    def open_at(self, offset: int) -> Iterator[bytes]:
        return self.open_range(offset, len(self.data))


def random_members(random: Random, num_samples: int, form: str, *, max_bytes: int = 3000) -> list[Member]:
    """Samples of one to four members, some empty, names of every length, directories and stray files between."""
    deep = "deep/" * (40 if form == "ustar" else 60)  # USTAR takes 255 bytes and no more
    members: list[Member] = []
    for index in range(num_samples):
        if random.random() < 0.1:
            members.append((f"folder{index}", None))
        if random.random() < 0.1:
            members.append((f"README{index}", b"no extension, so no sample"))
        key = random.choice(["{}", "en/{}", "e.d/n/{}", "漢字/é{}", "l" * 90 + "/" + "m" * 60 + "{}", deep + "{}"])
        key = key.format(f"{index:06d}")
        for extension in random.sample(["txt", "json", "meta.json", "NPY"], random.randint(1, 4)):
            if random.random() < 0.1:
                members.append((f"between{index}", None))
            size = random.choice([0, 1, 511, 512, 513, random.randrange(max_bytes)])
            members.append((f"{key}.{extension}", random.randbytes(size)))
    return members


def some_tars(random: Random) -> list[bytes]:
    """Long names, prefix headers, several members a sample; some documents of many blocks."""
    tars = []
    for form in FORMATS:
        members = random_members(random, 30, form, max_bytes=random.choice([300, 3000, 12_000]))
        tars.append(write_tar(members, form, always_prefixed=form == "pax"))
    samples = [{"__key__": f"{index:06d}", "txt": "x" * random.randrange(9000), "json": {}} for index in range(20)]
    return [*tars, write_webdataset(samples, form="pax")]
