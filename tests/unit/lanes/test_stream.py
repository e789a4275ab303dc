"""One lane: how far ahead of its use something is read, tokenized and packed shows in nothing that the lane gives."""

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.jobs import npy, write_tar

import streampack
from streampack.errors import TokenizerError
from streampack.lanes.position import LaneEnd, LanePack, LanePosition
from streampack.lanes.stream import LaneStream
from streampack.packing.policies import ReplaceBoundary
from streampack.testing import ByteTokenizer

SHUFFLE = streampack.Shuffle(block_bytes=4096, window=2)
ONE_PACK, MANY_PACKS = 64, 8 * 2**20
"""Ranges of a lane with which it reads about one pack ahead, and as many as a lane ever does."""


class OddTokenizer(ByteTokenizer):
    """Another type of integers for some texts, and an id that is no label for others."""

    digest = "odd"

    def encode(self, text: str) -> Any:
        ids = super().encode(text)
        if text.startswith("w"):
            return ids.astype(np.int64)
        return np.append(ids, np.int32(-100)) if text.startswith("x") else ids


def content(field: str, text: str) -> bytes:
    """A member; a text that begins with "!" makes a bad one."""
    if field == "npy":
        return npy(range(len(text)), "<i4" if "a" in text else "<u2")[: -1 if text.startswith("!") else None]
    if field == "jsonl:text":
        lines = [json.dumps({"text": part}) if part else "{" for part in text.split("a")]
        return "\n".join(lines).encode()
    return text.replace("!", "\0").encode().replace(b"\0", b"\xff")


def given_by(dataset: streampack.PackedDataset, start: LanePosition, max_range_bytes: int) -> list[Any]:
    """All that the only lane gives, as plain values, to its end; and how a state is behind each pack."""
    stream = LaneStream(
        dataset.pipeline,
        dataset.corpus(1),
        0,
        start,
        end_epoch=dataset.epochs,
        max_range_bytes=max_range_bytes,
        with_provenance=True,
    )
    found: list[Any] = []
    while isinstance(pack := stream.next(), LanePack):
        rows = pack.rows
        found.append((rows.tokens.tolist(), rows.edge_labels.tolist(), rows.num_targets, pack[1:], stream.position))
    assert isinstance(pack, LaneEnd)
    assert stream.next() == pack
    return [*found, pack.counts]


@given(
    shards=st.lists(st.lists(st.text("abwx! ", max_size=20), max_size=12), min_size=1, max_size=3),
    field=st.sampled_from(["txt", "npy", "jsonl:text"]),
    boundary=st.sampled_from(["mask", "keep", "trim", ReplaceBoundary(9)]),
    packing=st.sampled_from(
        [("wrap", "split"), *itertools.product(["next_fit", "best_fit"], ["split", "truncate", "drop", "error"])]
    ),
    window=st.integers(1, 4),
    seq_len=st.integers(2, 12),
    shuffle=st.sampled_from([False, SHUFFLE]),
    ends=st.booleans(),
    tail=st.sampled_from(["pad", "drop"]),
    place=st.integers(0, 30),
)
def test_a_lane_gives_the_same_however_far_it_reads_ahead_and_wherever_it_goes_on(
    shards: list[list[str]],
    field: str,
    boundary: Any,
    packing: tuple[str, str],
    window: int,
    seq_len: int,
    shuffle: Any,
    ends: bool,
    tail: str,
    place: int,
) -> None:
    kind, overflow = packing
    if kind == "best_fit" and boundary != "trim":
        boundary = "mask"
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("streampack.corpus.epochs.MOST_TEXT", 0.02)  # windows of some records
        patch.setattr("streampack.packing.options._LEAST_DOCUMENTS", 3)
        urls = [
            str(
                write_tar(
                    Path(folder) / f"{index}.tar",
                    [(f"{number}.{field.partition(':')[0]}", content(field, text)) for number, text in enumerate(some)],
                )
            )
            for index, some in enumerate(shards)
        ]
        dataset = streampack.PackedDataset(
            urls,
            None if field == "npy" else OddTokenizer(),
            seq_len,
            field=field,
            boundary=boundary,
            packing=streampack.Packing(kind, overflow=overflow, tail=tail, window=window if kind == "best_fit" else 64),
            add_bos=ends and field != "npy",
            add_eos=ends and field != "npy",
            num_lanes=1,
            epochs=2,
            shuffle=shuffle,
            on_error="skip",
            max_bad=10_000,
        )
        whole = given_by(dataset, LanePosition(), ONE_PACK)
        assert given_by(dataset, LanePosition(), MANY_PACKS) == whole
        if len(whole) > 1:
            place %= len(whole) - 1
            for max_range_bytes in (ONE_PACK, MANY_PACKS):
                assert given_by(dataset, whole[place][-1], max_range_bytes) == whole[place + 1 :]


@pytest.mark.parametrize("max_range_bytes", [ONE_PACK, MANY_PACKS])
def test_what_comes_before_a_text_that_cannot_be_tokenized_is_given_first(tmp_path: Path, max_range_bytes: int) -> None:
    class Failing(ByteTokenizer):
        def encode(self, text: str) -> Any:
            if text == "bad":
                raise TokenizerError("no ids for this")
            return super().encode(text)

    texts = ["abcdefg", "abcdefg", "abcdefg", "bad", "abcdefg"]
    shard = write_tar(tmp_path / "0.tar", [(f"{number}.txt", text.encode()) for number, text in enumerate(texts)])
    dataset = streampack.PackedDataset([str(shard)], Failing(), 4, num_lanes=1, epochs=1, shuffle=False)
    stream = LaneStream(
        dataset.pipeline, dataset.corpus(1), 0, LanePosition(), end_epoch=1, max_range_bytes=max_range_bytes
    )
    for _ in range(3 * 9 // 4):
        assert isinstance(stream.next(), LanePack)
    for _ in range(2):  # it is in the way until somebody gives up
        with pytest.raises(TokenizerError, match=r"0\.tar, member '3': no ids for this"):
            stream.next()
