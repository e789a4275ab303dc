"""Where the examples run, and what their attention on a GPU has in common with that on a CPU."""

from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from streampack.examples import running, train


@pytest.mark.parametrize(
    ("gpus", "processes", "has"),
    [(0, None, False), (1, None, True), (8, "8", True), (1, "2", False), (0, "2", False)],
)
def test_an_example_runs_on_gpus_where_each_process_can_have_one(
    monkeypatch: pytest.MonkeyPatch, gpus: int, processes: str | None, has: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert running.has_gpus() is has


def test_collectives_of_the_state_are_on_the_cpu_wherever_the_model_is() -> None:
    assert running.backend_for(torch.device("cpu")) == "gloo"
    assert running.backend_for(torch.device("cuda", 3)) == "cpu:gloo,cuda:nccl"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_attention_by_blocks_is_attention_by_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "compiled_flex_attention", lambda: flex_attention)
    segments = torch.tensor([[1] * 50 + [2] * 70 + [0] * 8, [1] * 128])
    draw: Any = torch.Generator().manual_seed(0)
    rows = [torch.randn(2, 2, 128, 16, generator=draw) for _ in range(3)]
    by_blocks = train.attention_by_blocks(segments)(*rows)
    by_mask = train.attention_by_mask(segments)(*rows)
    assert torch.allclose(by_blocks, by_mask, atol=1e-5)
