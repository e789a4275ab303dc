"""Whether the pipeline gives exactly what the plain tokenizer's ids make: checked before anything is timed."""

from dataclasses import replace

import numpy as np

from streampack.cli.bench.slices import Slice
from streampack.cli.bench.stages import BATCH_SIZE, MakeDataset, documents_of, pack_rows, samples_of
from streampack.errors import TokenizerError
from streampack.loader.loader import PackedDataLoader
from streampack.packing.blocks import expand_block, stack
from streampack.records import Tokenizer


def check_ids(make: MakeDataset, part: Slice, tokenizer: Tokenizer | None, plain: Tokenizer | None) -> None:
    """Compare the ids document by document, then the pipeline's packs with those that the plain ids make.

    Raises:
        TokenizerError: something differs.
    """
    dataset = make(part.shards, tokenizer=tokenizer, num_lanes=1)
    pipeline = dataset.pipeline
    expected = []
    for document in documents_of(dataset, samples_of(dataset)):
        ids = pipeline.encode(document)[0]
        if plain is not None:
            right = replace(pipeline, tokenizer=plain).encode(document)[0]
            if not np.array_equal(ids, right):
                raise TokenizerError(
                    "the engine gives other ids than the plain tokenizer", url=document.url, member=document.key
                )
            ids = right
        expected.append(ids)
    rows = pack_rows(dataset, expected)
    arrays = expand_block(stack(rows, seq_len=dataset.seq_len, pad_id=pipeline.pad_id))
    with PackedDataLoader(dataset, BATCH_SIZE, num_workers=0) as loader:
        batches = list(loader)
    for name, right in arrays.items():
        found = np.concatenate([batch[name].numpy() for batch in batches])
        if not np.array_equal(found[: len(rows)], right):
            raise TokenizerError(f"the pipeline gives other {name} than packing the plain tokenizer's ids does")
