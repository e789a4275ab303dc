"""What component tests have in common: the model of the demo, which hundreds of them load, is taken apart once."""

import functools
from collections.abc import Iterator

import pytest

from streampack.tokenizers import bpe


@pytest.fixture(autouse=True, scope="session")
def _models_are_taken_apart_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "read_model", functools.cache(bpe.read_model))
        yield
