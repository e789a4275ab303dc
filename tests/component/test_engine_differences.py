"""An engine that gives other ids: right ids where it is compared, one warning with the place, a count, and an end."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.byte_levels import KNOWN
from support.tars import write_webdataset
from support.thorough import nightly

from streampack import HoldOut, PackedDataLoader, PackedDataset
from streampack.errors import TokenizerError
from streampack.records import ControlToken, Tokens
from streampack.testing import ByteTokenizer
from streampack.tokenizers import comparing
from streampack.tokenizers.comparing import ComparedEngine

FORK = {"multiprocessing_context": "fork"}
"""Workers compare as often as this process."""


class Wrong(ComparedEngine):
    """Wrong for texts that hold an x."""

    engine, library, own_name = "wrong", "Wrong 1.0", "bytes"

    def _encode(self, text: str, data: bytes) -> Tokens:
        ids: Tokens = self.plain.encode(text)
        return ids + np.int32("x" in text)


class WithControlTokens(ByteTokenizer):
    def control_tokens(self) -> dict[str, ControlToken]:
        return {"<|im_start|>": ControlToken(300), "<|im_end|>": ControlToken(301)}


@pytest.fixture(autouse=True)
def each_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "ONE_IN", 1)


def dataset(
    folder: Path, texts: list[str], *, engine: bool = True, chat: bool = False, **changes: Any
) -> PackedDataset:
    records = [{"messages": [{"role": "user", "content": text}]} if chat else {"text": text} for text in texts]
    samples = [{"__key__": f"s{index}", "json": json.dumps(each)} for index, each in enumerate(records)]
    (folder / "a.tar").write_bytes(write_webdataset(samples))
    plain = WithControlTokens()
    more = {"chat": "chatml", "field": "json:messages"} if chat else {"field": "json:text"}
    tokenizer = Wrong(plain) if engine else plain
    arguments = {"seq_len": 32 if chat else 8, "num_lanes": 2, "epochs": 1, **more, **changes}
    return PackedDataset(str(folder / "a.tar"), tokenizer, **arguments)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in caplog.messages if "Wrong 1.0" in text]


def tokens_of(loader: PackedDataLoader) -> list[list[int]]:
    return [batch["tokens"].tolist() for batch in loader]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_batches_are_right_and_the_documents_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, num_workers: int
) -> None:
    texts = [f"document {index}{'x' * (index in (3, 11))}" for index in range(20)]
    expected = tokens_of(PackedDataLoader(dataset(tmp_path, texts, engine=False), 1, num_workers=0))
    loader = PackedDataLoader(dataset(tmp_path, texts), 1, num_workers=num_workers, **FORK)
    with caplog.at_level(logging.WARNING, logger="streampack"):
        assert tokens_of(loader) == expected
    assert loader.stats()["engine_differences"] == 2
    (told,) = warnings_of(caplog)
    assert any(told.startswith(f"{tmp_path}/a.tar, sample 's{index}', record 0: Wrong 1.0 gives ") for index in (3, 11))
    assert 'use engine="bytes", or another release' in told


@pytest.mark.parametrize(
    ("num_workers", "part"), [(0, "val"), (3, "train"), *nightly([(0, "train"), (2, "train"), (2, "val"), (3, "val")])]
)
def test_more_than_ten_are_the_same_error_with_any_workers_after_right_packs_and_at_once_in_the_next_pass(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, num_workers: int, part: str
) -> None:
    texts = [f"{'x' if index % 3 == 0 else 'y'}{index:05}" for index in range(400)]
    changes = {"num_lanes": 8, "hold_out": HoldOut(part, 0.5)}
    right = tokens_of(PackedDataLoader(dataset(tmp_path, texts, engine=False, **changes), 1, num_workers=0))
    loader = PackedDataLoader(dataset(tmp_path, texts, **changes), 1, num_workers=num_workers, **FORK)
    found = []
    with pytest.raises(TokenizerError) as first, caplog.at_level(logging.WARNING, logger="streampack"):
        found.extend(batch["tokens"].tolist() for batch in loader)
    assert found == right[: len(found)]
    assert len(found) < len(right)
    assert str(first.value).startswith(
        "the engine gave other ids than the tokenizer that it stands for in more than 10 documents; a warning of each "
        "rank names its first one. "
    )
    assert 'engine="tokenizers" for a tokenizer.json' in str(first.value)
    assert len(warnings_of(caplog)) == 1
    assert loader.stats()["engine_differences"] == 11
    with pytest.raises(TokenizerError):
        next(iter(loader))
    assert loader.stats()["batches"] == len(found)
    loader.close()


def test_a_validation_set_counts_a_document_once_in_all_iterations(tmp_path: Path) -> None:
    texts = [f"{'x' * (index % 50 == 0)}{index:05}" for index in range(200)]
    loader = PackedDataLoader(dataset(tmp_path, texts, hold_out=HoldOut("val", 0.9)), 4, num_workers=0)
    for _ in range(5):
        assert tokens_of(loader)
    assert 1 <= loader.stats()["engine_differences"] <= 4


def test_ten_do_not_in_whatever_many_epochs(tmp_path: Path) -> None:
    texts = [f"{'x' * (index % 10 == 0)}{index}" for index in range(100)]
    loader = PackedDataLoader(dataset(tmp_path, texts, epochs=3), 1, num_workers=0)
    for _ in range(2):
        tokens_of(loader)
    assert loader.stats()["engine_differences"] == 10


def test_without_a_loader_the_first_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="streampack"):
        list(dataset(tmp_path, [f"{'x' * (index % 5 == 0)}{index}" for index in range(50)]))
    (told,) = warnings_of(caplog)
    assert told.startswith(f"{tmp_path}/a.tar, sample 's")


def test_a_part_of_a_conversation_is_told_with_a_sample_near_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loader = PackedDataLoader(dataset(tmp_path, ["hello", "xyz", "bye"], chat=True), 1, num_workers=0)
    with caplog.at_level(logging.WARNING, logger="streampack"):
        tokens_of(loader)
    (told,) = warnings_of(caplog)
    assert f"{tmp_path}/a.tar, sample 's" in told
    assert "or one near it: Wrong 1.0 gives" in told


def test_the_batches_of_text_that_nfc_changes_are_those_of_the_librarys_own_engine(tmp_path: Path) -> None:
    """Marks that the two libraries order in another way, and documents that are never compared."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(KNOWN["qwen"]))
    words = "قال مُ\u08d3\u0651ح N'Ko \u07d2\u07fd\u07ec cafe\u0301 हिन्दी "
    texts = [f"{index} {words}" for index in range(40)]
    dataset(tmp_path, texts)
    batches = []
    for engine in ("gigatoken", "tokenizers"):
        made = PackedDataset(
            str(tmp_path / "a.tar"), str(tmp_path / "tokenizer.json"), seq_len=64, num_lanes=2, epochs=1,
            field="json:text", add_bos=False, engine=engine,
        )  # fmt: skip
        loader = PackedDataLoader(made, 1, num_workers=0)
        batches.append(tokens_of(loader))
        assert loader.stats()["engine_differences"] == 0
    assert batches[0] == batches[1]
