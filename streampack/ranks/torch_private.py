"""The names of torch that are not part of its documented interface, each with the reason why it is used.

In:  torch 2.6 or later; tried with the releases in `TRIED`.
Out: the names, or an ImportError that says which release of torch has changed them.

    new_gloo_group      a gloo group on the default store, which torch offers through `new_group` only; see `groups`
    TIMEOUT_S           torch's time limit of a collective, in seconds
    add_to_store        a sum in the default store that a rank adds to without waiting for another rank's Python
"""

from typing import cast

import torch
import torch.distributed as dist

TRIED = ("2.6.0", "2.13.0")
"""Releases of torch with which the tests of these names were run."""

try:
    from torch.distributed import ProcessGroupGloo
    from torch.distributed.constants import default_pg_timeout
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store
except ImportError as error:
    raise ImportError(
        f"torch {torch.__version__} no longer has what streampack uses of it ({error}); tried with {', '.join(TRIED)}"
    ) from error

TIMEOUT_S = default_pg_timeout.total_seconds()
"""For which a collective waits."""

__all__ = ["TIMEOUT_S", "TRIED", "add_to_store", "new_gloo_group"]


def new_gloo_group(name: str, *, rank: int, size: int) -> dist.ProcessGroup:
    """A gloo group of `size` ranks that use the same name, and in it the given rank of this process; a collective.

    It needs torch.distributed to be initialized, and is known to nobody but the caller.
    """
    store = PrefixStore(name, _get_default_store())
    group = ProcessGroupGloo(store, rank, size, default_pg_timeout)
    return cast("dist.ProcessGroup", group)  # torch's stubs hide that it is one


def add_to_store(key: str, amount: int) -> int:
    """Add to a number that all ranks of the job share, 0 at first; returns the sum so far.

    It needs torch.distributed to be initialized. RuntimeError where the store is gone.
    """
    return int(_get_default_store().add(f"streampack/{key}", amount))
