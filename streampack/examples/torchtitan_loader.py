r"""torchtitan: its own trainer, with streampack as the data loader that the configuration names.

    torchrun --nproc-per-node 2 -m torchtitan.train --module streampack.examples.torchtitan_loader \
        --config llama3_demo --dump_folder RUN

In:  what torchtitan's trainer hands to a data loader. Out: batches for its models, whose attention keeps the documents
of a pack apart by their positions; and a state in tables of lanes, which torchtitan's checkpoints hold beside model
and optimizer. Killed and started again, also on other ranks, the same command continues from the newest checkpoint.

For release 0.3.0. torchtitan trains on accelerators only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sentencepiece import SentencePieceProcessor
from torch import Tensor
from torchtitan.components.checkpoint import CheckpointManager
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.models.llama3.config_registry import llama3_debugmodel
from torchtitan.trainer import Trainer

from streampack import PackedDataLoader, PackedDataset
from streampack.examples.devil import SEQ_LEN, SHARDS, TOKENIZER


class StreampackDataLoader(BaseDataLoader):
    """The loader; everything under `dataloader` in the configuration, and on the command line, is its Config."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        """What a PackedDataset and its loader need in addition to what the trainer knows."""

        shards: str = SHARDS
        """A glob, braces, a folder or @manifest.jsonl."""
        tokenizer_path: str = TOKENIZER
        """A SentencePiece model or a tokenizer.json, such as the one in the trainer's folder of assets."""
        num_lanes: int = 24
        """Every number of data-parallel ranks that the run may use divides it."""
        num_workers: int = 2
        """Processes of each rank."""

    def __init__(
        self, config: Config, *, dp_world_size: int, dp_rank: int, seq_len: int, local_batch_size: int, **others: Any
    ) -> None:
        dataset = PackedDataset(config.shards, config.tokenizer_path, seq_len, num_lanes=config.num_lanes)
        # torchtitan gives the same data-parallel rank to its tensor-, context- and pipeline-parallel peers, so they
        # get the same packs.
        self.loader = PackedDataLoader(
            dataset, local_batch_size, num_workers=config.num_workers, dp_rank=dp_rank, dp_size=dp_world_size
        )

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        # [packs, rows], as 0.3.0 takes them; for later versions, which take all rows in one line, give the loader
        # format="torchtitan" and yield its batches as they are.
        for batch in self.loader:
            yield {"input": batch["tokens"], "positions": batch["position_ids"]}, batch["labels"]

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loader.load_state_dict(state_dict)

    def close(self) -> None:
        """End the workers."""
        self.loader.close()


class DemoTokenizer(BaseTokenizer):
    """The trainer wants a tokenizer, though the loader has its own; a real run keeps torchtitan's."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        """Nothing to choose."""

    def __init__(self, config: Config, *, tokenizer_path: str) -> None:
        super().__init__()
        self.model = SentencePieceProcessor(model_file=TOKENIZER)
        self.eos_id = self.model.eos_id()

    def encode(self, text: str) -> list[int]:
        return list(self.model.encode(text))

    def decode(self, tokens: list[int]) -> str:
        return str(self.model.decode(tokens))

    def get_vocab_size(self) -> int:
        return int(self.model.vocab_size())


def llama3_demo() -> Trainer.Config:
    """The debugging model on the demo data: what `--config` names."""
    config = llama3_debugmodel()
    config.dataloader = StreampackDataLoader.Config()
    config.tokenizer = DemoTokenizer.Config()
    config.training.seq_len = SEQ_LEN
    config.training.steps = 20
    config.debug.seed = 0  # or each start draws its own, also of the first weights
    config.checkpoint = CheckpointManager.Config(enable=True, interval=5, last_save_model_only=False)
    config.validator.enable = False
    return config
