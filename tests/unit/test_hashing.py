"""Choices that must never change: if a value here moves, every order that was ever recorded is another one."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streampack.hashing import (
    Bijection,
    Purpose,
    generator,
    hash_name,
    hash_range,
    hash_words,
    is_held_out,
    permutation,
)

GAMMA = 0x9E3779B97F4A7C15


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ((), 0),
        ((0,), 0xE220A8397B1DCDAF),
        ((1,), 0x910A2DEC89025CC1),
        ((0, 0), 0xA706DD2F4D197E6F),  # a longer tuple of zeros is another one
        ((1, 2, 3), 0xD0734750FDE362B3),
        ((42, 1, 7), 0x1B1863149F1726FA),
        ((-1,), 0xE4D971771B652C20),  # modulo 2**64
        ((2**64 - 1,), 0xE4D971771B652C20),
        ((2**64 + 5,), 0x63033B0CA389C35A),
    ],
)
def test_the_hash_of_words_is_what_it_was(words: tuple[int, ...], value: int) -> None:
    assert hash_words(*words) == value


def test_one_word_is_one_step_of_splitmix64() -> None:
    """The first outputs of the published generator for the seed 1234567."""
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [hash_words(1234567 + step * GAMMA) for step in range(5)] == outputs


@given(st.lists(st.integers(-(2**70), 2**70), max_size=4), st.integers(0, 40))
def test_a_range_of_hashes_is_each_hash_by_itself(words: list[int], count: int) -> None:
    array = hash_range(*words, count=count)
    assert array.dtype == np.uint64
    assert array.tolist() == [hash_words(*words, index) for index in range(count)]


def test_a_range_of_hashes_is_what_it_was() -> None:
    assert hash_range(42, 1, count=3).tolist() == [0x93BE8420BB55B94C, 0x56F806FA1C91F122, 0xF4269628263F4C12]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("", 0xB4B2797457A0A6E4),
        ("a", 0x2F42665B399EF840),
        ("devil-00000.tar", 0x5A6CF04261A6D211),
        ("é漢字🙂", 0xAE5EF763922D97CC),
        ("\udc80", 0x3DB70814E1CF6641),  # a file name that is not UTF-8
    ],
)
def test_the_hash_of_a_name_is_what_it_was(name: str, value: int) -> None:
    assert hash_name(name) == value


def test_permutations_are_what_they_were() -> None:
    assert permutation(42, 1, 0, count=10).tolist() == [9, 0, 4, 1, 6, 5, 7, 8, 3, 2]
    assert permutation(count=6).tolist() == [3, 5, 4, 1, 2, 0]


@given(st.integers(0, 2**64 - 1), st.integers(0, 300))
def test_a_permutation_holds_each_index_once(seed: int, count: int) -> None:
    order = permutation(seed, count=count)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))


def test_permutations_of_two_epochs_are_unrelated() -> None:
    first, second = (permutation(42, Purpose.SHARD_ORDER, epoch, count=10_000) for epoch in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert np.count_nonzero(first == second) < 10  # one is to be expected


def test_the_purposes_are_what_they_were() -> None:
    assert {purpose.name: purpose.value for purpose in Purpose} == {
        "SHARD_ORDER": 1,
        "SPLIT": 2,
        "TRANSFORM": 3,
        "GLOBAL_GENERATORS": 4,
        "BLOCK_ORDER": 5,
        "WINDOW_ORDER": 6,
        "PACK_ORDER": 7,
        "CELLS": 8,
        "SOURCE": 9,
        "WRITE_ORDER": 10,
    }


def held_out(fraction: float, *, name: str = "a.tar", count: int = 20_000) -> list[int]:
    return [i for i in range(count) if is_held_out(name=name, key=f"{i:03d}", record=0, fraction=fraction)]


def test_the_held_out_documents_are_what_they_were() -> None:
    assert held_out(0.05, count=200) == [13, 19, 21, 60, 77, 117, 146, 159, 178, 181, 184]


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.5, 0.9])
def test_the_held_out_share_is_the_fraction(fraction: float) -> None:
    deviation = (20_000 * fraction * (1 - fraction)) ** 0.5
    assert abs(len(held_out(fraction)) - 20_000 * fraction) < 4 * deviation


def test_a_larger_fraction_holds_out_what_a_smaller_one_does() -> None:
    assert set(held_out(0.01)) < set(held_out(0.02))


def test_nothing_and_everything_can_be_held_out() -> None:
    assert held_out(0.0) == []
    assert held_out(1.0) == list(range(20_000))


def test_shard_key_and_record_each_decide_what_is_held_out() -> None:
    by_shard, by_key = set(held_out(0.5)), set(held_out(0.5, name="b.tar"))
    by_record = {i for i in range(20_000) if is_held_out(name="a.tar", key="000", record=i, fraction=0.5)}
    for other in (by_key, by_record):
        assert 9_000 < len(by_shard ^ other) < 11_000


def test_a_generators_first_draws_are_what_they_were() -> None:
    """Raw words only: NumPy may change how it makes other numbers of them."""
    raw = generator(42, 3, 0, 17, 512, 0).bit_generator.random_raw(4)
    assert raw.tolist() == [0x217F80F6F6192535, 0x9FD0F43013C53846, 0x3D650972CD28543B, 0xF5AAB0D52661A7CF]


def test_generators_of_neighbours_are_different() -> None:
    first = {generator(42, record).bit_generator.random_raw(1)[0] for record in range(1000)}
    assert len(first) == 1000


def test_no_choice_depends_on_the_process() -> None:
    """Python salts `hash()` anew in each process; nothing here may see that."""
    program = "from streampack.hashing import *; print(hash_words(42, 1, 7), hash_name('a'), permutation(7, count=5))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    }
    assert outputs == {f"{0x1B1863149F1726FA} {0x2F42665B399EF840} [1 2 3 4 0]\n"}


@pytest.mark.parametrize(
    ("words", "count", "first"),
    [
        ((Purpose.BLOCK_ORDER, 0, 0), 10, [0, 1, 4, 7, 9, 3]),
        ((Purpose.BLOCK_ORDER, 0, 1), 10, [7, 3, 5, 8, 6, 0]),
        ((Purpose.BLOCK_ORDER, 7, 3), 1000, [384, 343, 720, 450, 823, 241]),
        ((Purpose.BLOCK_ORDER, 0, 0), 400_000_000, [382158000, 122909690, 10146135, 105189013, 205244321, 261779390]),
        (
            (Purpose.BLOCK_ORDER, 0, 0),
            2**62,
            [
                1189878743175221383,
                1791533922489506304,
                3036490937011829350,
                2977114923131082785,
                459015763592173910,
                1583590844822229737,
            ],
        ),
    ],
)
def test_a_bijection_is_what_it_was(words: tuple[int, ...], count: int, first: list[int]) -> None:
    assert Bijection(*words, count=count).of(np.arange(6)).tolist() == first


def by_definition(words: tuple[int, ...], count: int, number: int) -> int:
    """One number at a time, as the docstring says it."""
    half = next(h for h in range(1, 32) if 4**h >= count)
    while True:
        left, right = number >> half, number % 2**half
        for each in range(8):
            left, right = right, left ^ (hash_words(*words, each, right) % 2**half)
        number = left * 2**half + right
        if number < count:
            return number


@pytest.mark.parametrize("count", [*range(1, 66), 255, 256, 257, 4095, 4097])
def test_a_bijection_is_a_permutation_with_an_inverse(count: int) -> None:
    numbers = np.arange(count)
    for seed in range(2):
        bijection = Bijection(1, seed, count=count)
        permuted = bijection.of(numbers)
        assert permuted.dtype == np.int64
        assert np.sort(permuted).tolist() == numbers.tolist()
        assert bijection.inverse(permuted).tolist() == numbers.tolist()
        assert permuted[:20].tolist() == [by_definition((1, seed), count, number) for number in range(min(count, 20))]


def test_every_small_permutation_comes_about_as_often() -> None:
    """A network of few rounds does not reach all 24."""
    found = [tuple(Bijection(seed, count=4).of(np.arange(4)).tolist()) for seed in range(2400)]
    counts = [found.count(each) for each in set(found)]
    assert len(counts) == 24
    assert 60 < min(counts) <= max(counts) < 145


def test_a_bijection_of_many_numbers_leaves_no_trace_of_their_order() -> None:
    permuted = Bijection(Purpose.BLOCK_ORDER, 3, 1, count=399_999_999).of(np.arange(20_000))
    assert abs(np.corrcoef(permuted[:-1], permuted[1:])[0, 1]) < 0.03
    assert abs(permuted.mean() / 200e6 - 1) < 0.02
    assert np.unique(permuted).size == 20_000
