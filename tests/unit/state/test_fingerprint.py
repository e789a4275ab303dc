"""What a state says of another run: the libraries that make the ids."""

import importlib.metadata
import json
import logging

import pytest

from streampack.state.fingerprint import warn_of_libraries
from streampack.testing import ByteTokenizer
from streampack.tokenizers.libraries import libraries_of


@pytest.mark.parametrize(
    ("saved", "now", "text"),
    [
        ({"tokenizers": "0.20.0"}, {"tokenizers": "0.21.0"}, "is 0.20.0 in the state and 0.21.0 now"),
        ({"sentencepiece": "0.2.0"}, {}, "is 0.2.0 in the state and not used now"),
        ({}, {"gigatoken": "1.0"}, "is not used in the state and 1.0 now"),
        ({"tokenizers": "0.20.0"}, {"tokenizers": "0.20.0"}, None),
        ({}, {}, None),
    ],
)
def test_libraries_with_other_versions_are_named(
    saved: dict[str, str], now: dict[str, str], text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_libraries(json.dumps(saved), now)
    assert len(caplog.messages) == (text is not None)
    assert (text or "") in caplog.text
    assert all(name in caplog.text for name in {*saved, *now} if text)


@pytest.mark.parametrize("damaged", [None, 7, "{"])
def test_a_state_without_libraries_tells_of_none(damaged: object, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_libraries(damaged, {})
    assert not caplog.messages


def test_the_libraries_are_those_that_make_the_ids() -> None:
    class OfPytest(ByteTokenizer):
        pass

    OfPytest.__module__ = "pytest.anything"
    assert libraries_of(None) == libraries_of(ByteTokenizer()) == {}
    assert libraries_of(OfPytest()) == {"pytest": importlib.metadata.version("pytest")}
    ours = type("Huge", (), {"__module__": "streampack.tokenizers.huggingface"})
    assert libraries_of(ours()) == {"tokenizers": importlib.metadata.version("tokenizers")}
