"""All that decides what a lane holds, and the stages put in order: shards -> samples -> documents -> tokens -> packs.

A recipe knows nothing of ranks, workers or batches; it is built once per process and read by every lane there.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from streampack.boundary import BoundaryPolicy, ReplaceBoundary
from streampack.documents import DocumentReader
from streampack.lanes import EpochLine, Piece, shard_order
from streampack.packer import Packer
from streampack.decompression import decompress, is_compressed
from streampack.reader import read_samples
from streampack.tarcuts import read_range
from streampack.records import Document, Mask, Sample, Tokenizer, Tokens
from streampack.shards import ShardTable
from streampack.storage import Storage

MAX_MEMBER_BYTES = 2**30
"""A member of JSON lines is read whole; one above this is a bad record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The arguments of a dataset, checked and resolved."""

    table: ShardTable
    storage: Storage
    documents: DocumentReader
    tokenizer: Tokenizer | None
    bos_id: int | None
    """Put before each document; None: nothing."""
    eos_id: int | None
    num_lanes: int
    seq_len: int
    boundary: BoundaryPolicy | ReplaceBoundary
    packing: str
    overflow: str
    tail: str
    lookahead: bool
    pad_id: int
    token_ids: tuple[int | None, int | None]
    """The tokenizer's (BOS, EOS), for the policies that look at values."""
    seed: int
    shuffle: bool
    one_epoch: bool
    """Every epoch is the first one: the validation stream."""
    on_error: str
    max_skipped: int
    _lines: dict[int, EpochLine] = field(default_factory=dict, compare=False, repr=False)

    def pieces(self, epoch: int, lane: int) -> list[Piece]:
        """What the lane reads in an epoch, in order."""
        epoch = self.order_epoch(epoch)
        if epoch not in self._lines:
            if len(self._lines) >= 4:  # lanes of one worker are in neighbouring epochs
                self._lines.pop(next(iter(self._lines)))
            order = shard_order(seed=self.seed, epoch=epoch, num_shards=len(self.table), shuffle=self.shuffle)
            self._lines[epoch] = EpochLine(self.table.sizes, self.table.whole, order)
        return self._lines[epoch].pieces(lane, self.num_lanes)

    def is_compressed(self, piece: Piece) -> bool:
        """Whether positions in the piece are ordinals of samples, since its bytes cannot be entered in the middle."""
        return is_compressed(self.table[piece.shard].url)

    def order_epoch(self, epoch: int) -> int:
        """The epoch that choices are made by."""
        return 0 if self.one_epoch else epoch

    def samples(self, piece: Piece, *, resume: int, max_range_bytes: int) -> Iterator[tuple[int, Sample]]:
        """The piece's samples with their positions, from position `resume` on (-1: from its start)."""
        shard = self.table[piece.shard]
        wanted = self.documents.field.wanted
        size = shard.size if shard.size_known else None

        def read(start: int, stop: int | None = None) -> Iterator[bytes]:
            return self.storage.chunks(
                shard.url,
                start,
                stop,
                size=size,
                first_bytes=min(512 * 2**10, max_range_bytes),
                max_bytes=max_range_bytes,
            )

        if is_compressed(shard.url):
            chunks = decompress(read(0), url=shard.url)
            for sample in read_samples(chunks, url=shard.url, wanted=wanted, max_member_bytes=MAX_MEMBER_BYTES):
                if sample.ordinal >= resume:
                    yield sample.ordinal, sample
        elif piece.whole:
            start = max(resume, 0)
            for sample in read_samples(
                read(start), url=shard.url, wanted=wanted, start=start, max_member_bytes=MAX_MEMBER_BYTES
            ):
                yield sample.offset, sample
        else:
            for sample in read_range(
                read,
                begin=piece.begin,
                end=piece.end,
                size=shard.size,
                url=shard.url,
                wanted=wanted,
                max_member_bytes=MAX_MEMBER_BYTES,
                resume=None if resume < 0 else resume,
            ):
                yield sample.offset, sample

    def encode(self, document: Document) -> tuple[Tokens, Mask | None]:
        """The document's tokens with BOS and EOS as asked for, int32 [n], and its loss mask, bool [n] or None."""
        if document.tokens is not None:
            ids = document.tokens
        else:
            assert self.tokenizer is not None and document.text is not None, "the dataset demands a tokenizer for text"
            try:
                ids = np.asarray(self.tokenizer.encode(document.text))
            except Exception as error:
                error.add_note(f"while tokenizing {document.url}, sample {document.key!r}, record {document.record}")
                raise
        if self.bos_id is None and self.eos_id is None:
            return ids, document.loss_mask
        front, back = int(self.bos_id is not None), int(self.eos_id is not None)
        wide = ids.dtype.itemsize > 4 or ids.dtype == np.uint32
        tokens = np.empty(front + len(ids) + back, dtype=np.int64 if wide else np.int32)
        tokens[front : front + len(ids)] = ids
        if self.bos_id is not None:
            tokens[0] = self.bos_id
        if self.eos_id is not None:
            tokens[-1] = self.eos_id
        mask = document.loss_mask
        if mask is not None:
            # BOS and EOS are targets where their neighbour in the document is one.
            mask = np.pad(mask, (front, back), mode="edge") if len(mask) else np.ones(front + back, dtype=np.bool_)
        return tokens, mask

    def packer(self) -> Packer:
        return Packer(
            seq_len=self.seq_len,
            boundary=self.boundary,
            packing=self.packing,
            overflow=self.overflow,
            tail=self.tail,
            pad_id=self.pad_id,
            bos_id=self.token_ids[0],
            eos_id=self.token_ids[1],
            lookahead=self.lookahead,
        )
