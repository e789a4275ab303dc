"""A packer from the arguments of `streampack.pack`, which are flat."""

from typing import Any

from streampack.packing.making import AnyPacker, make_packer
from streampack.packing.options import DEFAULT_WINDOW, Packing


def packer_of(
    *,
    packing: str = "wrap",
    overflow: str = "split",
    tail: str = "pad",
    lookahead: bool = True,
    window: int = DEFAULT_WINDOW,
    **arguments: Any,
) -> AnyPacker:
    record = Packing(packing, overflow=overflow, tail=tail, lookahead=lookahead, window=window)
    return make_packer(packing=record, **arguments)
