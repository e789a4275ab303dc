"""Warnings point at the line of the user's that led to them, however deep in streampack they arise."""

import warnings
from pathlib import Path

import pytest

import streampack
from streampack.examples.make_data import DATA
from streampack.testing import ByteTokenizer


def test_a_warning_points_at_the_line_outside_of_streampack() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        streampack.Packing("wrap", overflow="drop")
        streampack.PackedDataset(
            str(DATA / "devil-00000.tar"), ByteTokenizer(), 64, num_packs=24, stages=[
                streampack.Stage(), streampack.Stage(at_packs=48)
            ]
        )
    assert [Path(each.filename) for each in caught] == [Path(__file__)] * 2


def test_so_does_one_of_an_iteration() -> None:
    data = streampack.PackedDataset(str(DATA / "devil-00000.tar"), ByteTokenizer(), 64, num_lanes=1)
    with streampack.PackedDataLoader(data, num_workers=2) as loader, pytest.warns(UserWarning, match="num_w") as caught:
        next(iter(loader))
    assert [Path(each.filename) for each in caught] == [Path(__file__)]
