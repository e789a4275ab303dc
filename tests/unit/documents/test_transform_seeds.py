"""The global random generators, around a call of a transform."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from streampack.documents.transform import own_draws, transformed, undisturbed
from streampack.records import Document

PLACES = [(0, 0, 0, 0, 0), (1, 0, 0, 0, 0), (0, 1, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, 1, 0), (0, 0, 0, 0, 1)]


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random_sample()), float(torch.rand(()))  # noqa: NPY002 (the global one)


def drawn_at(place: tuple[int, ...]) -> tuple[float, ...]:
    drawn: list[float] = []

    def transform(document: Document, rng: np.random.Generator) -> Document:
        drawn.extend([*draws(), *draws(), rng.random()])
        return document

    transformed(Document(text="a text"), transform, place, 1000)
    return tuple(drawn)


def test_each_document_draws_its_own_numbers_and_always_the_same() -> None:
    first = [drawn_at(place) for place in PLACES]
    draws()
    assert [drawn_at(place) for place in reversed(PLACES)] == first[::-1]
    assert len({number for drawn in first for number in drawn}) == 7 * len(PLACES)


def test_the_numbers_never_change() -> None:
    """They are part of what a run is; torch's and numpy's streams are theirs to keep."""
    assert [round(number, 6) for number in drawn_at((0, 0, 0, 0, 0))[:3]] == [0.660415, 0.866008, 0.698066]


def test_the_trainers_own_draws_are_as_if_no_transform_had_been_called() -> None:
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(7)  # type: ignore[operator]
    wanted = [draws() for _ in range(3)]
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(7)  # type: ignore[operator]
    found = []
    items = undisturbed(map(drawn_at, PLACES))
    for _ in range(3):
        found.append(draws())
        next(items)
    assert found == wanted


def test_that_holds_after_an_error() -> None:
    def failing(document: Document, rng: np.random.Generator) -> Any:
        raise ValueError("a document that it does not like")

    random.seed(7)
    wanted = random.random()
    random.seed(7)
    with pytest.raises(ValueError, match="does not like"), own_draws():
        transformed(Document(text="a text"), failing, PLACES[0], 1000)
    assert random.random() == wanted
