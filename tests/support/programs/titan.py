"""torchtitan's own `train` on the CPU, for which it is not made; everything else is its release.

In:  torchtitan's command line. Out: what it does, and a line a step from rank 0 as the examples print it.

Put in place of what needs an accelerator: the device's memory statistics, the attention (FlexAttention and varlen train
on a GPU only; this is its scaled dot product attention, causal over the pack), and the time-outs of NCCL's groups.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

torch._utils._get_available_device_type = lambda: "cpu"  # before torchtitan asks for it
for name, value in {
    "get_device_name": lambda device=None: "cpu",
    "get_device_properties": lambda device=None: SimpleNamespace(total_memory=2**30),
    "memory_stats": lambda device=None: {},
    "reset_peak_memory_stats": lambda: None,
    "empty_cache": lambda: None,
}.items():
    setattr(torch.cpu, name, value)

import torch.distributed as dist  # noqa: E402
import torchtitan.distributed.utils  # noqa: E402
import torchtitan.models.llama3  # noqa: E402
from torchtitan.components.metrics import MetricsProcessor  # noqa: E402
from torchtitan.models.common.attention import ScaledDotProductAttention  # noqa: E402
from torchtitan.train import main  # noqa: E402
from torchtitan.trainer import Trainer  # noqa: E402

from streampack.examples.devil import digest_of, print_step  # noqa: E402

torchtitan.models.llama3.get_attention_config = lambda backend: ScaledDotProductAttention.Config()
torchtitan.distributed.utils.set_pg_timeouts = lambda **options: None

digests: list[int] = []
batches_of = Trainer.batch_generator
log = MetricsProcessor.log


def noted(self: Trainer, data: Any) -> Iterator[Any]:
    for inputs, labels in batches_of(self, data):
        digests.append(digest_of(inputs["input"], inputs["positions"], labels))
        yield inputs, labels


def printed(self: MetricsProcessor, step: int, loss: float, *args: Any, **options: Any) -> None:
    log(self, step, loss, *args, **options)
    if dist.get_rank() == 0:
        print_step(step, loss, digests[-1])


Trainer.batch_generator = noted
MetricsProcessor.log = printed

if __name__ == "__main__":
    main()
