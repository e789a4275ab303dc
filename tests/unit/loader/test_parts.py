"""The packs of each source of a bounded validation set: in proportion, exact, whatever is known of the others."""

from random import Random

import pytest

from streampack.loader.parts import parts


@pytest.mark.parametrize(
    ("num_packs", "held_out", "available", "wanted"),
    [
        (10, [6, 3, 1], [100, 50, 1], [5, 4, 1]),
        (10, [6, 3, 1], [2, 50, 1], [2, 7, 1]),
        (3, [10**15, 1, 1], [9, 9, 9], [1, 1, 1]),
        (100, [99, 1], [100, 100], [98, 2]),
        (2**63, [6, 3], [2, 50], [2, 50]),
        (4, [6, 3], [0, 50], [0, 4]),
        (4, [0, 0], [9, 9], [2, 2]),
        (7, [5], [9], [7]),
    ],
)
def test_each_source_has_one_pack_and_a_part_of_the_others(
    num_packs: int, held_out: list[int], available: list[int], wanted: list[int]
) -> None:
    assert parts(num_packs, held_out, available) == wanted


def test_they_add_up_and_do_not_depend_on_how_much_is_counted() -> None:
    random = Random(7)
    for _ in range(500):
        held_out = [random.choice([0, 1, random.randrange(10**9)]) for _ in range(random.randrange(1, 6))]
        available = [random.choice([0, 1, random.randrange(200)]) for _ in held_out]
        num_packs = random.randrange(len(held_out), 300)
        found = parts(num_packs, held_out, available)
        assert sum(found) == min(num_packs, sum(available))
        assert all(min(most, 1) <= packs <= most for packs, most in zip(found, available, strict=True))
        known = [most if packs == most or random.random() < 0.5 else num_packs for packs, most in zip(found, available)]
        assert parts(num_packs, held_out, known) == found
