"""The golden vectors: every field of every pack, however the documents are handed over."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.packing import packer_of

from streampack.packing.blocks import expand_block, stack
from streampack.packing.making import AnyPacker
from streampack.packing.packs import PackRows
from streampack.packing.public import pack
from streampack.records import TokenizedDocument

DATA = Path(__file__).parents[2] / "support" / "data"
SHARED = json.loads((DATA / "packing.json").read_text("utf-8"))["cases"]
BEST_FIT = json.loads((DATA / "packing_best_fit.json").read_text("utf-8"))["cases"]
CASES = SHARED + BEST_FIT
FIELDS = ("tokens", "labels", "position_ids", "segment_ids", "seq_lens", "spans")
# How a document's ids may come: any integer type, any sequence, any memory layout.
CONTAINERS: dict[str, Any] = {
    "list": list,
    "tuple": tuple,
    "int64": lambda ids: np.array(ids, np.int64),
    "int32": lambda ids: np.array(ids, np.int32),
    "int16": lambda ids: np.array(ids, np.int16),
    "big-endian": lambda ids: np.array(ids, ">i4"),
    "strided": lambda ids: np.repeat(np.array(ids, np.int32), 2)[::2],
}


def documents_of(case: dict[str, Any], container: Any = list) -> Iterator[Any]:
    for index, ids in enumerate(case["documents"]):
        if case["loss_mask"] is None:
            yield container(ids)
        else:
            yield TokenizedDocument(container(ids), np.array(case["loss_mask"][index], np.bool_))


def blocks_of(packer: AnyPacker, rows: list[PackRows]) -> list[dict[str, list[Any]]]:
    """All packs in one block, expanded together, as plain lists per pack."""
    arrays = expand_block(stack(rows, seq_len=packer.seq_len, pad_id=packer.pad_id))
    return [
        {name: array[index].tolist() for name, array in arrays.items()}
        | {"seq_lens": pack.seq_lens.tolist(), "spans": [list(span) for span in pack.spans]}
        for index, pack in enumerate(rows)
    ]


def test_there_are_thirty_cases_and_those_of_best_fit() -> None:
    assert (len(SHARED), len(BEST_FIT)) == (30, 11)
    assert len({case["name"] for case in CASES}) == 41


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_pack_gives_the_golden_packs(case: dict[str, Any], container: str) -> None:
    packs = list(pack(documents_of(case, CONTAINERS[container]), **case["arguments"]))
    assert len(packs) == len(case["packs"])
    for got, expected in zip(packs, case["packs"]):
        for field in FIELDS:
            value = getattr(got, field)
            assert (list(map(list, value)) if field == "spans" else value.tolist()) == expected[field], field
        assert got.num_tokens == sum(expected["seq_lens"])
        assert got.num_targets == sum(label != -100 for label in expected["labels"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@pytest.mark.parametrize("pop_each_time", [True, False])
def test_the_packer_gives_the_golden_packs(case: dict[str, Any], pop_each_time: bool) -> None:
    packer = packer_of(**case["arguments"])
    rows = []
    for document in documents_of(case):
        if isinstance(document, TokenizedDocument):
            packer.feed(document.tokens, document.loss_mask)
        else:
            packer.feed(document)
        if pop_each_time:
            rows.extend(iter(packer.pop, None))
    packer.finish()
    rows.extend(iter(packer.pop, None))
    assert blocks_of(packer, rows) == case["packs"]
    assert packer.counts.targets == sum(rows.num_targets for rows in rows)


@pytest.mark.parametrize("case", [case for case in SHARED if case["loss_mask"] is None], ids=lambda case: case["name"])
def test_a_mask_of_all_true_and_empty_documents_between_change_nothing_but_ordinals(case: dict[str, Any]) -> None:
    documents: list[TokenizedDocument] = []
    for ids in case["documents"]:
        documents += [TokenizedDocument(ids, [True] * len(ids)), TokenizedDocument([], [])]
    packs = list(pack(documents, **case["arguments"]))
    assert [got.labels.tolist() for got in packs] == [expected["labels"] for expected in case["packs"]]
    assert [[(span.document / 2, span.offset, span.length) for span in got.spans] for got in packs] == [
        [tuple(span) for span in expected["spans"]] for expected in case["packs"]
    ]
