"""The packer of a kind of packing.

In:  the options of packing. Out: a packer that is fed documents and gives packs.
"""

from functools import partial
from typing import TypeAlias

from streampack.packing.best_fit import BestFitPacker
from streampack.packing.options import Packing
from streampack.packing.packer import Packer
from streampack.packing.policies import BoundaryPolicy, ReplaceBoundary

AnyPacker: TypeAlias = Packer | BestFitPacker


def make_packer(
    *,
    seq_len: int,
    boundary: BoundaryPolicy | ReplaceBoundary | str,
    packing: Packing,
    pad_id: int = 0,
    bos_id: int | None = None,
    eos_id: int | None = None,
    at_once: int = 16,
    given: int = 0,
) -> AnyPacker:
    """Return the packer of `packing`.

    The arguments are those of `Packer`, and `given`: at a restart, `PackRows.given` of the pack before; more than 0
    under best fit only. A ConfigError says which cannot work together.
    """
    make: partial[Packer] | partial[BestFitPacker]
    if packing.has_windows:
        make = partial(BestFitPacker, given=given)
    else:
        assert not given, "packs of a window are out, and this packing has no windows"
        make = partial(Packer, at_once=at_once)
    return make(seq_len=seq_len, boundary=boundary, packing=packing, pad_id=pad_id, bos_id=bos_id, eos_id=eos_id)
