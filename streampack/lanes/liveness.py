"""Whether an endless lane will ever give a pack: what each epoch has added to it, until there is no hope.

In:    at the start of each epoch, how many packs the lane has given and how many rows wait for the next one.
Out:   nothing; or why no pack will come.
Never: a lane given up that gets nearer to a pack: one of 30 rows an epoch gives packs of 4,096.

    epoch           0    1    2    3    4
    rows that wait  0    30   60   26   56     packs of 64 rows, all of them without a target and so never given
    most so far     0    30   60   60   60     epochs 2 and 3 have brought the lane no nearer
"""

from streampack.documents.excluded import Excluded
from streampack.documents.split import HoldOut
from streampack.errors import ConfigError

_MOST_EPOCHS = 100
"""Epochs without a shard for the lane, in times the number of lanes: where each lane gets the only shard with an equal
chance, this is too few once in e**100 cases."""
_MOST_READS = 10
"""Epochs in which the lane reads and comes no nearer to a pack: in times the whole corpus, of which it reads an L-th
in each, and `_MOST_EPOCHS` at least."""


class Liveness:
    """What one lane of an endless run has got since its last pack."""

    def __init__(
        self, *, num_lanes: int, repeats_pieces: bool, repeats_documents: bool, num_blocks: int | None = None
    ) -> None:
        """Whether the lane reads the same pieces in each epoch, and whether they give the same documents each time.

        `num_blocks`: of an epoch, where its pieces are blocks.
        """
        self._num_lanes = num_lanes
        self._num_blocks = num_blocks
        self._repeats_pieces = repeats_pieces
        self._repeats_documents = repeats_documents and repeats_pieces
        self._most_empty = _MOST_EPOCHS * num_lanes
        self._most_read = max(_MOST_EPOCHS, _MOST_READS * num_lanes)
        self._packs = -1
        self._num_epochs = 0
        self._rows = self._most_rows = 0
        self._num_pieces = 0
        self._empty = self._read = self._same = 0
        """Epochs since the lane got nearer to a pack: without a piece; with some; and that changed nothing at all."""

    def why_dead(self, *, packs: int, rows: int, num_pieces: int) -> str | None:
        """Why no pack will come, as an epoch of `num_pieces` begins; None: one may.

        `packs`: how many the lane has given; `rows`: how many wait in its packer.
        """
        if self._repeats_pieces and not num_pieces:
            if self._num_blocks is None:
                return "no shard falls into its range"
            return (
                f"{self._num_blocks} blocks, of which a shard that is read whole is one, for {self._num_lanes} lanes: "
                f"num_lanes must be at most {self._num_blocks}, or use more shards, or some that can be cut"
            )
        self._num_epochs += 1
        if packs != self._packs or rows > self._most_rows or self._num_epochs <= 2:  # of the first, a part may be left
            self._empty = self._read = self._same = 0
            self._most_rows = rows
        else:
            self._same = self._same + 1 if rows == self._rows else 0
            self._empty += not self._num_pieces
            self._read += self._num_pieces > 0
        self._packs, self._rows, self._num_pieces = packs, rows, num_pieces
        # Rows of the epoch before may be in the first of two epochs that are alike, so one more tells.
        if self._repeats_documents and self._same > (rows > 0):
            return f"an epoch brings it no nearer to one, and its epochs are all alike; {rows} rows wait"
        if self._empty >= self._most_empty or self._read >= self._most_read:
            return f"{self._empty + self._read} epochs have brought it no nearer to one; {rows} rows wait"
        return None


def dead_lane(
    why: str,
    *,
    lane: int,
    num_lanes: int,
    source: str,
    stage: int,
    excluded: Excluded | None,
    hold_out: HoldOut | None,
) -> ConfigError:
    """The error for a lane of which `Liveness.why_dead` says why.

    Args:
        why: what it says.
        lane: the lane's number.
        num_lanes: of the run.
        source: the name of the source that gives no pack; "": the data have no names.
        stage: the first one in which the source is cut as now.
        excluded: what stages leave out of it.
        hold_out: which documents of it are read.
    """
    which, remedy = "", "or a finite run (epochs=1)"
    if source:
        which, remedy = f", source {source!r},", "max_epochs, or leave the source out (weight 0)"
    if excluded is not None:
        stages = f"stages[{stage}]" if not stage else f"the stages up to stages[{stage}]"
        why += f"; exclude of {stages} leaves {excluded.num_entries:,} of its records out"
        remedy = f"fewer lines in exclude, {remedy}"
    if hold_out is not None:
        why += f"; {hold_out} decides which documents it has"
        remedy = f"a smaller fraction, {remedy}" if which else "or a smaller fraction"
    return ConfigError(
        f"lane {lane} of {num_lanes}{which} gives no pack ({why}), and an endless run would wait for it for ever. Use "
        f"fewer lanes (num_lanes), more or larger shards, {remedy}. The log names shards that hold no sample."
    )
