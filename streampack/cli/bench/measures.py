"""The whole line and each of its stages against the tokenizer alone, interleaved, by CPU time.

In:  a function that makes the dataset of some shards, and `Slice`s to read.
Out: frozen records of plain numbers; nothing is printed.
Never true: that a line is timed whose ids were not compared with those of the tokenizer alone (`check_ids`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streampack.cli.bench.stopwatch import Spread, Variant, Work, cpu_ratio, interleave
from streampack.cli.bench.workload import Slice
from streampack.dataset.dataset import PackedDataset
from streampack.errors import TokenizerError
from streampack.loader.loader import PackedDataLoader
from streampack.packing.policies import expand_block, stack
from streampack.records import BadRecord, Document, PackRows, Sample, Tokenizer, join
from streampack.tar.codecs import decompress, is_compressed
from streampack.tar.reader import read_samples

BATCH_SIZE = 8
RUN = 32
"""Documents that go through a stage together, about as many as in a lane."""
WITHOUT_TOKENIZER = "line without its tokenizer"


class MakeDataset(Protocol):
    """The dataset of these shards; what is not given is as in the run that is measured."""

    def __call__(
        self,
        shards: Sequence[str],
        *,
        tokenizer: Tokenizer | None,
        num_lanes: int,
        epochs: int | None = 1,
        shuffle: bool = False,
    ) -> PackedDataset: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A variant of the comparison, against the one that all are compared with."""

    name: str
    tokens_per_s: Spread
    """For each second of CPU time."""
    ratio: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage by itself, its input lying ready in memory."""

    name: str
    document_us: float
    """Microseconds of CPU time for each document."""
    pack_us: float
    share: float
    """Of the line's CPU time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The line against the tokenizer alone."""

    documents: int
    """Of all rounds that count."""
    tokens: int
    contenders: list[Contender]
    stages: list[Stage]


# -- the documents, as the stages before the tokenizer give them -------------------------------------------------------


def samples_of(dataset: PackedDataset) -> list[tuple[str, Sample]]:
    """The samples of the dataset's shards in listed order, with the URLs of their shards."""
    pipeline = dataset.pipeline
    return [
        (shard.url, sample)
        for shard in dataset.list_shards()
        for sample in read_samples(
            decompress(pipeline.storage.chunks(shard.url, size=shard.size), url=shard.url),
            url=shard.url,
            wanted=pipeline.documents.field.wanted,
            max_member_bytes=pipeline.documents.member_bytes,
        )
    ]


def documents_of(dataset: PackedDataset, samples: Sequence[tuple[str, Sample]]) -> list[Document]:
    """The documents of the samples; a bad record is passed over."""
    read_sample = dataset.pipeline.documents.read
    documents: list[Document] = []
    for url, sample in samples:
        items = read_sample(sample, url=url, shard_name=url, shard_index=0, epoch=0, position=sample.offset)
        documents += [item for item in items if not isinstance(item, BadRecord)]
    return documents


def pack_rows(dataset: PackedDataset, tokens: Sequence[NDArray[np.integer]]) -> list[PackRows]:
    """The packs of documents that are tokens already."""
    packer = dataset.pipeline.packer(at_once=RUN)
    packs: list[PackRows] = []
    for first in range(0, len(tokens), RUN):
        some = join(tokens[first : first + RUN])
        packer.feed_all(some.tokens, some.lengths)
        packs += iter(packer.pop, None)
    packer.finish()
    return packs + list(iter(packer.pop, None))


def check_ids(make: MakeDataset, part: Slice, tokenizer: Tokenizer | None, plain: Tokenizer | None) -> None:
    """Raise a TokenizerError unless the line gives the packs that the plain tokenizer's ids make.

    The ids are compared document by document, then the line's packs with those of the plain ids.
    """
    dataset = make(part.shards, tokenizer=tokenizer, num_lanes=1)
    pipeline = dataset.pipeline
    expected = []
    for document in documents_of(dataset, samples_of(dataset)):
        ids = pipeline.encode(document)[0]
        if plain is not None:
            right = replace(pipeline, tokenizer=plain).encode(document)[0]
            if not np.array_equal(ids, right):
                raise TokenizerError(
                    "the engine gives other ids than the plain tokenizer", url=document.url, member=document.key
                )
            ids = right
        expected.append(ids)
    rows = pack_rows(dataset, expected)
    arrays = expand_block(stack(rows, seq_len=dataset.seq_len, pad_id=pipeline.pad_id))
    with PackedDataLoader(dataset, BATCH_SIZE, num_workers=0) as loader:
        batches = list(loader)
    for name, right in arrays.items():
        found = np.concatenate([batch[name].numpy() for batch in batches])
        if not np.array_equal(found[: len(rows)], right):
            raise TokenizerError(f"the line gives other {name} than packing the plain tokenizer's ids does")


class KnownIds:
    """A tokenizer of texts whose ids are known: what a line takes besides tokenizing."""

    def __init__(self, tokenizer: Tokenizer, ids: dict[str, NDArray[np.integer]]) -> None:
        self.bos_id, self.eos_id, self.pad_id = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
        self.vocab_size, self.digest = tokenizer.vocab_size, tokenizer.digest
        self._tokenizer, self._ids = tokenizer, ids

    def encode(self, text: str) -> NDArray[np.integer]:
        """The ids of `text`."""
        ids = self._ids.get(text)
        return self._tokenizer.encode(text) if ids is None else ids


# -- the line and its stages -------------------------------------------------------------------------------------------


def line(dataset: PackedDataset, *, num_workers: int = 0) -> Work:
    """All batches of a finite dataset; the units are tokens."""

    def work() -> int:
        with PackedDataLoader(dataset, BATCH_SIZE, num_workers=num_workers) as loader:
            for _ in loader:
                pass
            return int(loader.stats()["tokens"])

    return work


def compare(
    make: MakeDataset,
    slices: Sequence[Slice],
    *,
    plain: Tokenizer | None,
    engines: dict[str, Tokenizer | None],
    advance: Callable[[str], None] = lambda name: None,
) -> Comparison:
    """Each engine's line and the stages of the first one, a slice a round, against `plain.encode`.

    Without a plain tokenizer (the documents are tokens already) against the first line.
    """
    rounds = [_Round(make, part, plain) for part in slices]
    variants = [Variant("tokenizer alone", lambda number: rounds[number].plain())] if plain is not None else []
    for name, tokenizer in engines.items():
        variants.append(Variant(f"line, {name}", partial(_line_of, rounds, tokenizer)))
    first = next(iter(engines.values()))
    if first is not None:
        variants.append(Variant(WITHOUT_TOKENIZER, lambda number: rounds[number].line_of_known_ids()))
    stages = {
        "storage": lambda number: rounds[number].storage(),
        "decompress": lambda number: rounds[number].decompress(),
        "tar": lambda number: rounds[number].tar(),
        "documents": lambda number: rounds[number].documents(),
        "tokenizer": lambda number: rounds[number].tokenizer(first),
        "packing": lambda number: rounds[number].packing(),
        "batches": lambda number: rounds[number].batches(),
    }
    if first is None:
        del stages["tokenizer"]
    if not any(is_compressed(path) for part in slices for path in part.shards):
        del stages["decompress"]
    variants += [Variant(name, prepare) for name, prepare in stages.items()]
    readings = interleave(variants, len(slices), advance=advance)
    base = readings[variants[0].name]
    counted = rounds[1:] or rounds
    num_documents = sum(each.num_documents for each in counted)
    num_packs = sum(each.num_packs for each in counted)

    def total(name: str) -> float:
        return sum(reading.cpu_s for reading in readings[name])

    whole = total(f"line, {next(iter(engines))}")
    spent = {name: total(name) for name in stages}
    bare = whole if first is None else total(WITHOUT_TOKENIZER)
    spent["lanes, cursors, digests"] = bare - sum(s for name, s in spent.items() if name != "tokenizer")
    # What runs a thousand times in a row finds its code and data in the nearest caches; in turn with others, farther.
    spent["all of these in turn, not alone"] = whole - sum(spent.values())
    return Comparison(
        documents=num_documents,
        tokens=sum(reading.units for reading in base),
        contenders=[
            Contender(
                name=variant.name,
                tokens_per_s=Spread.of([reading.per_cpu_s for reading in readings[variant.name]]),
                ratio=cpu_ratio(readings[variant.name], base),
            )
            for variant in variants
            if variant.name not in stages
        ],
        stages=[
            Stage(
                name=name,
                document_us=seconds / num_documents * 1e6,
                pack_us=seconds / num_packs * 1e6,
                share=seconds / whole,
            )
            for name, seconds in spent.items()
        ],
    )


def _line_of(rounds: "Sequence[_Round]", tokenizer: Tokenizer | None, number: int) -> Work:
    return line(rounds[number].dataset(tokenizer))


class _Round:
    """A slice with the input of every stage ready, made when it is first needed and dropped with the round."""

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

    def line_of_known_ids(self) -> Work:
        self._fill()
        assert self._plain is not None
        ids = {document.text or "": self._plain.encode(document.text or "") for document in self._documents}
        return line(self.dataset(KnownIds(self._plain, ids)))

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
            for first in range(0, len(samples), RUN):
                if contents(samples[first : first + RUN]) is None:  # JSON lines, a transform: one by one in a lane, too
                    documents_of(self._dataset, self._samples[first : first + RUN])
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
