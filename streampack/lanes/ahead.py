"""What a lane has read and tokenized, and not used yet.

In:    a reader; how many rows the next packs lack.
Out:   documents as tokens, and whatever else the reader meets, in order.
Never: an error before the turn of what it takes the place of has come.

Python that runs after a tokenizer has emptied the processor's caches takes several times as long, and a step for many
documents costs little more than for one. So about as many documents are read as the packs lack, then they are
tokenized: a stage at a time.
"""

from collections import deque
from collections.abc import Iterator
from typing import TypeAlias

from streampack.lanes.batches import DocumentBatch
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.reader import EpochStart, LaneReader, SectionStart
from streampack.lanes.skipping import ReadError
from streampack.lanes.tokenizing import TokenizedBatch, tokenized
from streampack.metrics import clock

_TOKENS_PER_BYTE = 1.0  # assumed until the first documents are tokenized; there are hardly ever more
_MOST_BYTES_PER_TOKEN = 32  # assumed at most, or a few documents with hardly any tokens would have too much read

Item: TypeAlias = TokenizedBatch | ReadError | EpochStart | SectionStart | Exception | None


class ReadAhead:
    """Items of one lane, in order."""

    def __init__(self, pipeline: Pipeline, *, lane: int) -> None:
        """`lane`: its number."""
        self._pipeline = pipeline
        self._lane = lane
        self._bytes, self._tokens = 1.0, _TOKENS_PER_BYTE
        self.items: deque[Item] = deque()
        """The last one is an exception where reading failed, None at the lane's end."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the tokens."""
        return sum(item.joined.tokens.nbytes for item in self.items if isinstance(item, TokenizedBatch))

    def fill(self, reader: LaneReader, lacking_rows: int) -> None:
        """Read about as many documents as have so many rows; where something else comes next, that."""
        per_byte = max(self._tokens / self._bytes, 1 / _MOST_BYTES_PER_TOKEN)
        reader.demand.num_bytes = max(int(lacking_rows / per_byte), 1)
        before = clock.switch(clock.TAR)
        try:
            self.items += self._next(reader)
        except Exception as error:  # noqa: BLE001 - raised when its turn comes
            self.items.append(error)
        finally:
            clock.switch(before)

    def _next(self, reader: LaneReader) -> Iterator[Item]:
        event = reader.next()
        if isinstance(event, DocumentBatch):
            self._bytes += event.num_bytes
            clock.switch(clock.TOKENIZE)
            for item in tokenized(self._pipeline, event, lane=self._lane):
                if isinstance(item, TokenizedBatch):
                    self._tokens += len(item.joined.tokens)
                yield item
        else:
            yield event
