"""Documents as token ids, many at a time where possible.

In:    batches of documents, as texts or as ids.
Out:   batches of ids side by side, with BOS and EOS; an exception in place of a document that fails.
       Documents for which an engine gave other ids are left with their places in `Pipeline.differences`.
Never: a document that comes after one that failed.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, cast

from streampack.hashing import hash_name
from streampack.lanes.batches import DocumentBatch
from streampack.lanes.pipeline import Pipeline
from streampack.metrics import heartbeat
from streampack.records import MOST_DIFFERENCES, Compared, Joined
from streampack.storage.redaction import redacted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from streampack.records import Tokens

class TokenizedBatch(NamedTuple):
    """Documents that are read and tokenized, for the packer."""

    documents: DocumentBatch
    """Without its contents."""
    joined: Joined
    is_checked: bool
    """Whether the ids are known to be valid; else it is one document, whose ids the packer must check."""

    def singles(self) -> "Iterator[TokenizedBatch]":
        """The same, document by document."""
        (tokens, lengths, mask), stop = self.joined, 0
        for index, length in enumerate(lengths):
            start, stop = stop, stop + length
            joined = Joined(tokens[start:stop], [length], None if mask is None else mask[start:stop])
            yield self._replace(documents=self.documents.without_contents(index, index + 1), joined=joined)


def tokenized(pipeline: Pipeline, batch: DocumentBatch, *, lane: int) -> Iterator[TokenizedBatch | Exception]:
    """The documents as tokens; an exception is the last item, in place of the document that fails."""
    contents, documents = batch.contents, batch._replace(contents=[])
    if isinstance(contents, Joined):
        _place_differences(pipeline, batch)
        yield TokenizedBatch(documents, pipeline.joined_with_ends(contents), True)
        return
    ids: list[NDArray[np.integer]] = []
    failure: Exception | None = None
    for text, key, shard, (sample, record, _) in zip(contents, batch.keys, batch.shards, batch.origins, strict=True):
        heartbeat.begin_sample(lane, shard.number, sample)
        try:
            ids.append(pipeline.tokenize(text, url=shard.url, key=key, record=record))
        except Exception as error:  # noqa: BLE001 - raised when its turn comes
            failure = error
            break
    _place_differences(pipeline, batch)
    joined = pipeline.joined(ids)
    if joined is not None:
        yield TokenizedBatch(documents if failure is None else documents.without_contents(0, len(ids)), joined, True)
    else:
        for index, each in enumerate(ids):
            try:
                tokens, _ = pipeline.with_ends(each, None)
            except Exception as error:  # noqa: BLE001 - raised when its turn comes
                failure = error
                break
            single = Joined(cast("Tokens", tokens), [len(tokens)])
            yield TokenizedBatch(documents.without_contents(index, index + 1), single, False)
    if failure is not None:
        yield failure


def _place_differences(pipeline: Pipeline, batch: DocumentBatch) -> None:
    """Keep what an engine has got wrong, with the places of the documents."""
    engine = pipeline.tokenizer
    if not isinstance(engine, Compared):
        return
    for text, what in engine.untold():
        if len(pipeline.differences) <= MOST_DIFFERENCES:
            pipeline.differences.setdefault(text, f"{_place(text, batch)}: {what}")


def _place(text: int, batch: DocumentBatch) -> str:
    """Where the document with this hash of its text is."""
    if not isinstance(batch.contents, Joined):
        for content, key, shard, (_, record, _) in zip(
            batch.contents, batch.keys, batch.shards, batch.origins, strict=True
        ):
            if hash_name(content) == text:
                return f"{redacted(shard.url)}, sample {key!r}, record {record}"
    # A chat template has made ids of it, or of a part of it, while the batch was read.
    return f"{redacted(batch.shards[0].url)}, sample {batch.keys[0]!r} or one near it"
