"""Best fit: how full packs are, what it costs, in which order packs go out; the laws are in `test_packing_laws`."""

import random
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.packing import packer_of

import streampack
from streampack.errors import ConfigError, StateError
from streampack.packing.options import Packing
from streampack.packing.packs import PackRows
from streampack.packing.placing import place

SEQ_LEN = 4096


def sizes(count: int, *, mean: int, longest: int, seed: int = 0) -> list[int]:
    """Documents as long as those of a corpus: most are short, a few are several times as long as the mean."""
    choose = random.Random(seed)
    return [min(max(int(choose.lognormvariate(np.log(mean), 1.0)), 2), longest) for _ in range(count)]


def packed(lengths: list[int], *, window: int = 64, seq_len: int = SEQ_LEN, seed: int = 0) -> list[PackRows]:
    packer = packer_of(packing="best_fit", seq_len=seq_len, boundary="mask", window=window)
    tokens = np.random.default_rng(seed).integers(5, 30_000, sum(lengths), dtype=np.int32)
    packer.feed_all(tokens, lengths)
    packer.finish()
    return list(iter(packer.pop, None))


def fill(packs: list[PackRows], seq_len: int = SEQ_LEN) -> float:
    return sum(pack.tokens.size for pack in packs) / (len(packs) * seq_len)


def test_windows_of_64_packs_are_full() -> None:
    assert fill(packed(sizes(2000, mean=600, longest=40_000))) > 0.985  # text; longer documents are split
    assert fill(packed(sizes(2000, mean=400, longest=SEQ_LEN))) > 0.97  # conversations


def test_the_number_of_packs_is_at_most_one_and_a_half_times_the_least_whatever_the_sizes_are() -> None:
    choose = np.random.default_rng(0)
    for seq_len in (7, 60, 64, 100, 4096, 5000):  # powers of two and others
        for most in (seq_len, seq_len // 2, 3):
            lengths = choose.integers(1, most + 1, 400)
            _, num_packs = place(lengths, seq_len)
            assert num_packs <= 1.5 * -(-lengths.sum() // seq_len) + 1


@pytest.mark.parametrize(
    "lengths",
    [
        np.arange(2**17, 2**16, -1),  # each alone: many packs with room, none of it used
        np.random.default_rng(0).integers(1, 2**17, 2**16),
        np.full(2**16, 3),
    ],
    ids=["none fits", "by chance", "equal"],
)
def test_placing_takes_as_long_for_a_document_however_many_packs_are_open(lengths: NDArray[np.int64]) -> None:
    def seconds(count: int) -> float:
        begin = time.process_time()
        place(lengths[:count], 2**17)
        return time.process_time() - begin

    few = min(seconds(2**12) for _ in range(5)) / 2**12
    many = min(seconds(2**16) for _ in range(2)) / 2**16
    assert many < 6 * few  # sixteen times as many: a search through open packs would take sixteen times as long


def test_where_a_pack_comes_in_its_window_tells_nothing_of_how_full_it_is() -> None:
    places, fills = [], []
    for seed in range(60):  # equal documents, so that the last pack that was opened is the only one with room
        packs = packed([5] * 84, seq_len=42, window=10, seed=seed)
        assert [pack.given for pack in packs] == [*range(1, 11), 0]
        places += range(11)
        fills += [pack.tokens.size for pack in packs]
    least = [place for place, size in zip(places, fills) if size < 40]
    assert len(least) == 60
    assert len(set(least)) >= 9  # it is not always the same one
    assert abs(np.corrcoef(places, fills)[0, 1]) < 0.1


def test_documents_are_counted_with_the_last_pack_of_their_window() -> None:
    packs = packed([3, 5, 9, 4, 6, 5, 2, 3], seq_len=8, window=2)
    assert [pack.counts.documents for pack in packs if pack.given] == [0] * sum(pack.given > 0 for pack in packs)
    assert sum(pack.counts.documents for pack in packs) == 8
    assert sum(pack.counts.split_documents for pack in packs) == 1
    for pack in packs:
        assert pack.documents == sorted(pack.documents)
        assert pack.counts.tokens == pack.tokens.size


def test_a_window_with_fewer_packs_than_are_said_to_be_out_is_refused() -> None:
    packer = packer_of(packing="best_fit", seq_len=8, boundary="mask", window=2, given=3)
    with pytest.raises(StateError, match="3 packs of a packing window are said to be out, and its documents make 2"):
        packer.feed([1] * 16)


def test_what_is_held_is_what_was_fed_and_is_known_before() -> None:
    window, lengths = 8, sizes(400, mean=100, longest=512)
    packer = packer_of(packing="best_fit", seq_len=512, boundary="mask", window=window)
    bound = Packing("best_fit", window=window).window_bytes(512)
    most = held = 0
    for length in lengths:
        packer.feed(np.ones(length, np.int32), np.ones(length, np.bool_))
        most = max(most, packer.buffered_bytes)
        held = sum(1 for _ in iter(packer.pop, None)) or held
    assert held
    assert 512 * window * 4 < most <= bound
    packer.finish()
    assert list(iter(packer.pop, None))
    assert (packer.buffered_bytes, packer.buffered_rows) == (0, 0)
    assert Packing("next_fit").window_bytes(512) == 0


def test_a_window_ends_with_so_many_documents_also_with_those_that_are_dropped() -> None:
    packing = Packing("best_fit", window=8, overflow="drop")
    bound = packing.window_documents(64)
    packer = packer_of(packing="best_fit", seq_len=64, boundary="mask", window=8, overflow="drop")
    most, packs = 0, []
    for number in range(20 * bound):
        length = 3 if number % 20 == 0 else 10_000
        packer.feed(np.ones(length, np.int32), np.ones(length, np.bool_))
        most = max(most, packer.buffered_bytes)
        packs += list(iter(packer.pop, None))
    assert len(packs) == 20
    assert all(pack.counts.documents == bound for pack in packs)
    assert most <= packing.window_bytes(64)


def test_a_window_ends_inside_a_long_document_and_holds_no_more_than_its_part() -> None:
    packer = packer_of(packing="best_fit", seq_len=8, boundary="mask", window=2)
    packer.feed([1] * 5)
    packer.feed(np.arange(100, dtype=np.int32))
    packs = []
    while packer.has_pack or packer.buffered_rows:
        pack = packer.pop()
        if pack is None:
            packer.finish()
            continue
        packs.append(pack)
    # Windows of 5 + 16 rows, of 16 rows five times, and the 4 rows that are left.
    ends = [(pack.next_document, pack.next_row) for pack in packs if not pack.given]
    assert ends == [(1, 16), (1, 32), (1, 48), (1, 64), (1, 80), (1, 96), (2, 0)]
    assert sum(pack.counts.split_documents for pack in packs) == 1
    assert sum(pack.counts.documents for pack in packs) == 2
    long = sorted(span[1:] for pack in packs for span in pack.spans if span.document == 1)
    assert long == [*((at, 8) for at in range(0, 96, 8)), (96, 4)]
    labels = {span.offset: int(label) for pack in packs for span, label in zip(pack.spans, pack.edge_labels)}
    assert labels[16 - 8] == 16  # the first token of the next window


def test_only_one_window_of_a_long_document_is_placed_at_once() -> None:
    packer = packer_of(packing="best_fit", seq_len=8, boundary="mask", window=2)
    packer.feed([1] * 8_000)
    for _ in range(2):
        assert packer.has_pack
        packer.pop()
    assert not packer.has_pack
    assert packer.buffered_rows == 8_000 - 16


def test_pack_takes_a_record_or_its_options_and_not_both() -> None:
    documents = [[1] * 5, [2] * 9, [3] * 2]
    options: dict[str, Any] = {"seq_len": 8, "boundary": "mask"}
    by_record = streampack.pack(documents, packing=Packing("best_fit", window=2), **options)
    by_options = streampack.pack(documents, packing="best_fit", window=2, **options)
    assert [each.tokens.tolist() for each in by_record] == [each.tokens.tolist() for each in by_options]
    with pytest.raises(ConfigError, match="give overflow, tail, lookahead and window there"):
        streampack.pack(documents, packing=Packing("best_fit"), window=2, **options)
