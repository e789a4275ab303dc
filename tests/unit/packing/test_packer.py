"""The packer's surface: what it takes, refuses and holds; and the compact form of packs against the spelled-out one."""

import doctest
import itertools
import time
import tracemalloc
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.packing import packer_of

import streampack.packing.packer
from streampack.errors import ConfigError, DocumentTooLongError, RecordError, as_choice
from streampack.packing.blocks import expand_block, stack
from streampack.packing.options import Overflow, Tail
from streampack.packing.packer import Packer
from streampack.packing.packs import PackRows
from streampack.packing.policies import BoundaryPolicy, ReplaceBoundary, as_boundary
from streampack.packing.public import pack
from streampack.records import TokenizedDocument


def packer(**arguments: Any) -> Packer:
    return packer_of(**{"seq_len": 4, "boundary": "mask", **arguments})


def test_the_worked_example_is_true() -> None:
    results = doctest.testmod(streampack.packing.packer)
    assert results.attempted > 10
    assert results.failed == 0


# Choices.


@pytest.mark.parametrize("policy", BoundaryPolicy)
def test_a_policy_may_be_a_member_or_its_value(policy: BoundaryPolicy) -> None:
    assert as_boundary(policy) is policy
    assert as_boundary(policy.value) is policy


def test_a_replacement_is_itself_and_its_id_a_plain_int() -> None:
    replacement = ReplaceBoundary(np.int64(7))
    assert as_boundary(replacement) == ReplaceBoundary(7)
    assert type(replacement.token_id) is int


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seq_len": 1}, "seq_len=1 must be a whole number from 2 "),
        ({"seq_len": 8.0}, "seq_len=8.0 must be a whole number"),
        ({"seq_len": True}, "seq_len=True must be a whole number"),
        (
            {"boundary": "masked"},
            "boundary='masked' is not known; did you mean \"mask\"\\? .*keep, mask, trim.*Replace",
        ),
        ({"boundary": "mask_eos"}, 'did you mean "mask_eos_input"'),
        ({"boundary": None}, "boundary=None is not known"),
        ({"packing": "wrapped"}, "packing='wrapped' is not known; did you mean \"wrap\""),
        ({"packing": "next-fit"}, 'did you mean "next_fit"'),
        ({"packing": "best_fit", "boundary": "keep"}, '"best_fit" does not work with boundary="keep": .* "trim"'),
        ({"packing": "best_fit", "boundary": ReplaceBoundary(7)}, r"boundary=ReplaceBoundary\(token_id=7"),
        ({"packing": "best_fit", "boundary": "mask_bos_target", "bos_id": 1}, "Choose boundary=.mask. or .trim."),
        ({"packing": "best_fit", "lookahead": False}, 'lookahead=False works with packing="wrap" only'),
        ({"packing": "best_fit", "window": 0}, "packing.window=0 must be a whole number from 1 to 65536"),
        ({"packing": "best_fit", "bos_id": "1"}, "bos_id='1' must be a whole number"),
        ({"overflow": "Truncate", "packing": "next_fit"}, 'did you mean "truncate"'),
        ({"tail": "padding"}, "tail='padding' is not known; did you mean \"pad\""),
        ({"pad_id": None}, "pad_id=None must be a whole number"),
        ({"pad_id": 2**31}, "pad_id=2147483648 must be a whole number"),
        ({"bos_id": "1"}, "bos_id='1' must be a whole number"),
        ({"eos_id": 2.0}, "eos_id=2.0 must be a whole number"),
        ({"boundary": "mask_bos_target"}, "needs bos_id"),
        ({"boundary": "mask_bos_target", "eos_id": 1}, "needs bos_id"),
        ({"boundary": "mask_bos_target", "bos_id": 1, "eos_id": 1}, "bos_id == eos_id == 1 would mask every EOS"),
        ({"boundary": "mask_eos_input"}, "needs eos_id"),
        ({"boundary": "mask_eos_input", "bos_id": 1}, "needs eos_id"),
        ({"boundary": "mask_eos_input", "bos_id": 1, "eos_id": 1}, "eos_id == 1 would mask each row of a BOS"),
        ({"packing": "next_fit", "lookahead": False}, 'lookahead=False works with packing="wrap" only'),
    ],
)
def test_arguments_that_cannot_work_are_refused_by_the_call_itself(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        packer(**arguments)
    with pytest.raises(ConfigError, match=message):
        pack(itertools.repeat([1, 2]), **{"seq_len": 4, **arguments})


@pytest.mark.parametrize("token_id", [1.5, "7", True, 2**31, None])
def test_a_replacement_that_is_no_token_id_is_refused(token_id: Any) -> None:
    with pytest.raises(ConfigError, match="ReplaceBoundary.token_id="):
        ReplaceBoundary(token_id)


def test_a_replacement_by_the_ignore_index_is_called_mask() -> None:
    with pytest.raises(ConfigError, match='boundary="mask" says that'):
        ReplaceBoundary(-100)


def test_a_name_that_is_like_no_other_gets_the_list_without_a_guess() -> None:
    with pytest.raises(ConfigError, match="tail='zzz' is not known; choose one of pad, drop"):
        as_choice(Tail, "zzz", "tail")


@pytest.mark.parametrize("overflow", ["truncate", "drop", "error"])
def test_an_overflow_that_wrap_ignores_warns(overflow: str) -> None:
    with pytest.warns(UserWarning, match=f'overflow="{overflow}" does nothing under packing="wrap"'):
        pack([], seq_len=4, overflow=overflow)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packer(overflow=overflow, packing="next_fit")
        packer(overflow=Overflow.SPLIT)


# Documents.


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1.0, 2.0], "token ids of type float64; they must be integers"),
        (np.array([1.0]), "token ids of type float64"),
        (np.array([], np.float32), "token ids of type float32"),
        ([True, False], "token ids of type bool"),
        (["a"], "token ids of type <U1"),
        ([None], "token ids of type object"),
        ("text", r"token ids of shape \(\)"),
        (5, r"token ids of shape \(\); they must be one-dimensional"),
        (np.zeros((2, 3), np.int32), r"token ids of shape \(2, 3\)"),
        ([[1, 2], [3, 4]], r"token ids of shape \(2, 2\)"),
        ([[1, 2], [3]], "not one flat list"),
        ([1, 2**31], "token ids from 1 to 2147483648; they must fit int32"),
        ([1, -(2**31) - 1], "token ids from -2147483649 to 1; they must fit int32"),
        (np.array([2**32 - 1], np.uint32), "token ids from 4294967295 to 4294967295"),
        (np.array([2**64 - 1], np.uint64), "token ids from 18446744073709551615"),
        ([1, 2**70], "token ids of type object; they must be integers that fit int32"),
        ([1, -100], "token id -100, which in labels means no label"),
        (np.array([-100], np.int8), "token id -100"),
    ],
)
def test_what_is_no_list_of_token_ids_is_refused_with_the_documents_ordinal(tokens: Any, message: str) -> None:
    with pytest.raises(RecordError, match=f"document 2 .*{message}"):
        list(pack([[1, 2], [3], tokens], seq_len=4))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([True], r"3 tokens and a loss mask of shape \(1,\)"),
        ([True] * 4, r"loss mask of shape \(4,\); it needs one value a token"),
        (True, r"loss mask of shape \(\)"),
        ([[True] * 3], r"loss mask of shape \(1, 3\)"),
        ([1.0, 0.0, 1.0], "loss mask of type float64"),
        ([0, 1, 2], "loss mask of type int64; it must be True and False, or 1 and 0"),
    ],
)
def test_a_loss_mask_that_does_not_fit_is_refused_with_the_documents_ordinal(mask: Any, message: str) -> None:
    documents = [TokenizedDocument([1, 2]), TokenizedDocument([1, 2, 3], mask)]
    with pytest.raises(RecordError, match=f"document 1 .*{message}"):
        list(pack(documents, seq_len=4))


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">u2"])
def test_every_integer_type_gives_the_same_int32_rows(dtype: str) -> None:
    got = packer()
    got.feed(np.array([1, 11, 120, 2, 5], dtype))
    rows = got.pop()
    assert rows is not None
    assert (rows.tokens.dtype, rows.tokens.tolist()) == (np.int32, [1, 11, 120, 2])
    assert (rows.edge_labels.dtype, rows.edge_labels.tolist()) == (np.int32, [5])


def test_ids_at_the_ends_of_int32_and_minus_one_are_legal() -> None:
    (got,) = pack([[-1, 2**31 - 1, -(2**31), 0]], seq_len=4)
    assert got.labels.tolist() == [2**31 - 1, -(2**31), 0, -100]
    assert got.num_targets == 3


def test_a_refused_document_takes_no_ordinal_and_changes_nothing() -> None:
    got = packer(packing="next_fit", overflow="error")
    got.feed([1, 11])
    before = repr(got), got.counts, got.buffered_bytes
    refused: list[tuple[Any, Any]] = [([1.0], None), ([1, 2], [True]), ([1, 2, 3, 4, 5], None)]
    for tokens, mask in refused:
        with pytest.raises(RecordError, match="document 1 "):
            got.feed(tokens, mask)
        assert (repr(got), got.counts, got.buffered_bytes) == before
    got.feed([1, 12])
    rows = got.pop()
    assert rows is not None
    assert rows.spans == ((0, 0, 2), (1, 0, 2))


def test_a_document_too_long_for_a_pack_is_an_error_that_names_ordinal_and_length() -> None:
    with pytest.raises(
        DocumentTooLongError, match=r"document 1 has 5 rows \(5 tokens\), a pack has 4; raise seq_len, or"
    ):
        list(pack([[1, 2], [1, 2, 3, 4, 5]], seq_len=4, packing="next_fit", overflow="error"))
    # Rows are what counts: seq_len + 1 tokens fit under trim.
    (got,) = pack([[1, 2, 3, 4, 5]], seq_len=4, packing="next_fit", overflow="error", boundary="trim")
    assert got.labels.tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("overflow", "row", "spans", "lost"),
    [
        ("truncate", 3, [(3, 4)], (1, 3, 0, 0)),
        ("truncate", 6, [(6, 4)], (0, 0, 0, 0)),  # what is left fits
        ("drop", 3, [], (0, 0, 1, 7)),
        ("drop", 6, [(6, 4)], (0, 0, 0, 0)),
        ("split", 3, [(3, 4), (7, 3)], (0, 0, 0, 0)),
        ("error", 6, [(6, 4)], (0, 0, 0, 0)),
    ],
)
def test_a_restart_under_another_overflow_applies_it_to_the_rows_that_are_left(
    overflow: str, row: int, spans: list[tuple[int, int]], lost: tuple[int, ...]
) -> None:
    got = packer(packing="next_fit", overflow=overflow, boundary="keep")
    got.feed(list(range(10, 20)), row=row)
    got.finish()
    packs = list(iter(got.pop, None))
    assert [(span.offset, span.length) for rows in packs for span in rows.spans] == spans
    assert [rows.tokens.tolist() for rows in packs] == [list(range(10 + a, 10 + a + n)) for a, n in spans]
    counts = got.counts
    assert lost == (
        counts.truncated_documents,
        counts.truncated_tokens,
        counts.dropped_documents,
        counts.dropped_tokens,
    )


def test_a_row_beyond_the_document_is_refused() -> None:
    with pytest.raises(RecordError, match="document 0 has 2 rows, yet 3 of them are said to be in earlier packs"):
        packer(boundary="trim").feed([1, 2, 3], row=3)
    with pytest.raises(RecordError, match="yet -1 of them"):
        packer().feed([1, 2, 3], row=-1)


# Order and memory.


def test_pack_streams_an_endless_corpus() -> None:
    taken = 0

    def endless() -> Any:
        nonlocal taken
        while True:
            taken += 1
            yield [1, 11, 2]

    packs = pack(endless(), seq_len=3, boundary="mask")
    assert taken == 0
    for expected in range(1, 5):
        next(packs)
        assert taken == expected  # not one document more than the pack needs


@pytest.mark.parametrize(
    ("boundary", "waits"),
    [
        ("keep", True),
        ("mask_bos_target", True),
        ("mask_eos_input", True),
        (ReplaceBoundary(7), True),
        ("mask", False),
        ("trim", False),
    ],
)
def test_a_pack_that_ends_with_a_document_waits_for_the_next_one_where_its_label_depends_on_it(
    boundary: Any, waits: bool
) -> None:
    arguments = {"boundary": boundary, "bos_id": 1, "eos_id": 2, "seq_len": 4}
    document = [1, 11, 12, 13, 14] if boundary == "trim" else [1, 11, 12, 13]
    for following, may_be_target in [([21], True), ([21], False)]:
        got = packer(**arguments)
        got.feed(document)
        rows = got.pop()
        assert (rows is None) == waits
        got.feed([])  # an empty document is not what follows
        assert (got.pop() is None) or not waits
        got.feed(following, [may_be_target])
        rows = rows or got.pop()
        assert rows is not None
        assert (rows.next_document, rows.next_row) == (1, 0)
        expected = {"trim": 14, "mask": -100}.get(boundary, 7 if isinstance(boundary, ReplaceBoundary) else 21)
        assert rows.edge_labels.tolist() == [expected if may_be_target or not waits else -100]
    # Nothing follows at all.
    got = packer(**arguments)
    got.feed(document)
    got.finish()
    if waits:
        rows = got.pop()
        assert rows is not None
        assert rows.edge_labels.tolist() == [-100]


def test_without_lookahead_no_pack_waits() -> None:
    got = packer(boundary="keep", lookahead=False)
    got.feed([1, 11, 12, 2])
    rows = got.pop()
    assert rows is not None
    assert rows.edge_labels.tolist() == [-100]


def test_a_pack_that_loses_its_only_target_without_lookahead_is_not_given() -> None:
    documents = [TokenizedDocument([1, 11, 12, 13, 14], [False, False, False, False, True])]
    assert len(list(pack(documents, seq_len=4))) == 1
    assert list(pack(documents, seq_len=4, lookahead=False)) == []


def test_a_huge_document_is_not_copied_per_pack_and_is_let_go_after_its_last_row() -> None:
    size, seq_len = 4_000_000, 1024
    document = np.ones(size, np.int32)
    got = packer(seq_len=seq_len)
    tracemalloc.start()
    got.feed(document)
    assert got.buffered_bytes == document.nbytes
    num_packs, start = 0, time.perf_counter()
    for rows in iter(got.pop, None):
        num_packs += 1
        assert rows.tokens.nbytes == seq_len * 4
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_packs == size // seq_len
    assert peak < document.nbytes / 8
    assert seconds < 60  # quadratic work would be 4,000 times the document: minutes
    assert got.buffered_bytes == document.nbytes  # the last 256 rows still keep it
    got.finish()
    assert len(list(iter(got.pop, None))) == 1
    assert got.buffered_bytes == 0


def test_a_truncated_document_is_held_only_as_far_as_it_is_packed() -> None:
    got = packer(packing="next_fit", overflow="truncate")
    got.feed(np.ones(100_000, np.int32))
    assert got.buffered_bytes == 5 * 4  # four rows, and the last one's label


def test_masks_count_as_buffered() -> None:
    got = packer(seq_len=100)
    got.feed(np.ones(10, np.int32), [True] * 10)
    assert got.buffered_bytes == 40
    got.feed(np.ones(10, np.int32), [False] * 10)
    assert got.buffered_bytes == 80 + 9


def test_counts_follow_the_packs_and_not_what_is_fed() -> None:
    got = packer()
    got.feed([1, 11, 12, 13, 14, 2])
    got.feed([1, 21, 2])
    got.feed([])
    assert got.counts.documents == 0
    assert got.pop() is not None
    assert (got.counts.documents, got.counts.tokens, got.counts.split_documents) == (0, 4, 1)
    assert got.pop() is not None
    assert (got.counts.documents, got.counts.tokens, got.counts.targets) == (1, 8, 4 + 3)
    assert got.pop() is None
    got.finish()
    assert got.pop() is None  # the last row has no target
    assert (got.counts.documents, got.counts.targetless_packs, got.counts.padding) == (3, 1, 0)


# The compact form.


@st.composite
def blocks(draw: st.DrawFn) -> tuple[int, list[PackRows]]:
    """Packs of any shape, empty and full ones among them or all of them full, as the packer could make them."""
    seq_len, are_full = draw(st.integers(2, 9)), draw(st.booleans())
    rows = []
    for _ in range(draw(st.integers(0, 5))):
        lengths = draw(st.lists(st.integers(1, seq_len), max_size=seq_len).filter(lambda found: sum(found) <= seq_len))
        if are_full and sum(lengths) < seq_len:
            lengths.append(seq_len - sum(lengths))
        size = sum(lengths)
        ignored = draw(st.none() | st.lists(st.booleans(), min_size=size, max_size=size))
        rows.append(
            PackRows(
                tokens=np.array(draw(st.lists(st.integers(0, 99), min_size=size, max_size=size)), np.int32),
                seq_lens=np.array(lengths, np.int32),
                edge_labels=np.array(
                    draw(st.lists(st.integers(100, 199), min_size=len(lengths), max_size=len(lengths))), np.int32
                ),
                ignored=None if ignored is None else np.array(ignored, np.bool_),
                num_targets=draw(st.integers(0, 9)),
                documents=(),
                offsets=(0,),
                next_document=0,
                next_row=0,
            )
        )
    return seq_len, rows


@given(blocks())
def test_expanding_a_block_follows_the_compact_forms_rules_row_by_row(given_block: tuple[int, list[PackRows]]) -> None:
    seq_len, rows = given_block
    block = stack(rows, seq_len=seq_len, pad_id=-7)
    assert block.num_targets.tolist() == [pack.num_targets for pack in rows]
    arrays = expand_block(block)
    for array in arrays.values():
        assert (array.dtype, array.shape, array.flags.c_contiguous) == (np.int64, (len(rows), seq_len), True)
        assert not np.shares_memory(array, block.tokens)
    assert not any(np.shares_memory(*two) for two in itertools.combinations(arrays.values(), 2))
    for index, pack_rows in enumerate(rows):
        expected: dict[str, list[int]] = {"tokens": [], "labels": [], "position_ids": [], "segment_ids": []}
        row = 0
        for segment, (length, edge) in enumerate(zip(pack_rows.seq_lens, pack_rows.edge_labels), start=1):
            for position in range(length):
                inner = position + 1 < length
                ignored = pack_rows.ignored is not None and pack_rows.ignored[row]
                expected["tokens"].append(int(pack_rows.tokens[row]))
                expected["labels"].append(-100 if inner and ignored else pack_rows.tokens[row + 1] if inner else edge)
                expected["position_ids"].append(position)
                expected["segment_ids"].append(segment)
                row += 1
        for position in range(seq_len - row):
            for name, value in zip(expected, (-7, -100, position, 0)):
                expected[name].append(value)
        assert {name: array[index].tolist() for name, array in arrays.items()} == expected


def test_a_pack_without_rows_becomes_a_filler() -> None:
    none = np.empty(0, np.int32)
    empty = PackRows(
        tokens=none,
        seq_lens=none,
        edge_labels=none,
        ignored=None,
        num_targets=0,
        documents=(),
        offsets=(0,),
        next_document=0,
        next_row=0,
    )
    block = stack([empty, empty], seq_len=3, pad_id=9)
    assert block.seq_lens.size == 0
    assert {name: array.tolist() for name, array in expand_block(block).items()} == {
        "tokens": [[9, 9, 9]] * 2,
        "labels": [[-100] * 3] * 2,
        "position_ids": [[0, 1, 2]] * 2,
        "segment_ids": [[0, 0, 0]] * 2,
    }


def test_ignored_is_none_exactly_where_no_row_but_a_segments_last_is_masked() -> None:
    got = packer(seq_len=3)
    got.feed([1, 11, 2], [False, True, True])  # only token 0 may not be a target, and no row has it as one
    got.feed([1, 21, 22, 23, 24, 2], [True, False, True, False, True, True])  # row 0, and row 2: a pack's last one
    rows = [rows.ignored if rows.ignored is None else rows.ignored.tolist() for rows in iter(got.pop, None)]
    assert rows == [None, [True, False, False], None]
