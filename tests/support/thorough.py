"""What a test tries: some of many alike in the normal run, all of them where $STREAMPACK_TESTS is "thorough".

tests/nightly/test_search.py runs the tests that use it thoroughly.
"""

import os
from collections.abc import Sequence
from typing import TypeVar

import pytest

Value = TypeVar("Value")
THOROUGH = os.environ.get("STREAMPACK_TESTS") == "thorough"

long = pytest.mark.skipif(not THOROUGH, reason="long: for the nightly run")


def nightly(values: Sequence[Value]) -> list[Value]:
    """All of the values in the nightly run, and none in the normal one."""
    return list(values) if THOROUGH else []


def some(values: Sequence[Value], one_in: int, *, first: int = 0) -> list[Value]:
    """Every `one_in`-th value, from the index `first` on; or all."""
    return list(values) if THOROUGH else list(values)[first::one_in]
