"""An engine that gives other ids: right ids where it is compared, one warning with the place, a count, and an end."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from support.tars import write_webdataset

from streampack import PackedDataLoader, PackedDataset
from streampack.errors import TokenizerError
from streampack.records import ControlToken, Tokens
from streampack.testing import ByteTokenizer
from streampack.tokenizers import comparing
from streampack.tokenizers.comparing import ComparedEngine


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


def dataset(folder: Path, texts: list[str], *, engine: bool = True, chat: bool = False) -> PackedDataset:
    records = [{"messages": [{"role": "user", "content": text}]} if chat else {"text": text} for text in texts]
    samples = [{"__key__": f"s{index}", "json": json.dumps(each)} for index, each in enumerate(records)]
    (folder / "a.tar").write_bytes(write_webdataset(samples))
    plain = WithControlTokens()
    more = {"chat": "chatml", "field": "json:messages"} if chat else {"field": "json:text"}
    tokenizer = Wrong(plain) if engine else plain
    return PackedDataset(str(folder / "a.tar"), tokenizer, seq_len=32 if chat else 8, num_lanes=2, epochs=1, **more)


def tokens_of(loader: PackedDataLoader) -> list[list[int]]:
    return [batch["tokens"].tolist() for batch in loader]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_batches_are_right_and_the_documents_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, num_workers: int
) -> None:
    texts = [f"document {index}{'x' * (index in (3, 11))}" for index in range(20)]
    settings = {"num_workers": num_workers, "multiprocessing_context": "fork"}
    expected = tokens_of(PackedDataLoader(dataset(tmp_path, texts, engine=False), 1, num_workers=0))
    loader = PackedDataLoader(dataset(tmp_path, texts), 1, **settings)
    with caplog.at_level(logging.WARNING, logger="streampack"):
        assert tokens_of(loader) == expected
    assert loader.stats()["engine_differences"] == 2
    if not num_workers:
        (told,) = [record.getMessage() for record in caplog.records if "Wrong 1.0" in record.getMessage()]
        assert any(
            told.startswith(f"{tmp_path}/a.tar, sample 's{index}', record 0: Wrong 1.0 gives ") for index in (3, 11)
        )
        assert 'use engine="bytes", or another release' in told


def test_more_than_ten_end_the_run_after_the_packs_before_them(tmp_path: Path) -> None:
    texts = [f"x{index:05}" for index in range(400)]
    loader = PackedDataLoader(dataset(tmp_path, texts), 1, num_workers=0)
    found = []
    with pytest.raises(TokenizerError, match=r"other ids than the tokenizer that it stands for in \d\d doc"):
        found.extend(batch["tokens"].tolist() for batch in loader)
    right = tokens_of(PackedDataLoader(dataset(tmp_path, texts, engine=False), 1))
    assert found
    assert found == right[: len(found)]
    with pytest.raises(TokenizerError, match='engine="tokenizers" for a tokenizer.json'):
        next(iter(loader))


def test_ten_do_not(tmp_path: Path) -> None:
    loader = PackedDataLoader(dataset(tmp_path, ["x" * (index % 10 == 0) for index in range(100)]), 1, num_workers=0)
    tokens_of(loader)
    assert loader.stats()["engine_differences"] == 10


def test_a_part_of_a_conversation_is_told_with_a_sample_near_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loader = PackedDataLoader(dataset(tmp_path, ["hello", "xyz", "bye"], chat=True), 1, num_workers=0)
    with caplog.at_level(logging.WARNING, logger="streampack"):
        tokens_of(loader)
    (told,) = [record.getMessage() for record in caplog.records if "Wrong 1.0" in record.getMessage()]
    assert f"{tmp_path}/a.tar, sample 's" in told
    assert "or one near it: Wrong 1.0 gives" in told
