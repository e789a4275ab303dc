"""How many packs of a validation set that `num_packs` bounds are of each source.

In:    the bound; of each source the bytes that are held out, and how many packs it has.
Out:   whole numbers that add up to the bound, or to all packs that there are.
Never: a part that depends on ranks, workers, or the order in which packs were counted.

    10 packs    held out   6 MiB  3 MiB  1 MiB       one of each, and 7 in proportion: 4, 2, 1
                there are    100     50      1       so the last one is divided between the first two
                parts          5      4      1
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

from streampack.lanes.run import RunSource


def held_out_bytes(source: RunSource) -> int:
    """About how many bytes of the shards are held out of a source."""
    by_document = source.pipelines[0].documents.hold_out
    total = source.corpus.total_bytes
    return total if by_document is None else int(total * by_document.fraction)


def parts(num_packs: int, held_out: Sequence[int], available: Sequence[int]) -> list[int]:
    """How many packs each source gives: one if it has any, and of the others a part in proportion to its bytes.

    What a source has too few packs for is divided among the others in the same way.

    Args:
        num_packs: of all sources, at least as many as there are sources.
        held_out: bytes of each source.
        available: packs of each source; of one that is not counted to its end, `num_packs`.
    """
    found = [min(packs, 1) for packs in available]
    while (left := num_packs - sum(found)) and (more_in := [i for i, most in enumerate(available) if found[i] < most]):
        edges = list(accumulate((max(held_out[index], 1) for index in more_in), initial=0))
        for index, (begin, end) in zip(more_in, pairwise(edges), strict=True):
            more = left * end // edges[-1] - left * begin // edges[-1]
            found[index] = min(found[index] + more, available[index])
    return found
