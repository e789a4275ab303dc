"""What `loader.stats()` gives: each key with its type, its unit and its meaning, in the order of docs/stats.md.

In:    nothing: types.
Out:   typed dicts, and the tables of what is in them, for exporters and for the docs.
"""

from typing import Annotated, NamedTuple, TypedDict, get_args, get_type_hints


class RunStats(TypedDict):
    """Counts of this rank's lanes since the start of the run.

    They are part of the state, so a resume keeps them; their sum over the data-parallel ranks is the same number on
    every topology.
    """

    documents: Annotated[int, "documents", "documents whose last row was handed out or skipped, or without rows"]
    tokens: Annotated[int, "rows", "input rows that are not padding"]
    targets: Annotated[int, "rows", "rows with a label"]
    padding: Annotated[int, "rows", "padding of packs that are not fillers"]
    bad_records: Annotated[int, "records", 'bad records and broken shards that `on_error="skip"` skipped']
    split_documents: Annotated[int, "documents", 'documents that `overflow="split"` cut']
    truncated_documents: Annotated[int, "documents", 'documents that `overflow="truncate"` cut']
    truncated_tokens: Annotated[int, "rows", "rows that were cut off them"]
    dropped_documents: Annotated[int, "documents", 'documents that `overflow="drop"` left out']
    dropped_tokens: Annotated[int, "rows", "rows of the dropped documents"]
    targetless_packs: Annotated[int, "packs", "packs without a single target, which are never handed out"]
    targetless_tokens: Annotated[int, "rows", "rows of the targetless packs"]
    tail_tokens: Annotated[int, "rows", 'rows of unfinished packs that `tail="drop"` left out']
    fillers: Annotated[int, "packs", "packs of nothing but padding, which keep the ranks in step"]
    skipped_packs: Annotated[int, "packs", "packs that `loader.skip` went past"]


class LoaderStats(TypedDict):
    """Counts of this loader object since it was made.

    They are in no state, and depend on the topology and on chance. What workers count is known up to the last message
    that came from them.
    """

    batches: Annotated[int, "batches", "batches handed out"]
    left_out_packs: Annotated[int, "packs", "packs that were made and left out at the ends of finite passes"]
    worker_restarts: Annotated[int, "restarts", "how often the workers were restarted after one was lost"]
    seconds_waited: Annotated[float, "seconds", "time that this process waited for batches"]
    engine_differences: Annotated[
        int,
        "documents",
        "documents of different texts for which an engine gave other ids than the tokenizer that it stands for, among "
        "those compared; at most 11 of a rank are counted, as more than 10 of all ranks end the run",
    ]
    retries: Annotated[int, "requests", "requests to the storage that were tried again"]
    requests: Annotated[int, "requests", "requests to the storage"]
    bytes_read: Annotated[int, "bytes", "bytes of shards that came from the storage"]
    seconds_waited_storage: Annotated[float, "seconds", "time that workers only waited for the storage"]
    cache_hits: Annotated[int, "blocks", "blocks that were read from the cache"]
    cache_bytes: Annotated[int, "bytes", "bytes of shards that came from the cache"]


class SourceStats(TypedDict):
    """What this rank's lanes have had of one source since the start of the run."""

    packs: Annotated[int, "packs", "packs of the source"]
    tokens: Annotated[int, "rows", "input rows that are not padding"]
    targets: Annotated[int, "rows", "rows with a label"]
    documents: Annotated[int, "documents", "documents whose last row was handed out or skipped, or without rows"]
    bad_records: Annotated[int, "records", 'bad records and broken shards that `on_error="skip"` skipped']
    exhausted_lanes: Annotated[
        int, "lanes", "lanes that have read the source `max_epochs` times, and read it no more"
    ]
    epochs: Annotated[float, "epochs", "how often the source was read, as a mean of the lanes"]
    share: Annotated[float, "of 1", "share of the packs that the present stage asks for"]
    share_so_far: Annotated[float, "of 1", "share of all packs so far"]


class Seconds(TypedDict):
    """Seconds of work and of waits since this loader object was made, of all workers together."""

    busy: float
    blocked: float


class Stats(RunStats, LoaderStats):
    """What `loader.stats()` gives."""

    stages: dict[str, Seconds]
    """Of each stage, in the order of the pipeline; docs/stats.md says what belongs to it."""
    source_seconds: dict[str, Seconds]
    """Of each source, from its storage to its packs."""
    limited_by: str | None
    """The stage that limited the last 30 seconds; None before the second batch."""
    sources: dict[str, SourceStats]
    """By name, in the order of `dataset.sources`."""


class Stat(NamedTuple):
    """One number."""

    key: str
    of: str
    """"run" or "loader": whether it is in the state."""
    unit: str
    meaning: str


def _table(typed: type, of: str) -> tuple[Stat, ...]:
    hints = get_type_hints(typed, include_extras=True)
    return tuple(Stat(key, of, *get_args(hint)[1:]) for key, hint in hints.items())


STATS = (*_table(RunStats, "run"), *_table(LoaderStats, "loader"))
SOURCE_STATS = _table(SourceStats, "run")
