"""On a GPU: a training with FlexAttention has the data of a quiet run, also when its workers are killed."""

import contextlib
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.workers import worker_pids
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import streampack
from streampack.formats import document_mask
from streampack.testing import ByteTokenizer, write_shards

SEQ_LEN, BATCH_SIZE, STEPS, WIDTH, HEADS, WORKERS = 512, 8, 60, 128, 4, 3

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    # What torch itself warns of while it compiles is not ours.
    pytest.mark.filterwarnings("default"),
]


class Decoder(nn.Module):
    """Two layers of FlexAttention under the mask of documents."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, WIDTH), nn.Embedding(SEQ_LEN, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, vocab_size)

    def forward(self, batch: dict[str, Tensor], attend: Callable[..., Tensor]) -> Tensor:
        mask = create_block_mask(document_mask(batch["segment_ids"]), len(batch["tokens"]), None, SEQ_LEN, SEQ_LEN)
        hidden = self.tokens(batch["tokens"]) + self.positions(batch["position_ids"])
        for layer in self.layers:
            parts = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in layer(hidden).chunk(3, dim=-1))
            hidden = hidden + attend(*parts, block_mask=mask).transpose(1, 2).flatten(-2)
        return self.head(hidden)


def make_loader(shards: list[str], *, num_workers: int) -> streampack.PackedDataLoader:
    dataset = streampack.PackedDataset(shards, ByteTokenizer(), SEQ_LEN, num_lanes=12, seed=5)
    return streampack.PackedDataLoader(dataset, BATCH_SIZE, num_workers=num_workers)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    words = Path(__file__).parents[1] / "support" / "data" / "prose.txt"
    prose, rng = words.read_text("utf-8"), random.Random(1)
    starts = [rng.randrange(len(prose) - 3000) for _ in range(2000)]
    texts = [prose[start : start + rng.randint(20, 3000)] for start in starts]
    return write_shards(tmp_path_factory.mktemp("shards"), texts, documents_per_shard=250)


@pytest.fixture(scope="module")
def quiet(shards: list[str]) -> int:
    """The digest of the run in one process that trains nothing."""
    with make_loader(shards, num_workers=0) as loader:
        for _ in zip(range(STEPS), loader):
            pass
        return loader.digest()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kills", [(), (10, 25, 40)], ids=["no kill", "workers killed three times"])
@pytest.mark.parametrize("attempt", range(3))
def test_a_training_has_the_data_of_a_quiet_run(
    shards: list[str], quiet: int, kills: tuple[int, ...], attempt: int
) -> None:
    torch.manual_seed(0)
    model = Decoder(ByteTokenizer().vocab_size).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    attend = torch.compile(flex_attention)
    losses = []
    with make_loader(shards, num_workers=WORKERS) as loader:
        for step, batch in zip(range(STEPS), loader):
            if step in kills:
                with contextlib.suppress(ProcessLookupError):  # one that was killed before may not be missed yet
                    os.kill(random.Random(step).choice(worker_pids(loader)), signal.SIGKILL)
            on_gpu = {name: value.cuda(non_blocking=True) for name, value in batch.items()}
            logits = model(on_gpu, attend)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), on_gpu["labels"].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert batch["tokens"].is_pinned()
        assert loader.digest() == quiet
        assert loader.stats()["worker_restarts"] >= bool(kills)
    assert losses[-1] < losses[0]
