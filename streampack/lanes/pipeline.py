"""What is done with a shard's bytes: the stages in order, bytes -> samples -> documents -> tokens -> packs.

In:    the arguments of a dataset, checked.
Out:   a function for each stage.
Never: knowledge of lanes, ranks, workers or batches; an open file or connection: it can be pickled and forked.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, dropwhile

import numpy as np
from numpy.typing import NDArray

from streampack.corpus.partition import Piece
from streampack.documents.excluded import Excluded
from streampack.documents.reader import DocumentReader
from streampack.errors import CorruptShardError, RecordError, TokenizerError, TruncatedShardError, WrongCutError
from streampack.lanes.fetching import Fetched, Opened, Slack
from streampack.packing.making import AnyPacker, make_packer
from streampack.packing.options import Packing
from streampack.packing.policies import BoundaryPolicy, ReplaceBoundary
from streampack.records import Document, Joined, Mask, Sample, Shard, Tokenizer, Tokens, join
from streampack.storage.access import StorageReader
from streampack.storage.digests import block_bytes_of
from streampack.tar.codecs import is_compressed
from streampack.tar.cuts import CUT_REMEDY, LOOK_BYTES, find_sample, first_boundary
from streampack.tar.grouping import PassOver, pass_over_silently
from streampack.tar.reader import read_range, read_samples, read_shard

_log = logging.getLogger(__name__)
_NO_ORDINAL = 2**62  # no shard has so many samples
_LOOK_BYTES = 128 * 2**10  # a search for a sample reads little more than the headers around a cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """The arguments of a dataset, checked and resolved."""

    storage: StorageReader
    documents: DocumentReader
    tokenizer: Tokenizer | None
    vocab_size: int
    """Ids that the tokenizer gives must be below it."""
    bos_id: int | None
    """Put before each document; None: nothing."""
    eos_id: int | None
    """Put after each document; None: nothing."""
    seq_len: int
    boundary: BoundaryPolicy | ReplaceBoundary
    packing: Packing
    """Its `overflow` is never None."""
    pad_id: int
    token_ids: tuple[int | None, int | None]
    """The tokenizer's (BOS, EOS), for the policies that look at values."""
    on_error: str
    max_bad: int | float
    """How much one lane may skip: a number, or a fraction of its documents."""
    excluded: Excluded | None = None
    """Records that are left out; None: none. They are read, and keep their places in a window."""
    slack: Slack = field(default_factory=Slack, compare=False)
    """What blocks have needed after their ends so far, in this process."""
    differences: dict[int, str] = field(default_factory=dict, compare=False)
    """What the log says of documents for which an engine gave other ids, by a hash of the text; see `Run`."""

    def fetch(self, parts: Sequence[tuple[Shard, Piece, int]]) -> Fetched:
        """The pieces that are to be read next, each with the position `resume` of `samples`, asked for at once."""
        return Fetched(self.storage, self.slack, parts)

    def samples(
        self,
        shard: Shard,
        piece: Piece,
        *,
        resume: int,
        max_range_bytes: int,
        pass_over: PassOver = pass_over_silently,
        fetched: Fetched | None = None,
    ) -> Iterator[Sample]:
        """The samples of a piece of the shard, from the position `resume` on (-1: from the piece's start).

        `fetched` holds its bytes. Nothing is looked at then before a sample is given, so no sample may be used before
        all are there: an error may come after them that tells that the piece began inside a member. `pass_over` is told
        the names of files that belong to no sample. Where a piece that begins with its shard has such files only, the
        log says so.
        """
        read = self._reading(shard, max_range_bytes)
        opened = None if fetched is None else fetched.open(shard, piece, read)
        num_passed, first_passed = 0, ""

        def note(name: str) -> None:
            nonlocal num_passed, first_passed
            num_passed, first_passed = num_passed + 1, first_passed or name
            pass_over(name)

        try:
            samples = self._samples(shard, piece, opened or read, resume=resume, pass_over=note)
            first = next(samples, None)
            if first is not None:
                yield first
                yield from samples
            elif num_passed and resume < 0 and (piece.whole or piece.begin == 0):
                _log.warning(
                    "%s: no sample where this lane reads it, but %d files whose names belong to no sample (without a "
                    "dot, one that begins with a dot, or in a folder like __this__); the first one is %r",
                    shard.url, num_passed, first_passed,
                )
            if opened is not None:
                opened.done()
        except (CorruptShardError, TruncatedShardError) as error:
            # Bytes that were altered on their way are requested again, not taken from memory or the cache.
            if opened is not None:
                opened.give_up()
            begin, end = (0, shard.size) if piece.whole else (piece.begin, max(piece.end, (error.offset or 0) + 1))
            self.storage.forget(
                shard.url, begin, min(end, shard.size), size=_known_size(shard), etag=shard.etag
            )
            raise

    def check_end(self, shard: Shard, piece: Piece, *, resume: int, max_range_bytes: int) -> None:
        """Follow the headers of a piece from the position `resume` (-1: its start) to its end, without their payloads.

        Raises:
            WrongCutError: they do not lead to where the next range begins.
        """
        if piece.whole or piece.end >= shard.size:
            return
        read = self._reading(shard, max_range_bytes)
        try:
            self._follow(shard, piece, read, partial(read, first_bytes=_LOOK_BYTES), None if resume < 0 else resume)
        except WrongCutError:
            raise
        except (CorruptShardError, TruncatedShardError) as error:
            self.next_range(shard, piece, damaged_at=error.offset or 0, max_range_bytes=max_range_bytes)

    def _reading(self, shard: Shard, max_range_bytes: int) -> Callable[..., Iterator[bytes]]:
        """What opens a range of the shard."""
        return partial(
            self.storage.chunks,
            shard.url,
            size=_known_size(shard),
            digest=shard.digest,
            etag=shard.etag or "",
            max_bytes=max_range_bytes,
        )

    def _samples(
        self,
        shard: Shard,
        piece: Piece,
        read: Callable[..., Iterator[bytes]],
        *,
        resume: int,
        pass_over: PassOver,
    ) -> Iterator[Sample]:
        wanted, limit = self.documents.field.wanted, self.documents.member_bytes
        if is_compressed(shard.url):
            samples = read_shard(
                read(0), url=shard.url, wanted=wanted, max_member_bytes=limit, pass_over=pass_over
            )
            yield from dropwhile(lambda sample: sample.position < resume, samples)
        elif piece.whole:
            start = max(resume, 0)
            yield from read_samples(
                read(start),
                url=shard.url,
                wanted=wanted,
                start=start,
                max_member_bytes=limit,
                open_range=read,
                pass_over=pass_over,
            )
        else:
            yield from read_range(
                read,
                partial(read, first_bytes=_LOOK_BYTES),
                begin=piece.begin,
                end=piece.end,
                size=shard.size,
                url=shard.url,
                wanted=wanted,
                max_member_bytes=limit,
                resume=None if resume < 0 else resume,
                open_begin=partial(read, first_bytes=_LOOK_BYTES + min(LOOK_BYTES, piece.end - piece.begin)),
                held=read if isinstance(read, Opened) else None,
                pass_over=pass_over,
            )

    def next_range(self, shard: Shard, piece: Piece, *, damaged_at: int, max_range_bytes: int) -> int:
        """Where the range after a damaged piece begins: the end of what is lost with it, as a `Sample.position`.

        A range trusts that the one before it arrives at its first header. The damaged one cannot; so after each
        damaged place its headers are followed to the cut, without using what they describe.

        Raises:
            WrongCutError: they do not lead to where the next range begins.
        """
        if is_compressed(shard.url):
            return _NO_ORDINAL
        if piece.whole or piece.end >= shard.size:
            return shard.size
        read = self._reading(shard, max_range_bytes)
        look = partial(read, first_bytes=_LOOK_BYTES)
        step = max(block_bytes_of(shard.digest), _LOOK_BYTES)
        try:
            right = find_sample(look, cut=piece.end, size=shard.size, url=shard.url).offset
        except (CorruptShardError, TruncatedShardError):
            return piece.end  # the next range is damaged where it begins, and meets this itself
        at = max(damaged_at, piece.begin)
        while at < piece.end:
            try:
                left = first_boundary(look, begin=at + 1, end=piece.end, size=shard.size, url=shard.url)
                if left is not None and left.offset > right:
                    what = f"the headers after the damage lead past byte {right}, where the next range begins"
                    raise WrongCutError(f"{what}; {CUT_REMEDY}", url=shard.url, offset=left.offset)
                if left is not None and left.offset < right:
                    self._follow(shard, piece, read, look, left.offset)
                break
            except WrongCutError:
                raise
            except (CorruptShardError, TruncatedShardError) as error:
                at = max(at + step, error.offset or 0)
        return right

    @staticmethod
    def _follow(
        shard: Shard,
        piece: Piece,
        read: Callable[[int, int], Iterator[bytes]],
        look: Callable[[int], Iterator[bytes]],
        resume: int | None,
    ) -> None:
        for _ in read_range(
            read,
            look,
            begin=piece.begin if resume is None else 0,  # 0: where it goes on there is nothing to prove before it
            end=piece.end,
            size=shard.size,
            url=shard.url,
            wanted=lambda _: False,
            max_member_bytes=0,
            resume=resume,
        ):
            pass

    def encode(self, document: Document) -> tuple[NDArray[np.integer], Mask | None]:
        """The document's tokens, with BOS and EOS as asked for (integers [n]), and its loss mask (bool [n] or None)."""
        if document.tokens is not None:
            return self.with_ends(document.tokens, document.loss_mask)
        assert document.text is not None, "a chat template has made tokens of messages"
        ids = self.tokenize(document.text, url=document.url, key=document.key, record=document.record)
        try:
            self.check_vocabulary(ids)
        except RecordError as error:
            raise RecordError(error.message, url=document.url, member=document.key) from error
        return self.with_ends(ids, None)

    def tokenize(self, text: str, *, url: str, key: str, record: int) -> NDArray[np.integer]:
        """The ids of a text, without BOS and EOS; an error names the shard, the sample and the record."""
        assert self.tokenizer is not None, "the dataset demands a tokenizer for text"
        try:
            return np.asarray(self.tokenizer.encode(text))
        except TokenizerError as error:
            raise TokenizerError(error.message, url=url, member=key) from error
        except Exception as error:  # a tokenizer of the user may raise anything
            error.add_note(f"while tokenizing {url}, sample {key!r}, record {record}")
            raise

    def check_vocabulary(self, ids: NDArray[np.integer]) -> None:
        """Raise a RecordError for a document with an id that the tokenizer's vocabulary does not have."""
        vocab_size = self.vocab_size
        if ids.dtype.kind in "iu" and ids.size and not (ids.min() >= 0 and ids.max() < vocab_size):
            wrong = next(token for token in ids.ravel().tolist() if not 0 <= token < vocab_size)
            raise RecordError(
                f"the tokenizer gave the token id {wrong}, and its vocab_size is {vocab_size}: ids must be from 0 to "
                f"{vocab_size - 1}"
            )

    def with_ends(self, ids: NDArray[np.integer], mask: Mask | None) -> tuple[NDArray[np.integer], Mask | None]:
        """A document's ids [n] and loss mask with BOS and EOS as asked for."""
        front, back = self._ends
        if not len(front) + len(back):
            return ids, mask
        wide = ids.dtype.itemsize > 4 or ids.dtype == np.uint32
        tokens: NDArray[np.integer] = np.concatenate((front, ids, back), dtype=np.int64 if wide else np.int32)
        if mask is not None:
            # BOS and EOS are targets where their neighbour in the document is one.
            ends = len(front), len(back)
            mask = np.pad(mask, ends, mode="edge") if len(mask) else np.ones(sum(ends), dtype=np.bool_)
        return tokens, mask

    def joined(self, ids: Sequence[NDArray[np.integer]]) -> Joined | None:
        """Documents' ids side by side, with BOS and EOS as asked for; None: each document must be checked by itself."""
        if not ids or any(each.dtype.kind not in "iu" or each.ndim != 1 for each in ids):
            return None
        front, back = self._ends
        tokens = np.concatenate([part for each in ids for part in (front, each, back)])
        if tokens.dtype.kind not in "iu" or (
            tokens.size and not (tokens.min() >= 0 and tokens.max() < self.vocab_size)
        ):
            return None
        ends = len(front) + len(back)
        return Joined(tokens.astype(np.int32, copy=False), [len(each) + ends for each in ids])

    def joined_with_ends(self, joined: Joined) -> Joined:
        """Documents that are tokens already, with BOS and EOS as asked for."""
        if self.bos_id is None and self.eos_id is None:
            return joined
        stops = list(accumulate(joined.lengths))[:-1]
        ids = np.split(joined.tokens, stops)
        masks = [None] * len(ids) if joined.loss_mask is None else np.split(joined.loss_mask, stops)
        return join(*zip(*map(self.with_ends, ids, masks), strict=True))

    @property
    def _ends(self) -> tuple[Tokens, Tokens]:
        """BOS and EOS, each int32 [1] or [0]."""
        front, back = ([] if token is None else [token] for token in (self.bos_id, self.eos_id))
        return np.array(front, np.int32), np.array(back, np.int32)

    def targets(self, tokens: NDArray[np.integer], mask: Mask | None) -> int:
        """How many of a document's tokens its own rows train, without those that `overflow="truncate"` cuts off."""
        kept = len(tokens)
        if self.packing.keeps_documents_whole and self.packing.overflow == "truncate":
            kept = min(kept, self.seq_len + 1)
        return max(kept - 1, 0) if mask is None else int(np.count_nonzero(mask[1:kept]))

    @property
    def window_bytes(self) -> int:
        """Bytes that a lane holds for its packing window; 0: it has none."""
        return self.packing.window_bytes(self.seq_len)

    def packer(self, *, at_once: int = 1, given: int = 0) -> AnyPacker:
        """A packer; `given`: how many packs of its first packing window are out."""
        return make_packer(
            at_once=at_once,
            given=given,
            seq_len=self.seq_len,
            boundary=self.boundary,
            packing=self.packing,
            pad_id=self.pad_id,
            bos_id=self.token_ids[0],
            eos_id=self.token_ids[1],
        )


def _known_size(shard: Shard) -> int | None:
    return shard.size if shard.size_known else None
