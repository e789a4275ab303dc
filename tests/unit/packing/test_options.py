"""The option record `Packing`: its shorthands, what it decides, and what it refuses."""

import dataclasses
import pickle
import warnings
from typing import Any

import pytest

import streampack
from streampack.errors import ConfigError
from streampack.packing.options import Overflow, Packing, PackingKind, Tail, as_packing


def test_the_record_is_public_and_turns_names_into_members() -> None:
    packing = streampack.Packing("next_fit", overflow="drop", tail="drop")
    assert packing == Packing(PackingKind.NEXT_FIT, Overflow.DROP, Tail.DROP, lookahead=True)
    assert packing.kind is PackingKind.NEXT_FIT
    assert packing.keeps_documents_whole
    assert pickle.loads(pickle.dumps(packing)) == packing
    with pytest.raises(dataclasses.FrozenInstanceError):
        packing.kind = PackingKind.WRAP  # type: ignore[misc]


@pytest.mark.parametrize(
    ("value", "conversations", "kind", "overflow"),
    [
        (None, False, "wrap", "split"),
        (None, True, "next_fit", "error"),  # nobody asked for a conversation to be split
        ("wrap", False, "wrap", "split"),
        ("wrap", True, "wrap", "split"),
        (PackingKind.NEXT_FIT, False, "next_fit", "split"),
        ("next_fit", True, "next_fit", "error"),
        (Packing("next_fit", overflow="truncate"), True, "next_fit", "truncate"),
        (Packing("next_fit"), False, "next_fit", "split"),
        (Packing("next_fit"), True, "next_fit", "error"),
        ("best_fit", False, "best_fit", "split"),
        ("best_fit", True, "best_fit", "error"),
    ],
)
def test_a_shorthand_becomes_a_record_whose_overflow_is_decided(
    value: Any, conversations: bool, kind: str, overflow: str
) -> None:
    assert as_packing(value, conversations=conversations) == Packing(kind, overflow=overflow)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "wrapped"}, "packing='wrapped' is not known; did you mean \"wrap\"\\?"),
        ({"kind": None}, "packing=None is not known; choose one of wrap, next_fit, best_fit"),
        ({"kind": "best_fit", "window": 0}, "packing.window=0 must be a whole number from 1 to 65536"),
        ({"kind": "best_fit", "window": 10**30}, "packing.window=1000.* must be a whole number from 1 to 65536"),
        ({"kind": "best_fit", "window": 2.5}, "window=2.5 must be a whole number"),
        ({"kind": "best_fit", "lookahead": False}, 'lookahead=False works with packing="wrap" only'),
        ({"kind": "next_fit", "overflow": "cut"}, "overflow='cut' is not known"),
        ({"kind": "wrap", "tail": "padding"}, "tail='padding' is not known; did you mean \"pad\""),
        ({"kind": "wrap", "lookahead": "no"}, "lookahead='no' must be True or False"),
        ({"kind": "next_fit", "lookahead": False}, 'lookahead=False works with packing="wrap" only'),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Packing(**options)


def test_a_window_is_of_best_fit_only() -> None:
    assert (Packing("best_fit").window, as_packing("best_fit").window) == (64, 64)
    assert as_packing(Packing("best_fit", window=8)).window == 8
    for kind in ("wrap", "next_fit"):
        with pytest.warns(UserWarning, match=f'window=8 does nothing under packing="{kind}"') as caught:
            packing = Packing(kind, window=8)
        assert caught[0].filename == __file__
        assert packing == Packing(kind)


def test_an_overflow_that_wrap_ignores_warns_where_the_record_is_made() -> None:
    with pytest.warns(UserWarning, match='overflow="drop" does nothing under packing="wrap"') as caught:
        packing = Packing("wrap", overflow="drop")
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert as_packing(packing) is packing
        Packing("wrap", overflow="split")
