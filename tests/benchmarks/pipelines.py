"""Text to packs of 4096 with labels, by other libraries, each as its own documentation does it; all do the same work.

In:  documents, as shards or written in the library's own format (not timed), and a tokenizer: SentencePiece, or
     `tokenizers` for a byte-level BPE.
Out: batches of 8 packs: tokens and labels, int64 [8, 4096]. Each document is BOS + ids + EOS, where the tokenizer has
     them; what does not fill a pack at the end is left out.

The packers written by hand carry one token over, so that the last label of a pack is the first token of the next one.
"""

import importlib.machinery
import itertools
import os
import sys
import tarfile
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import Model
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

SEQ_LEN, BATCH_SIZE = 4096, 8

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Source:
    """The same documents for everyone."""

    folder: Path
    """For what a library writes itself; its own."""
    shards: list[str]
    """Tars with .txt members."""
    texts: list[str]
    ids: list[np.ndarray]
    """Of the documents, BOS and EOS in."""


@dataclass(frozen=True)
class Peer:
    """One library's way."""

    name: str
    version_of: str
    """The package whose version is shown."""
    write: Callable[[Source], None] | None
    """Brings the documents into the library's own format."""
    batches: Callable[[Source, Model, int], Iterable[Batch]]
    """The pipeline over the source on a number of workers."""
    documents_at_once: int | None = None
    """It drops what does not fill a pack after each so many documents."""
    pretokenized: bool = False
    labels: str = "shifted"
    needs_tokenizer_json: bool = False
    leaves_out_last: bool = False
    """The last token of each document is a label only."""


# -- what the hand-written ones share ----------------------------------------------------------------------------------


def pack_lists(documents: Iterable[list[int]]) -> Iterator[Batch]:
    buffer: list[int] = []
    for ids in documents:
        buffer.extend(ids)
        while len(buffer) > SEQ_LEN:
            chunk = torch.tensor(buffer[: SEQ_LEN + 1])
            buffer = buffer[SEQ_LEN:]
            yield chunk[:-1], chunk[1:]


def pack_arrays(documents: Iterable[np.ndarray]) -> Iterator[Batch]:
    parts: list[np.ndarray] = []
    size = 0
    for ids in documents:
        parts.append(ids)
        size += len(ids)
        if size > SEQ_LEN:
            buffer = np.concatenate(parts).astype(np.int64)
            while len(buffer) > SEQ_LEN:
                chunk = torch.from_numpy(buffer[: SEQ_LEN + 1])
                buffer = buffer[SEQ_LEN:]
                yield chunk[:-1], chunk[1:]
            parts, size = [buffer], len(buffer)


def mine(items: Sequence[str]) -> list[str]:
    """A worker's part of the shards."""
    info = get_worker_info()
    return list(items) if info is None else list(items[info.id :: info.num_workers])


class Packs(IterableDataset):
    """Whatever gives texts, tokenized and packed."""

    def __init__(self, texts: Callable[[], Iterable[str]], model: Model, *, arrays: bool = False) -> None:
        self._texts, self._model, self._arrays = texts, model, arrays

    def __iter__(self) -> Iterator[Batch]:
        if self._arrays:
            return pack_arrays(map(self._model.encode_array, self._texts()))
        return pack_lists(map(self._model.encode, self._texts()))


# -- the peers ---------------------------------------------------------------------------------------------------------


def tarfile_texts(shards: Sequence[str]) -> Iterator[str]:
    for path in mine(shards):
        with tarfile.open(path, "r|") as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None:
                    yield file.read().decode()


def tarfile_lists(source: Source, model: Model, workers: int) -> Iterable[Batch]:
    dataset = Packs(lambda: tarfile_texts(source.shards), model)
    return DataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers)


def tarfile_arrays(source: Source, model: Model, workers: int) -> Iterable[Batch]:
    dataset = Packs(lambda: tarfile_texts(source.shards), model, arrays=True)
    return DataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers)


def webdataset_packer(source: Source, model: Model, workers: int) -> Iterable[Batch]:
    import webdataset as wds

    def packs(samples: Iterable[tuple[str]]) -> Iterator[Batch]:
        return pack_lists(model.encode(text) for (text,) in samples)

    dataset = (
        wds.WebDataset(source.shards, shardshuffle=False, nodesplitter=None)
        .decode()
        .to_tuple("txt")
        .compose(packs)
        .batched(BATCH_SIZE, partial=True)
    )
    return wds.WebLoader(dataset, batch_size=None, num_workers=workers)


def huggingface(source: Source, model: Model, workers: int) -> Iterable[Batch]:
    os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets

    def tokenize(examples: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": model.encode_batch(examples["txt"])}

    def group(examples: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = list(itertools.chain.from_iterable(examples["input_ids"]))
        size = len(joined) // SEQ_LEN * SEQ_LEN
        blocks = [joined[first : first + SEQ_LEN] for first in range(0, size, SEQ_LEN)]
        return {"input_ids": blocks, "labels": [list(block) for block in blocks]}

    dataset = datasets.load_dataset("webdataset", data_files={"train": source.shards}, split="train", streaming=True)
    dataset = dataset.map(
        tokenize, batched=True, remove_columns=list(dataset.features or ["txt", "__key__", "__url__"])
    )
    dataset = dataset.map(group, batched=True, batch_size=1000)

    def collate(blocks: list[dict[str, list[int]]]) -> Batch:
        # As its Trainer's default collator does; with_format("torch") makes a tensor of every single token first.
        return torch.tensor([block["input_ids"] for block in blocks]), torch.tensor(
            [block["labels"] for block in blocks]
        )

    return DataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers, collate_fn=collate)


def torchtitan_texts(source: Source, model: Model, workers: int) -> Iterable[Batch]:
    os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets
    from torchtitan.components.tokenizer import HuggingFaceTokenizer
    from torchtitan.hf_datasets import DatasetConfig
    from torchtitan.hf_datasets.text_datasets import DATASETS, HuggingFaceTextDataLoader

    def load(path: str) -> Any:
        return datasets.load_dataset("webdataset", data_files={"train": source.shards}, split="train", streaming=True)

    DATASETS["benchmark"] = DatasetConfig(path="", loader=load, sample_processor=lambda sample: sample["txt"])
    loader = HuggingFaceTextDataLoader(
        HuggingFaceTextDataLoader.Config(dataset="benchmark", infinite=False, num_workers=workers),
        dp_world_size=1,
        dp_rank=0,
        tokenizer=HuggingFaceTokenizer(tokenizer_path=model.path),
        seq_len=SEQ_LEN,
        local_batch_size=BATCH_SIZE,
    )
    return ((inputs["input"], labels) for inputs, labels in loader)


def write_mds(source: Source) -> None:
    from_mosaicml()
    from streaming import MDSWriter

    with MDSWriter(out=str(source.folder), columns={"text": "str"}) as writer:
        for text in source.texts:
            writer.write({"text": text})


def mosaicml(source: Source, model: Model, workers: int) -> Iterable[Batch]:
    from_mosaicml()
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()

    class Tokenized(StreamingDataset):
        def __iter__(self) -> Iterator[Batch]:
            return pack_lists(model.encode(sample["text"]) for sample in super().__iter__())

    dataset = Tokenized(local=str(source.folder), shuffle=False, batch_size=BATCH_SIZE, num_canonical_nodes=1)
    return DataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers)


def write_mds_packs(source: Source) -> None:
    from_mosaicml()
    from streaming import MDSWriter

    joined = np.concatenate(source.ids).astype(np.int32)
    with MDSWriter(out=str(source.folder), columns={"tokens": f"ndarray:int32:{SEQ_LEN}"}) as writer:
        for first in range(0, len(joined) - SEQ_LEN + 1, SEQ_LEN):
            writer.write({"tokens": joined[first : first + SEQ_LEN]})


def mosaicml_packs(source: Source, model: Model, workers: int) -> Iterable[Batch]:
    from_mosaicml()
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()

    class Packed(StreamingDataset):
        def __getitem__(self, index: int) -> Batch:
            tokens = torch.from_numpy(super().__getitem__(index)["tokens"].astype(np.int64))
            return tokens, tokens.clone()

    dataset = Packed(local=str(source.folder), shuffle=False, batch_size=BATCH_SIZE, num_canonical_nodes=1)
    return DataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers)


def from_mosaicml() -> None:
    """Let `streaming` be imported beside a torch without the operators that torchvision wants; it needs none here."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name, attribute in (
            ("torchvision", ""),
            ("torchvision.datasets", "VisionDataset"),
            ("torchvision.transforms", ""),
            ("torchvision.transforms.functional", "to_tensor"),
        ):
            sys.modules[name] = module = types.ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            if attribute:
                setattr(module, attribute, object)


def write_arrayrecord(source: Source) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(source.folder / "texts.arrayrecord"), "group_size:1")
    for text in source.texts:
        writer.write(text.encode())
    writer.close()


def grain_concat(source: Source, model: Model, workers: int) -> Iterable[Batch]:
    import grain.python as grain
    from grain.experimental import ConcatThenSplitIterDataset

    records = grain.ArrayRecordDataSource([str(source.folder / "texts.arrayrecord")])
    dataset = grain.MapDataset.source(records).map(
        lambda record: {"tokens": np.array(model.encode(record.decode()), dtype=np.int64)}
    )
    options = grain.ReadOptions(num_threads=0)  # threads would fight for the interpreter's lock
    packed = ConcatThenSplitIterDataset(dataset.to_iter_dataset(options), length_struct={"tokens": SEQ_LEN})
    batched = packed.map(_with_labels).batch(BATCH_SIZE, drop_remainder=False)
    if workers:
        batched = batched.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return ((torch.from_numpy(batch["tokens"]), torch.from_numpy(batch["labels"])) for batch in batched)


def _with_labels(pack: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Labels as grain's users make them: shifted, none where a segment ends."""
    tokens, segments = pack["tokens"], pack["tokens_segment_ids"]
    labels = np.full_like(tokens, -100)
    labels[:-1] = np.where(segments[:-1] == segments[1:], tokens[1:], -100)
    return {"tokens": tokens, "labels": labels}


def write_litdata(source: Source) -> None:
    import litdata

    litdata.optimize(
        fn=_same, inputs=source.texts, output_dir=str(source.folder), chunk_bytes="16MB", num_workers=1, verbose=False
    )


def _same(item: Any) -> Any:
    return item


def litdata_texts(source: Source, model: Model, workers: int) -> Iterable[Batch]:
    import litdata

    dataset = litdata.StreamingDataset(str(source.folder), shuffle=False)
    return DataLoader(Packs(lambda: dataset, model), batch_size=BATCH_SIZE, num_workers=workers)


def write_litdata_tokens(source: Source) -> None:
    import litdata
    from litdata.streaming import TokensLoader

    litdata.optimize(
        fn=_tensor,
        inputs=source.ids,
        output_dir=str(source.folder),
        chunk_size=SEQ_LEN * 2048,
        item_loader=TokensLoader(),
        num_workers=1,
        verbose=False,
    )


def _tensor(ids: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(ids.astype(np.int32))


def litdata_tokens(source: Source, model: Model, workers: int) -> Iterable[Batch]:
    import litdata
    from litdata.streaming import TokensLoader

    blocks = TokensLoader(block_size=SEQ_LEN)
    dataset = litdata.StreamingDataset(str(source.folder), item_loader=blocks, shuffle=False)
    loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers)
    return ((batch.long(), batch.long().clone()) for batch in loader)


PEERS = [
    Peer("tarfile, lists", "torch", None, tarfile_lists),
    Peer("tarfile, numpy", "torch", None, tarfile_arrays),
    Peer("webdataset, packer by hand", "webdataset", None, webdataset_packer),
    Peer("HF datasets, grouped", "datasets", None, huggingface, documents_at_once=1000, labels="the tokens"),
    Peer(
        "torchtitan, text dataset",
        "torchtitan",
        None,
        torchtitan_texts,
        labels="shifted, each document alone",
        needs_tokenizer_json=True,
        leaves_out_last=True,
    ),
    Peer("MosaicML Streaming", "mosaicml-streaming", write_mds, mosaicml),
    Peer("grain, concat then split", "grain", write_arrayrecord, grain_concat, labels="shifted, masked"),
    Peer("litdata, packer by hand", "litdata", write_litdata, litdata_texts),
    Peer(
        "litdata TokensLoader", "litdata", write_litdata_tokens, litdata_tokens, pretokenized=True, labels="the tokens"
    ),
    Peer(
        "MosaicML, packs written before",
        "mosaicml-streaming",
        write_mds_packs,
        mosaicml_packs,
        pretokenized=True,
        labels="the tokens",
    ),
]
