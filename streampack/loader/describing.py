"""A loader in words: what `repr(loader)` says between the parentheses.

In:    what a loader was made of, and the delivery of its batches once the run has begun.
Out:   its batches, its rank, its format, its lanes as far as they are known, its position, and its dataset.
Never: a wait for other ranks, for the storage, or for a call in another thread.
"""

from streampack.dataset.dataset import PackedDataset
from streampack.formats.consumers import Format
from streampack.loader.delivery import Delivery
from streampack.loader.passes import PassSettings


def describe(dataset: PackedDataset, settings: PassSettings, kind: Format, delivery: Delivery | None) -> str:
    """The words; `delivery`: None before the run has begun."""
    rank = f"rank {settings.rank} of {settings.num_ranks}"
    said = [f"batch_size={settings.batch_size}, {rank}, num_workers={settings.num_workers}, format={kind}"]
    # The lanes of a validation set are no lanes of a run: each iteration divides its packs among the ranks.
    if not dataset.is_validation:
        if delivery is not None:
            said.append(f"{delivery.commits.num_lanes} lanes")
        elif not dataset.auto_lanes:
            said.append(f"{dataset.num_lanes} lanes")
    packs, stage = (0, 0) if delivery is None else (delivery.commits.global_pack, delivery.stage)
    said.append(f"{packs} packs so far, stage {stage}")
    return "; ".join([*said, repr(dataset)])
