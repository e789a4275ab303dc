"""Where a segment of a pack comes from: the record that a user gets with `provenance=True`."""

from typing import NamedTuple


class Provenance(NamedTuple):
    """The document of a segment, and which of its rows the segment holds."""

    source: str
    """The name of the source."""
    url: str
    """Of the shard."""
    key: str
    """Of the sample."""
    sample: int
    """`Sample.position`."""
    record: int
    """Index of the record in its member."""
    part: int
    """Index in what the transform made of the record."""
    row: int
    """The document's input row with which the segment begins."""
    length: int
    """Input rows of the segment."""
    targets: int = 0
    """Of the whole document, over all its packs: its tokens that its own rows train."""
    epoch: int = 0
    """Of the source in the lane, counted from 0."""
    shard: int = 0
    """Index of the shard among those of the source, as listed."""
