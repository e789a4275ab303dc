"""A packer from the arguments of `streampack.pack`, which are flat."""

from typing import Any

from streampack.packing.options import Packing
from streampack.packing.packer import Packer


def packer_of(
    *,
    packing: str = "wrap",
    overflow: str = "split",
    tail: str = "pad",
    lookahead: bool = True,
    **arguments: Any,
) -> Packer:
    return Packer(packing=Packing(packing, overflow=overflow, tail=tail, lookahead=lookahead), **arguments)
