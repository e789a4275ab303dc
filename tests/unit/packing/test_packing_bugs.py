"""Bugs that other packers had, one test each, named after what must not happen."""

import itertools
from typing import Any

import numpy as np
import pytest

from streampack.packing.blocks import expand_block, stack
from streampack.packing.options import Packing
from streampack.packing.packer import Packer
from streampack.packing.packs import Pack
from streampack.packing.policies import ReplaceBoundary
from streampack.packing.public import pack
from streampack.records import TokenizedDocument

BOS, EOS = 1, 2
EVERY_POLICY = ["keep", "mask", "trim", "mask_bos_target", "mask_eos_input", ReplaceBoundary(9)]


def packs_of(documents: list[Any], **arguments: Any) -> list[Pack]:
    return list(pack(documents, **{"seq_len": 8, "bos_id": BOS, "eos_id": EOS, **arguments}))


@pytest.mark.parametrize("boundary", EVERY_POLICY)
def test_an_eos_inside_a_document_begins_no_segment(boundary: Any) -> None:
    (got,) = packs_of([[BOS, 11, EOS, 12, EOS, 13, 14, 15, 16]], boundary=boundary, tail="drop")
    assert got.segment_ids.tolist() == [1] * 8
    assert got.position_ids.tolist() == list(range(8))


@pytest.mark.parametrize("boundary", EVERY_POLICY)
def test_documents_without_eos_are_still_told_apart(boundary: Any) -> None:
    got = packs_of([[11, 12, 13], [21, 22], [31, 32, 33, 34, 35]], boundary=boundary)[0]
    per_document = [2, 1, 4] if boundary == "trim" else [3, 2, 3]
    assert got.seq_lens.tolist() == per_document
    assert np.flatnonzero(got.position_ids == 0).tolist()[:3] == np.cumsum([0, *per_document[:2]]).tolist()


def test_a_pack_that_begins_inside_a_document_is_no_boundary_of_documents() -> None:
    # Position 0 of the second pack is not a document's start: the row before it has its label under mask and trim.
    for boundary in ("mask", "trim"):
        first, _ = packs_of([list(range(10, 27))], seq_len=8, boundary=boundary)
        assert first.labels.tolist() == list(range(11, 19))


def test_a_document_whose_tokens_are_all_eos_is_one_document() -> None:
    (got,) = packs_of([[EOS] * 5, [EOS] * 3], boundary="mask", pad_id=EOS)
    assert got.seq_lens.tolist() == [5, 3]
    assert got.labels.tolist() == [EOS] * 4 + [-100] + [EOS] * 2 + [-100]


def test_positions_count_from_the_segments_start_and_are_not_wrapped_inside_a_document() -> None:
    first, second, third = packs_of([[11, 12, 13], list(range(20, 40))], boundary="mask", seq_len=8)
    assert first.position_ids.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert second.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]  # not 5, 6, 7, 0, ...
    assert third.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 0]


@pytest.mark.parametrize("boundary", ["keep", "mask", "trim"])
@pytest.mark.parametrize("seq_len", range(2, 9))
def test_the_first_answer_token_behind_a_prompt_is_trained_wherever_packs_are_cut(seq_len: int, boundary: str) -> None:
    prompt, answer = [BOS, 51, 52, 53], [61, 62, EOS]
    document = TokenizedDocument(prompt + answer, [False] * len(prompt) + [True] * len(answer))
    labels = np.concatenate([got.labels for got in packs_of([document], seq_len=seq_len, boundary=boundary)])
    assert labels[labels != -100].tolist() == answer


def test_no_token_of_a_long_document_is_lost_by_default() -> None:
    document = list(range(10, 1010))
    for packing in ("wrap", "next_fit"):
        packs = packs_of([document, [BOS, EOS]], packing=packing, seq_len=64)
        tokens = np.concatenate([got.tokens[: got.num_tokens] for got in packs])
        assert tokens.tolist() == [*document, BOS, EOS]
        assert sum(got.num_targets for got in packs) == 999 + 1


def test_what_truncation_and_dropping_lose_is_counted() -> None:
    documents = [list(range(10, 17)), [BOS, 5, EOS], list(range(30, 50))]
    counts = {}
    for overflow in ("truncate", "drop"):
        packer = Packer(seq_len=5, boundary="mask", packing=Packing("next_fit", overflow=overflow))
        for document in documents:
            packer.feed(document)
        packer.finish()
        assert len(list(iter(packer.pop, None))) == {"truncate": 3, "drop": 1}[overflow]
        counts[overflow] = packer.counts
    truncated, dropped = counts["truncate"], counts["drop"]
    assert (truncated.truncated_documents, truncated.truncated_tokens, truncated.tokens) == (2, 2 + 15, 5 + 3 + 5)
    assert (dropped.dropped_documents, dropped.dropped_tokens, dropped.tokens) == (2, 7 + 20, 3)


@pytest.mark.parametrize("seq_len", [12, 96, 100, 127, 128, 129])
def test_whole_documents_share_packs_of_any_length_not_only_powers_of_two(seq_len: int) -> None:
    packs = packs_of([[BOS, 5, 6, EOS]] * 60, packing="next_fit", seq_len=seq_len)
    per_pack = seq_len // 4
    assert [got.seq_lens.size for got in packs] == [min(per_pack, 60 - done) for done in range(0, 60, per_pack)]


@pytest.mark.parametrize("seq_len", range(2, 12))
def test_no_transition_is_lost_between_packs(seq_len: int) -> None:
    stream = list(range(10, 60))
    packs = packs_of([stream[:7], stream[7:8], stream[8:]], seq_len=seq_len, boundary="keep")
    transitions = [
        (int(token), int(label))
        for got in packs
        for token, label in zip(got.tokens[: got.num_tokens], got.labels)
        if label != -100
    ]
    assert transitions == list(itertools.pairwise(stream))


def test_labels_are_shifted_once() -> None:
    (got,) = packs_of([list(range(10, 19))], tail="drop")
    assert got.labels.tolist() == (got.tokens + 1).tolist()


def test_padding_is_one_sequence_with_positions_that_count_up() -> None:
    (got,) = packs_of([[BOS, 11, EOS]], seq_len=4096)
    assert got.position_ids[3:].tolist() == list(range(4093))
    assert np.count_nonzero(got.position_ids == 0) == 2
    assert set(got.segment_ids[3:].tolist()) == {0}


@pytest.mark.parametrize("pad_id", [0, BOS, EOS, 11])
@pytest.mark.parametrize("boundary", ["keep", "mask", "trim", "mask_bos_target", "mask_eos_input"])
def test_a_pad_id_that_is_also_a_token_masks_nothing(pad_id: int, boundary: str) -> None:
    documents = [[BOS, 11, 0, EOS], [BOS, 12, EOS]]
    (got,) = packs_of(documents, boundary=boundary, pad_id=pad_id)
    (other,) = packs_of(documents, boundary=boundary, pad_id=77)
    assert got.labels.tolist() == other.labels.tolist()
    assert got.segment_ids.tolist() == other.segment_ids.tolist()
    assert np.count_nonzero(got.labels == EOS) == 2
    assert set(got.tokens[got.num_tokens :].tolist()) == {pad_id}


def test_labels_and_tokens_share_no_memory_with_each_other_or_with_the_documents() -> None:
    document = np.arange(10, 30)
    packs = packs_of([document], seq_len=8, boundary="mask")
    for got in packs:
        arrays = [got.tokens, got.labels, got.position_ids, got.segment_ids]
        assert not any(np.shares_memory(a, b) for i, a in enumerate(arrays) for b in arrays[i + 1 :])
        before = got.tokens.copy()
        got.labels[:] = -100
        got.position_ids[:] = 7
        assert got.tokens.tolist() == before.tolist()
        got.tokens[:] = 0
    assert document.tolist() == list(range(10, 30))


def test_a_packs_tokens_do_not_keep_the_document_in_memory() -> None:
    document = np.arange(10, 30, dtype=np.int32)
    packer = Packer(seq_len=8, boundary="mask", packing="wrap")
    packer.feed(document)
    rows = packer.pop()
    assert rows is not None
    assert not np.shares_memory(rows.tokens, document)


@pytest.mark.parametrize("lookahead", [True, False])
@pytest.mark.parametrize("boundary", EVERY_POLICY)
def test_num_targets_is_what_counting_labels_gives(boundary: Any, lookahead: bool) -> None:
    documents = [
        TokenizedDocument([BOS, 11, EOS, 12, EOS], [True, False, True, True, False]),
        TokenizedDocument([BOS, BOS, 13, EOS, EOS, EOS]),
        TokenizedDocument([14], [False]),
        TokenizedDocument([15, 16, BOS], [True, False, True]),
    ]
    for seq_len in range(2, 20):
        packs = packs_of(documents, seq_len=seq_len, boundary=boundary, lookahead=lookahead)
        assert packs
        for got in packs:
            assert got.num_targets == np.count_nonzero(got.labels != -100) > 0


def test_rows_of_a_block_do_not_run_into_each_other() -> None:
    # One document over four packs: laid flat, each pack still begins a segment, and its last label is its own.
    packer = Packer(seq_len=4, boundary="mask", packing="wrap")
    packer.feed(list(range(10, 25)))
    packer.finish()
    rows = list(iter(packer.pop, None))
    arrays = expand_block(stack([rows[2], rows[0], rows[3], rows[1]], seq_len=4, pad_id=0))
    assert arrays["position_ids"].reshape(-1).tolist() == [0, 1, 2, 3] * 2 + [0, 1, 2, 0] + [0, 1, 2, 3]
    assert arrays["labels"].tolist() == [[19, 20, 21, 22], [11, 12, 13, 14], [23, 24, -100, -100], [15, 16, 17, 18]]
