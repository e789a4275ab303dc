"""`write_shards`: documents in JSON lines, Parquet, texts, a dataset or an iterable in, a folder of shards out.

In:  what to write, and where. Out: the shards with a manifest, and what was written in numbers.
Invariants: each piece of work (a portion, or a shard of the shuffled order) gives the same bytes wherever and whenever
it is done, and is noted when it is done: so any number of processes gives the same folder, and a run that was killed
goes on.
"""

from collections.abc import Mapping, Sequence

from streampack.corpus.writing.passes import progress_silently
from streampack.corpus.writing.reading import Records
from streampack.corpus.writing.request import SHARD_BYTES, AnyPath, Request, WrittenShards, write_all
from streampack.storage.options import Storage


def write_shards(
    data: AnyPath | Sequence[AnyPath] | Records,
    output: AnyPath,
    *,
    field: str = "jsonl:text",
    shard_bytes: int = SHARD_BYTES,
    shuffle: bool = False,
    seed: int = 0,
    on_error: str = "raise",
    num_workers: int = 1,
    scratch: AnyPath | None = None,
    storage: Storage | Mapping[str, object] | None = None,
) -> WrittenShards:
    """Write documents into tar shards with a manifest, and return what was written.

    The shards are the same, byte for byte, for any number of workers. A call that was killed continues when it is made
    again; where all is written, nothing is changed. The folder is not read by any run before it is finished.

    Args:
        data: names of files: JSON lines (`.jsonl`, `.ndjson`, `.json`, with `.gz` or `.zst`), `.parquet`, texts
            (`.txt`, `.md`, `.rst`), a folder of these or of `datasets.Dataset.save_to_disk`, with globs and braces,
            local or remote; a string, a path, or a list of them. Or any other iterable of records: mappings, or texts,
            which are put under the key of `field`; it is read by this process, and from its start in each call.
        output: the folder, a path or a URL; new or empty.
        field: `"jsonl:KEY"`, where the text or the conversation of a record is. Records are written as they are, with
            all their keys. Give the same `field` to `PackedDataset`.
        shard_bytes: bytes of members after which a shard ends.
        shuffle: write the records in a random order, instead of that of the data.
        seed: decides that order, alone.
        on_error: `"raise"`: a record that cannot be written is an error; `"skip"`: it is left out, counted and listed.
        num_workers: processes; 1: this one.
        scratch: a folder on a local disk, for shards on their way to a remote `output`, and with `shuffle` for all of
            the data. None: in `output` where that is local, else the folder of temporary files.
        storage: how `data` and `output` are reached. A plain mapping stands for `Storage(options=mapping)`.

    Raises:
        ConfigError: an argument that cannot work, or an `output` that was written from something else.
        RecordError: a record that cannot be written, with its file and line.
        ShardError: the storage fails.
    """
    request = Request(
        data=data, output=output, field=field, shard_bytes=shard_bytes, shuffle=shuffle, seed=seed, on_error=on_error,
        num_workers=num_workers, scratch=scratch, storage=storage,
    )  # fmt: skip
    return write_all(request, progress_silently)
