"""What a shard holds, counted in one pass, and the tallies of shards added up.

In:  a pipeline and a shard. Out: a `Tally`.
Invariants: a tally takes the same room whatever it counted: lengths go into a histogram, and only a few of the longest
documents and of the bad records are kept. The sum of tallies does not depend on the order.

How well documents pack is tried with the real packer, shard by shard. The rows at a shard's end that do not fill a pack
are not padded: they are added up over all shards and counted as packs at the end, since a lane continues its pack
from one shard to the next.
"""

import bisect
import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from streampack.cli.count.lengths import Lengths
from streampack.cli.packings import Packed, PackingTrial
from streampack.cli.whole_shard import ShardSample, read_whole_shard
from streampack.corpus.spans import Spans
from streampack.errors import CorruptShardError, RecordError, TruncatedShardError, WrongCutError
from streampack.lanes.pipeline import Pipeline
from streampack.packing.options import PackingKind
from streampack.records import BadRecord, Document, Shard

_KEPT = 5
"""Of the longest documents and of the bad records."""


class DocumentLocation(NamedTuple):
    """Where a document or a bad record is."""

    shard: int
    sample: int
    record: int
    part: int
    key: str
    url: str


@dataclass(slots=True)
class Tally:
    """What some shards hold."""

    samples: int = 0
    documents: int = 0
    text_bytes: int = 0
    tokens: int = 0
    bad_records: int = 0
    lengths: Lengths = field(default_factory=Lengths)
    longest: list[tuple[int, DocumentLocation]] = field(default_factory=list)
    """The longest documents, longest first."""
    bad: list[tuple[DocumentLocation, str]] = field(default_factory=list)
    """The first bad records, with what is wrong."""
    packed: dict[PackingKind, Packed] = field(default_factory=dict)

    def merge(self, other: "Tally") -> None:
        """Add what other shards hold."""
        self.samples += other.samples
        self.documents += other.documents
        self.text_bytes += other.text_bytes
        self.tokens += other.tokens
        self.bad_records += other.bad_records
        self.lengths.merge(other.lengths)
        self.longest = heapq.nsmallest(_KEPT, self.longest + other.longest, key=_longest_first)
        self.bad = heapq.nsmallest(_KEPT, self.bad + other.bad)
        for packing, packed in other.packed.items():
            self.packed.setdefault(packing, Packed()).merge(packed)


def tally_shard(
    pipeline: Pipeline,
    index: int,
    shard: Shard,
    *,
    has_tokens: bool,
    tell: Callable[[int], None],
    spans: Spans | None = None,
) -> Tally:
    """What one shard holds.

    Args:
        pipeline: reads and encodes; its `on_error` decides on bad records.
        index: of the shard in the list.
        shard: the shard.
        has_tokens: whether documents are tokenized (or token ids already), measured in tokens and packed.
        tell: called now and then with how many more of the shard's bytes are done; it may raise to stop.
        spans: what is read of the shards, where cells of them are held out.

    Raises:
        RecordError: a bad record, with on_error="raise".
        ShardError: the shard cannot be read; one that is damaged loses its rest with on_error="skip".
    """
    tally = Tally()
    trial = PackingTrial(pipeline.seq_len, pipeline.boundary) if has_tokens else None
    for sample in _samples(pipeline, index, shard, tally, tell=tell, spans=spans):
        tally.samples += 1
        for item in sample.documents:
            part = 0 if isinstance(item, BadRecord) else item.part
            location = DocumentLocation(index, sample.position, item.record, part, sample.key, shard.url)
            tokens, bad = None, None
            if isinstance(item, BadRecord):
                bad = item.error
            elif has_tokens:
                try:
                    tokens, _ = pipeline.encode(item)
                except RecordError as error:
                    bad = error
            if bad is not None:
                if pipeline.on_error == "raise":
                    raise bad
                _count_bad(tally, location, bad)
                continue
            assert isinstance(item, Document)
            length = _count_text(tally, item)
            if trial is not None and tokens is not None:
                length = len(tokens)
                tally.tokens += length
                trial.feed(tokens)
            tally.lengths.add(length)
            _keep_longest(tally, length, location)
    tally.packed = {} if trial is None else trial.finish()
    return tally


def _samples(
    pipeline: Pipeline, index: int, shard: Shard, tally: Tally, *, tell: Callable[[int], None], spans: Spans | None
) -> Iterator[ShardSample]:
    """The samples of the shard, up to a damage if such is skipped: it counts as one bad record."""
    last = None
    try:
        for sample in read_whole_shard(pipeline, index, shard, tell=tell, spans=spans):
            yield sample
            last = sample
    except WrongCutError:
        raise
    except (CorruptShardError, TruncatedShardError) as error:
        if pipeline.on_error == "raise":
            raise
        position, key = (0, "") if last is None else (last.position, last.key)
        _count_bad(tally, DocumentLocation(index, position, -1, -1, key, shard.url), f"the rest is left out: {error}")


def _count_bad(tally: Tally, location: DocumentLocation, error: RecordError | str) -> None:
    tally.bad_records += 1
    if len(tally.bad) < _KEPT:
        tally.bad.append((location, str(error)))


def _count_text(tally: Tally, document: Document) -> int:
    """Count the document; returns its bytes of UTF-8, 0 where it is token ids."""
    tally.documents += 1
    size = 0 if document.text is None else len(document.text.encode("utf-8", "surrogatepass"))
    tally.text_bytes += size
    return size


def _keep_longest(tally: Tally, length: int, location: DocumentLocation) -> None:
    kept = tally.longest
    if len(kept) < _KEPT or length > kept[-1][0]:
        bisect.insort(kept, (length, location), key=_longest_first)
        del kept[_KEPT:]


def _longest_first(entry: tuple[int, DocumentLocation]) -> tuple[int, Sequence[object]]:
    return -entry[0], entry[1]
