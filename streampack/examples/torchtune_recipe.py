"""torchtune: its recipe full_finetune_single_device, with packs instead of its map-style datasets.

    python -m streampack.examples.torchtune_recipe output_dir=RUN [--config torchtune_recipe.yaml] [key=value ...]

In:  a configuration as torchtune's recipes take it (by default torchtune_recipe.yaml, beside this file). Out: a line a
step, and in RUN torchtune's checkpoints, the loader's state in its recipe state. Killed and started again it continues
from the newest one.

torchtune means its recipes to be copied and changed (`tune cp`). What has to change is what `PackedRecipe` overrides.
"""

import importlib.util
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torchtune
from omegaconf import DictConfig
from torch import Tensor
from torchtune import config

from streampack import PackedDataLoader, PackedDataset, SentencePieceTokenizer, Tokenizer
from streampack.examples.devil import SHARDS, TOKENIZER, digest_of, print_step
from streampack.examples.running import print_finished
from streampack.formats.consumers import Batch

FINISHED = "finished"
"""In a run's folder: how many epochs it had when it ended."""


def demo_tokenizer() -> SentencePieceTokenizer:
    """The component that the configuration names under `tokenizer`; the recipe hands it to the one under `dataset`."""
    return SentencePieceTokenizer(TOKENIZER)


class RecipeLoader(PackedDataLoader):
    """A loader with what else the recipe asks for: a length, and a sampler that is told of each epoch."""

    def __init__(self, dataset: PackedDataset, batch_size: int, *, batches_per_epoch: int, **options: Any) -> None:
        super().__init__(dataset, batch_size, **options)
        self.batches_per_epoch = batches_per_epoch

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        # islice takes no batch after the last one, so the next epoch begins with the very next batch.
        return itertools.islice(super().__iter__(), self.batches_per_epoch)

    @property
    def sampler(self) -> "RecipeLoader":
        return self

    def set_epoch(self, epoch: int) -> None:
        """Nothing to do: the loader's state knows where it is."""


def packed_loader(
    tokenizer: Tokenizer,
    *,
    shards: str | None,
    seq_len: int,
    num_lanes: int,
    batch_size: int,
    batches_per_epoch: int,
    num_workers: int,
) -> RecipeLoader:
    """The component that the configuration names under `dataset`; without `shards`, on the demo data."""
    dataset = PackedDataset(shards or SHARDS, tokenizer, seq_len, num_lanes=num_lanes)
    return RecipeLoader(
        dataset,
        batch_size,
        batches_per_epoch=batches_per_epoch,
        num_workers=num_workers,
        format="torchtune",
        mask=True,  # the recipe gives all that is left of a batch to the model, as it does with packed=True
    )


def stock_recipe() -> Any:
    """The recipe's class. `recipes` is installed beside torchtune, but refuses to be imported."""
    path = Path(torchtune.__file__).parents[1] / "recipes" / "full_finetune_single_device.py"
    spec = importlib.util.spec_from_file_location("full_finetune_single_device", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FullFinetuneRecipeSingleDevice


class PackedRecipe(stock_recipe()):  # type: ignore[misc]  # a base class that is known when it is loaded
    """The stock recipe, and three of its methods."""

    def _setup_data(
        self,
        cfg_dataset: DictConfig,
        shuffle: bool,
        batch_size: int,
        collate_fn: str,
        dataloader_state_dict: dict[str, Any] | None = None,
    ) -> RecipeLoader:
        # The stock method puts a sampler and a DataLoader around a dataset of known length.
        loader: RecipeLoader = config.instantiate(cfg_dataset, self._tokenizer, batch_size=batch_size)
        if dataloader_state_dict is not None:
            loader.load_state_dict(dataloader_state_dict)
        return loader

    def _loss_step(self, batch: dict[str, Tensor]) -> Tensor:
        digest = digest_of(batch["tokens"], batch["labels"])
        # Labels of packs are shifted already, document by document, as they are in torchtune's repository. The recipes
        # of release 0.6.1 still shift them here, which would train each row on the token after the next.
        labels = batch.pop("labels")
        with self.activations_handling_ctx:
            loss: Tensor = self._loss_fn(self._model(**batch), labels)
        print_step(self.global_step + 1, loss.item(), digest)
        return loss

    def save_checkpoint(self, epoch: int) -> None:
        super().save_checkpoint(epoch)  # the model, then the recipe state: optimizer, loader, epochs
        folder = Path(self._output_dir, "recipe_state")
        if (written := folder / "recipe_state.pt").exists():
            # torchtune overwrites this file each time. Under a name of its own it is whole or not there, and the model
            # of the same epoch has been written before it: a kill in the middle leaves the last pair as it was.
            written.rename(folder / f"epoch_{epoch}.pt")
        else:  # torchtune writes none after the last epoch
            Path(self._output_dir, FINISHED).write_text(str(epoch + 1))


def resume(cfg: DictConfig) -> None:
    """Point the configuration at the newest checkpoint, if there is one."""
    folder = Path(cfg.output_dir, "recipe_state")
    epochs = [int(path.stem.removeprefix("epoch_")) for path in folder.glob("epoch_*.pt")]
    if epochs:
        cfg.resume_from_checkpoint = True
        cfg.checkpointer.recipe_checkpoint = f"recipe_state/epoch_{max(epochs)}.pt"
        cfg.checkpointer.checkpoint_files = [f"epoch_{max(epochs)}/model-00001-of-00001.bin"]


def make_initial_model(cfg: DictConfig) -> None:
    """Write the checkpoint that torchtune begins with: random weights, where a real run has a model's."""
    path = Path(cfg.checkpointer.checkpoint_dir, "model.pt")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(cfg.seed)
        torch.save(config.instantiate(cfg.model).state_dict(), path.with_suffix(".unfinished"))
        path.with_suffix(".unfinished").rename(path)


@config.parse  # type: ignore[untyped-decorator]  # torchtune's types are not looked at
def recipe_main(cfg: DictConfig) -> None:
    """Run the recipe from its newest checkpoint."""
    finished = Path(cfg.output_dir, FINISHED)
    if finished.exists() and (epochs := int(finished.read_text())) >= cfg.epochs:
        print_finished(cfg.output_dir, epochs * cfg.dataset.batches_per_epoch, f"epochs={epochs + 1}")
        return
    make_initial_model(cfg)
    resume(cfg)
    recipe = PackedRecipe(cfg=cfg)
    recipe.setup(cfg=cfg)
    recipe.train()
    recipe.cleanup()


if __name__ == "__main__":
    if "--config" not in sys.argv:
        sys.argv += ["--config", os.fspath(Path(__file__).with_suffix(".yaml"))]
    recipe_main()
