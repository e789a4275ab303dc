"""`max_bad`, the bound on what a whole run may skip.

In:    a rank's items in its order, as the workers have made them.
Out:   the same items; in the place of the pack, or of the lane's end, that is too much, the error that ends the run.
Never: a collective. A rank learns the sum of all (`adding`) when it has skipped something itself; at which of its packs
       that is depends on how far the others are.

A lane alone never skips more than that either: `SkipPolicy` in `lanes/skipping.py` sees to it, at the record.
"""

from collections.abc import Callable, Iterator, Sequence

from streampack.errors import ShardError
from streampack.lanes.position import REST_OF_PIECE, SkippedRange
from streampack.lanes.skipping import allowed_bad
from streampack.loader.adding import SharedCount
from streampack.loader.dealing import Item
from streampack.loader.messages import DOCUMENTS
from streampack.state.checkpoint import Committed


class MaxBad:
    """The bound, and what this rank has told the others since the run began or a state was loaded."""

    def __init__(self, max_bad: float, *, num_ranks: int, shared: SharedCount, url_of: Callable[[int], str]) -> None:
        """`shared`: what the ranks have skipped; `url_of`: the URL of a shard, by its index."""
        self._max_bad = max_bad
        self._num_ranks = 1 if shared.is_alone else num_ranks
        self._shared = shared
        self._url_of = url_of

    def watch(self, items: Iterator[Item], committed: Committed) -> Iterator[Item]:
        """The items of a pass that continues from `committed`, up to the one that is too much."""
        num_bad, num_documents = committed.num_skipped(), committed.counts().documents
        if num_bad != self._shared.told:  # a pass that was left had made more packs than were handed out
            self._shared.tell(num_bad)
        for item in items:
            pack = item.pack
            skipped_ranges: Sequence[SkippedRange] = ()
            if pack is not None:
                num_documents += int(pack.message.changes[pack.number, DOCUMENTS])
                skipped_ranges = pack.skipped_ranges if pack.message.skipped_ranges else ()
            for end in item.ends:
                num_documents += end.counts.documents
                skipped_ranges = (*skipped_ranges, *end.skipped_ranges)
            try:
                for skipped_range in skipped_ranges:
                    num_bad += 1
                    lane = committed.lanes[item.lane_index]
                    self.check(num_bad=num_bad, num_documents=num_documents, lane=lane, last=skipped_range)
            except ShardError as error:
                yield item._replace(pack=None, ends=(), error=error)
                return
            yield item

    def check(self, *, num_bad: int, num_documents: int, lane: int, last: SkippedRange) -> None:
        """Raise where all ranks have skipped more than the bound.

        Args:
            num_bad: how much this rank has skipped since the start of the run, with what it skips now.
            num_documents: how many documents it has met, up to the pack with which it skips that.
            lane: which lane skips something now.
            last: what that is.

        Raises:
            ShardError: it is too much; the pack must not be handed out.
        """
        total = self._shared.tell(num_bad)
        documents = num_documents * self._num_ranks
        if total <= allowed_bad(self._max_bad, documents):
            return
        what = "the rest of a broken shard" if last.record == REST_OF_PIECE else f"record {max(last.record, 0)}"
        of = f" of about {documents} documents" if isinstance(self._max_bad, float) else ""
        raise ShardError(
            f"the run has skipped {total} bad records or shards{of}, more than max_bad={self._max_bad}; the last of "
            f"them is in lane {lane}: {what} of the sample at {last.first}. The batch with it is not handed out. "
            "Repair the data or raise max_bad.",
            url=self._url_of(last.shard),
        )
