"""Records in, tar shards out: samples of JSON lines, in shards of a given size, with the digests of their blocks.

    00003-00000.tar     00003-00000000.jsonl  00003-00000001.jsonl  ...       portion 3; members of about 16 KiB

Many small documents share a member, since each member costs a header, padding and work when it is read: with 16 KiB
these are 5 % of the bytes. A member is read as a whole, and `shuffle=True` reads blocks of 256 KiB: members stay well
below them.
Invariants: the same records give the same bytes; no record is in two members; a shard has its name once it is complete.
"""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from streampack.corpus.manifest import ShardRow
from streampack.corpus.writing.folder import OutputFolder
from streampack.storage.digests import BlockDigester

MEMBER_BYTES = 16 * 2**10


class _Digested(io.RawIOBase):
    """A file that is written, with the digests of what went by, where they are asked for."""

    def __init__(self, path: Path, *, digests: bool) -> None:
        self._file = path.open("wb")
        self._digester = BlockDigester() if digests else None
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]  # tarfile writes bytes
        self._file.write(data)
        if self._digester is not None:
            self._digester.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def finish(self) -> str | None:
        """The digest, when all is written."""
        self._file.close()
        return None if self._digester is None else self._digester.text()

    def drop(self) -> None:
        """Close it as it is."""
        self._file.close()


class _Shard:
    """A tar under way."""

    def __init__(self, path: Path, *, digests: bool) -> None:
        self._path = path
        self._file = _Digested(path, digests=digests)
        # Open until `finish`. USTAR has one header a member. webdataset's writer wraps this one, and imports torch.
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by `finish`
        self.num_samples = self.num_documents = self.num_bytes = 0

    def add(self, key: str, records: list[bytes]) -> None:
        data = b"\n".join([*records, b""])
        info = tarfile.TarInfo(f"{key}.jsonl")
        info.size = len(data)
        info.mode = 0o644
        self._tar.addfile(info, io.BytesIO(data))
        self.num_samples += 1
        self.num_documents += len(records)
        self.num_bytes += len(data)

    def drop(self) -> None:
        self._file.drop()
        self._path.unlink(missing_ok=True)

    def finish(self, name: str, folder: OutputFolder) -> ShardRow:
        self._tar.close()
        row = ShardRow(
            name,
            size=self._file.size,
            digest=self._file.finish(),
            num_samples=self.num_samples,
            num_documents=self.num_documents,
        )
        folder.move(self._path, name)
        return row


def write_tars(
    records: Iterable[bytes], folder: OutputFolder, *, name: str, shard_bytes: int | None, digests: bool
) -> list[ShardRow]:
    """Write the records of a portion into its shards.

    Args:
        records: JSON without line feeds.
        folder: where the shards go.
        name: of the portion; the names of shards and of members begin with it.
        shard_bytes: bytes of members after which a shard ends. None: all of it is one shard, of the same name.
        digests: whether the rows have digests of the shards' blocks.
    """
    rows: list[ShardRow] = []
    shard: _Shard | None = None
    member: list[bytes] = []
    size = num_members = 0
    unfinished = folder.scratch.unfinished(f"{name}.tar")

    def end_member() -> None:
        nonlocal shard, member, size, num_members
        shard = shard or _Shard(unfinished, digests=digests)
        shard.add(f"{name}-{num_members:08d}", member)
        num_members += 1
        member, size = [], 0

    def end_shard() -> None:
        nonlocal shard
        if member:
            end_member()
        if shard is not None:
            rows.append(shard.finish(f"{name}.tar" if shard_bytes is None else f"{name}-{len(rows):05d}.tar", folder))
            shard = None

    try:
        for record in records:
            member.append(record)
            size += len(record) + 1
            if size >= MEMBER_BYTES:
                end_member()
            if shard_bytes is not None and (shard.num_bytes if shard else 0) + size > shard_bytes:
                end_shard()
        end_shard()
    finally:
        if shard is not None:  # an error, or an interrupt
            shard.drop()
    return rows
