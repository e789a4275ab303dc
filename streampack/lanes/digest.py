"""The digest of a pack: 64 bits of its global number and its content.

In:    a pack and its place in the global order.
Out:   a number; those of a run's packs add up to the same sum in any order.
"""

import sys
from struct import Struct

import numpy as np
import xxhash

from streampack.packing.packs import PackRows

_HEAD = Struct("<3q").pack
_IS_LITTLE_ENDIAN = sys.byteorder == "little"  # as digests are on every machine


def pack_digest(rows: PackRows, global_pack: int, *, seq_len: int, pad_id: int) -> int:
    """The digest of a pack, its 64 bits with a sign."""
    digest = xxhash.xxh3_64(_HEAD(global_pack, seq_len, pad_id))
    for array in (rows.tokens, rows.seq_lens, rows.edge_labels):
        digest.update((array if _IS_LITTLE_ENDIAN else array.byteswap()).data)
    if rows.ignored is not None:
        digest.update(np.packbits(rows.ignored).data)
    number: int = digest.intdigest()
    return number - (number >> 63 << 64)
