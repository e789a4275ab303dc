"""Whether `hold_out` leaves a part of the corpus without a document, and which fraction would do.

In:    a source that has given no pack.
Out:   what to tell; it needs no other rank, as each finds the same.
Never: asked before a pass has given nothing: it reads the shards, up to the first document of the part, or all.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import suppress

from streampack.corpus.shares import DEFAULT
from streampack.documents.split import HoldOut
from streampack.errors import ConfigError, CorruptShardError, TruncatedShardError
from streampack.lanes.run import Run, RunSource
from streampack.records import BadRecord

_NEAR = 10
"""Documents that the part would have with about the fraction in an error."""


def hold_out_of(source: RunSource) -> HoldOut | None:
    """Which part of the source is read; None: all of it."""
    return source.corpus.hold_out or source.pipelines[0].documents.hold_out


def check_parts(run: Run) -> None:
    """Raise a `ConfigError` where a source has no document and `hold_out` is why. `run`: it has given no pack."""
    for index, _ in run.schedule.stages[0].shares.weights:
        if (why := why_empty(run.sources[index])) is not None:
            raise ConfigError(why)


def why_empty(source: RunSource) -> str | None:
    """Why the part has no document of a source; None: it has one, or the shards have none at all."""
    hold_out = hold_out_of(source)
    if hold_out is None or any(_documents(source)):
        return None
    documents = dataclasses.replace(source.pipelines[0].documents, hold_out=None)
    pipeline = dataclasses.replace(source.pipelines[0], documents=documents)
    corpus = dataclasses.replace(source.corpus, hold_out=None)
    of_all = _documents(source._replace(corpus=corpus, pipelines=(pipeline,)))
    name = "the shards" if source.name == DEFAULT else f"source {source.name!r}"
    is_val = hold_out.part == "val"
    nothing = f"so that there is nothing to {'validate' if is_val else 'train'} on"
    text = f"hold_out: fraction={hold_out.fraction!r} by {hold_out.by}"
    if hold_out.by == "block":
        what = f"{'holds out' if is_val else 'leaves only'} blocks of {name} in which no document begins"
        return f"{text} {what}, {nothing}; use a {'larger' if is_val else 'smaller'} fraction" if any(of_all) else None
    available = sum(1 for _ in of_all)
    if not available:
        return None
    text += f" holds out {'none' if is_val else 'all'} of the {available:,} documents of {name}, {nothing}. "
    if available <= _NEAR:
        return f"{text}Use more documents, or a {'larger' if is_val else 'smaller'} fraction"
    near = float(f"{_NEAR / available:.1g}")
    fraction = f"{near if is_val else 1 - near:.12g}"
    return f"{text}fraction={fraction} {'holds out' if is_val else 'leaves'} about {_NEAR} of them"


def _documents(source: RunSource) -> Iterator[bool]:
    """True for each document of a source, as listed; what is broken has none, as it was told of already."""
    pipeline = source.pipelines[0]
    corpus = dataclasses.replace(source.corpus, num_lanes=1, shuffle=False)
    for piece in corpus.pieces(0, 0):
        shard = corpus.table[piece.shard]
        with suppress(CorruptShardError, TruncatedShardError):
            for sample in pipeline.samples(shard, piece, resume=-1, max_range_bytes=2**23):
                for record in pipeline.documents.records(sample, url=shard.url, shard_name=shard.name):
                    if not isinstance(record, BadRecord):
                        yield True
