"""`streampack.pack`: packs of documents that are token ids already. No torch, no IO."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from streampack.errors import ConfigError
from streampack.packing.blocks import spell_out
from streampack.packing.making import AnyPacker, make_packer
from streampack.packing.options import DEFAULT_WINDOW, Overflow, Packing, PackingKind, Tail
from streampack.packing.packs import Pack
from streampack.packing.policies import BoundaryPolicy, ReplaceBoundary
from streampack.records import TokenizedDocument


def pack(
    documents: Iterable[Sequence[int] | NDArray[np.integer] | TokenizedDocument],
    *,
    seq_len: int,
    boundary: BoundaryPolicy | ReplaceBoundary | str = BoundaryPolicy.MASK,
    packing: Packing | PackingKind | str = PackingKind.WRAP,
    overflow: Overflow | str = Overflow.SPLIT,
    tail: Tail | str = Tail.PAD,
    pad_id: int = 0,
    bos_id: int | None = None,
    eos_id: int | None = None,
    lookahead: bool = True,
    window: int = DEFAULT_WINDOW,
) -> Iterator[Pack]:
    """Return the packs of the documents, one by one as they are made; the documents may be endless.

    Args:
        documents: Token ids of each document, BOS and EOS already in, or TokenizedDocument where some tokens may not
            be targets.
        seq_len: Rows of a pack, at least 2.
        boundary: What becomes of the row whose input is a document's last token: a BoundaryPolicy, its value, or
            ReplaceBoundary(token_id).
        packing: "wrap" cuts the rows every seq_len; "next_fit" keeps documents whole, in order of arrival; "best_fit"
            keeps them whole and fills packs best, with boundary="mask" or "trim". A `Packing` has `overflow`, `tail`,
            `lookahead` and `window` in it.
        overflow: What "next_fit" and "best_fit" do with a document longer than a pack: "split", "truncate", "drop" or
            "error".
        tail: What becomes of rows that do not fill a last pack: "pad" or "drop".
        pad_id: The token on padding.
        bos_id: For boundary="mask_bos_target"; the two policies by value need tokens that differ.
        eos_id: For boundary="mask_eos_input".
        lookahead: False: the last row of a full pack has no label, as for a model that shifts labels itself.
        window: How many packs "best_fit" fills together.

    Raises:
        ConfigError: An argument, or a combination, that cannot work; raised by the call itself.
        RecordError: A document that is not token ids; raised when its turn comes.
    """
    if not isinstance(packing, Packing):
        packing = Packing(packing, overflow=overflow, tail=tail, lookahead=lookahead, window=window)
    elif (overflow, tail, lookahead, window) != (Overflow.SPLIT, Tail.PAD, True, DEFAULT_WINDOW):
        raise ConfigError("packing is a Packing(...): give overflow, tail, lookahead and window there, not to pack().")
    packer = make_packer(
        seq_len=seq_len,
        boundary=boundary,
        packing=packing,
        pad_id=pad_id,
        bos_id=bos_id,
        eos_id=eos_id,
    )
    return _packs(packer, documents)


def _packs(
    packer: AnyPacker, documents: Iterable[Sequence[int] | NDArray[np.integer] | TokenizedDocument]
) -> Iterator[Pack]:
    for document in documents:
        if isinstance(document, TokenizedDocument):
            packer.feed(document.tokens, document.loss_mask)
        else:
            packer.feed(document)
        for rows in iter(packer.pop, None):
            yield spell_out(rows, seq_len=packer.seq_len, pad_id=packer.pad_id)
    packer.finish()
    for rows in iter(packer.pop, None):
        yield spell_out(rows, seq_len=packer.seq_len, pad_id=packer.pad_id)
