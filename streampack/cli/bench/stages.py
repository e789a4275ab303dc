"""The stages of the pipeline, each by itself, with its input ready in memory.

    storage  ->  decompress  ->  tar  ->  documents  ->  tokenizer  ->  packing  ->  batches

In:  a function that makes the dataset of some shards, and a `Slice` to read.
Out: `Work` for the stopwatch: a stage, or the whole pipeline.
Invariants: making a stage's input is not part of its `Work`.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streampack.cli.bench.slices import Slice
from streampack.cli.bench.stopwatch import Work
from streampack.dataset.dataset import PackedDataset
from streampack.loader.loader import PackedDataLoader
from streampack.packing.blocks import expand_block, stack
from streampack.packing.packs import PackRows
from streampack.records import BadRecord, Document, Sample, Tokenizer, join
from streampack.tar.codecs import decompress
from streampack.tar.reader import read_samples, read_shard

BATCH_SIZE = 8
DOCUMENTS_AT_ONCE = 32
"""Documents that go through a stage together, about as many as in a lane."""


class MakeDataset(Protocol):
    """Makes the dataset of these shards, with the run's own arguments for all that is not given here."""

    def __call__(
        self,
        shards: Sequence[str],
        *,
        tokenizer: Tokenizer | None,
        num_lanes: int,
        epochs: int | None = 1,
        shuffle: bool = False,
    ) -> PackedDataset: ...


def samples_of(dataset: PackedDataset) -> list[tuple[str, Sample]]:
    """The samples of the dataset's shards in listed order, with the URLs of their shards."""
    pipeline = dataset.pipeline
    return [
        (shard.url, sample)
        for shard in dataset.list_shards()
        for sample in read_shard(
            pipeline.storage.chunks(shard.url, size=shard.size),
            url=shard.url,
            wanted=pipeline.documents.field.wanted,
            max_member_bytes=pipeline.documents.member_bytes,
        )
    ]


def documents_of(dataset: PackedDataset, samples: Sequence[tuple[str, Sample]]) -> list[Document]:
    """The documents of the samples; bad records are left out."""
    read_sample = dataset.pipeline.documents.read
    documents: list[Document] = []
    for url, sample in samples:
        items = read_sample(sample, url=url, shard_name=url, shard_index=0, epoch=0)
        documents += [item for item in items if not isinstance(item, BadRecord)]
    return documents


def pack_rows(dataset: PackedDataset, tokens: Sequence[NDArray[np.integer]]) -> list[PackRows]:
    """The packs of documents that are tokens already."""
    packer = dataset.pipeline.packer(at_once=DOCUMENTS_AT_ONCE)
    packs: list[PackRows] = []
    for first in range(0, len(tokens), DOCUMENTS_AT_ONCE):
        some = join(tokens[first : first + DOCUMENTS_AT_ONCE])
        packer.feed_all(some.tokens, some.lengths)
        packs += iter(packer.pop, None)
    packer.finish()
    return packs + list(iter(packer.pop, None))


class KnownIds:
    """A tokenizer that looks the ids up: with it, the pipeline's time is what it takes besides tokenizing."""

    def __init__(self, tokenizer: Tokenizer, ids: dict[str, NDArray[np.integer]]) -> None:
        self.bos_id, self.eos_id, self.pad_id = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
        self.vocab_size, self.digest = tokenizer.vocab_size, tokenizer.digest
        self._tokenizer, self._ids = tokenizer, ids

    def encode(self, text: str) -> NDArray[np.integer]:
        """The ids of `text`."""
        ids = self._ids.get(text)
        return self._tokenizer.encode(text) if ids is None else ids


def whole_pipeline(dataset: PackedDataset, *, num_workers: int = 0) -> Work:
    """Read all batches of a finite dataset; the units are tokens."""

    def work() -> int:
        with PackedDataLoader(dataset, BATCH_SIZE, num_workers=num_workers) as loader:
            for _ in loader:
                pass
            return int(loader.stats()["tokens"])

    return work


class SliceStages:
    """The stages on one slice; the input of each is made when the first stage is prepared, and kept."""

    def __init__(self, make: MakeDataset, part: Slice, plain: Tokenizer | None) -> None:
        self._make = make
        self._part = part
        self._plain = plain
        self._ready = False

    def dataset(self, tokenizer: Tokenizer | None) -> PackedDataset:
        return self._make(self._part.shards, tokenizer=tokenizer, num_lanes=1)

    def _fill(self) -> None:
        if self._ready:
            return
        self._ready = True
        dataset = self._dataset = self.dataset(self._plain)
        self._samples = samples_of(dataset)
        self._documents = documents_of(dataset, self._samples)
        self._tokens = [dataset.pipeline.encode(document)[0] for document in self._documents]
        self._rows = pack_rows(dataset, self._tokens)
        self.num_documents = len(self._documents)
        self.num_packs = len(self._rows)
        self._num_tokens = sum(rows.tokens.size for rows in self._rows)

    def plain(self) -> Work:
        self._fill()
        assert self._plain is not None
        encode, texts = self._plain.encode, [document.text or "" for document in self._documents]

        def work() -> int:
            for text in texts:
                encode(text)
            return self._num_tokens

        return work

    def pipeline_of_known_ids(self) -> Work:
        self._fill()
        assert self._plain is not None
        ids = {document.text or "": self._plain.encode(document.text or "") for document in self._documents}
        return whole_pipeline(self.dataset(KnownIds(self._plain, ids)))

    def storage(self) -> Work:
        self._fill()

        def work() -> int:
            for _, chunks in self._stored():
                for _ in chunks:
                    pass
            return self._num_tokens

        return work

    def _stored(self) -> Iterator[tuple[str, Iterator[bytes]]]:
        for shard in self._dataset.list_shards():
            yield shard.url, self._dataset.pipeline.storage.chunks(shard.url, size=shard.size)

    def decompress(self) -> Work:
        self._fill()
        stored = [(url, list(chunks)) for url, chunks in self._stored()]

        def work() -> int:
            for url, chunks in stored:
                for _ in decompress(chunks, url=url):
                    pass
            return self._num_tokens

        return work

    def tar(self) -> Work:
        self._fill()
        documents = self._dataset.pipeline.documents
        wanted, limit = documents.field.wanted, documents.member_bytes
        tars = [(url, list(decompress(chunks, url=url))) for url, chunks in self._stored()]

        def work() -> int:
            for url, chunks in tars:
                for _ in read_samples(chunks, url=url, wanted=wanted, max_member_bytes=limit):
                    pass
            return self._num_tokens

        return work

    def documents(self) -> Work:
        self._fill()

        contents = self._dataset.pipeline.documents.contents
        samples = [sample for _, sample in self._samples]

        def work() -> int:
            for first in range(0, len(samples), DOCUMENTS_AT_ONCE):
                if (
                    contents(samples[first : first + DOCUMENTS_AT_ONCE]) is None
                ):  # JSON lines, a transform: a lane reads these one by one, too
                    documents_of(self._dataset, self._samples[first : first + DOCUMENTS_AT_ONCE])
            return self._num_tokens

        return work

    def tokenizer(self, tokenizer: Tokenizer | None) -> Work:
        self._fill()
        encode = self.dataset(tokenizer).pipeline.encode

        def work() -> int:
            for document in self._documents:
                encode(document)
            return self._num_tokens

        return work

    def packing(self) -> Work:
        self._fill()

        def work() -> int:
            pack_rows(self._dataset, self._tokens)
            return self._num_tokens

        return work

    def batches(self) -> Work:
        self._fill()
        seq_len, pad_id = self._dataset.seq_len, self._dataset.pipeline.pad_id

        def work() -> int:
            for first in range(0, len(self._rows), BATCH_SIZE):
                expand_block(stack(self._rows[first : first + BATCH_SIZE], seq_len=seq_len, pad_id=pad_id))
            return self._num_tokens

        return work
