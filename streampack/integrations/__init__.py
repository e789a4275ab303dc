"""Adapters that save and load a loader's state with a trainer's own checkpoints, exactly.

    LightningLoader              trainer.fit(model, LightningLoader(loader, trainer), ckpt_path=...)
    PackedTrainerMixin           class Mine(PackedTrainerMixin, transformers.Trainer)
    register_for_checkpointing   register_for_checkpointing(accelerator, loader)

A trainer that saves `loader.state_dict()` of every rank, as torch.distributed.checkpoint does, needs no adapter. None
of these modules imports its library before it is used.
"""

from streampack.integrations.accelerate import register_for_checkpointing
from streampack.integrations.lightning import LightningLoader
from streampack.integrations.transformers import PackedTrainerMixin

__all__ = ["LightningLoader", "PackedTrainerMixin", "register_for_checkpointing"]
