"""Ids that the tokenizer's vocabulary does not have: an error that names the place, the id and the size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.jobs import npy, write_tar

import streampack
from streampack.cli.count.tally import tally_shard
from streampack.errors import ConfigError, RecordError, TokenizerError
from streampack.testing import ByteTokenizer


class Shifted(ByteTokenizer):
    """Bytes, and for every "x" an id of the caller's choice."""

    digest = "shifted"
    token: Any = 259

    def encode(self, text: str) -> Any:
        ids = super().encode(text).astype(np.int64)
        ids[ids == ord("x") + 3] = self.token
        return ids


def dataset(shard: Path, tokenizer: Any, **arguments: Any) -> streampack.PackedDataset:
    options = {"num_lanes": 1, "epochs": 1, "shuffle": False, "packing": "next_fit"}
    return streampack.PackedDataset([str(shard)], tokenizer, 8, **{**options, **arguments})


def given_by(data: streampack.PackedDataset) -> tuple[int, int]:
    """Documents that came, and bad records."""
    with streampack.PackedDataLoader(data, num_workers=0) as loader:
        documents = sum(int(batch["segment_ids"].max()) for batch in loader)
        return documents, loader.stats()["bad_records"]


@pytest.mark.parametrize("token", [259, -1, -100, 2**31, 2**40])
def test_an_id_that_a_tokenizer_gives_and_does_not_have_is_an_error(tmp_path: Path, token: int) -> None:
    tokenizer = Shifted()
    tokenizer.token = token
    shard = write_tar(tmp_path / "0.tar", [("0.txt", b"ab"), ("1.txt", b"axb"), ("2.txt", b"cd")])
    message = rf"0\.tar, member '1': the tokenizer gave the token id {token}, and its vocab_size is 259"
    with pytest.raises(RecordError, match=message):
        given_by(dataset(shard, tokenizer))
    assert given_by(dataset(shard, tokenizer, on_error="skip")) == (2, 1)
    tokenizer.token = 258
    assert given_by(dataset(shard, tokenizer)) == (3, 0)


@pytest.mark.parametrize("dtype", ["<i4", ">i4", "<u2", "<i8", "<u8"])
def test_an_id_of_an_array_that_the_tokenizer_does_not_have_is_an_error(tmp_path: Path, dtype: str) -> None:
    members = [("0.npy", npy([5, 258], dtype)), ("1.npy", npy([5, 300, 7], dtype)), ("2.npy", npy([0], dtype))]
    shard = write_tar(tmp_path / "0.tar", members)
    message = r"0\.tar, member '1\.npy': .* from 5 to 300; they must be from 0 to 258, as .* vocab_size=259"
    with pytest.raises(RecordError, match=message):
        given_by(dataset(shard, ByteTokenizer(), field="npy"))
    assert given_by(dataset(shard, ByteTokenizer(), field="npy", on_error="skip")) == (2, 1)
    nobody_knows = dataset(shard, None, field="npy", add_bos=False, add_eos=False)
    assert given_by(nobody_knows) == (3, 0)


def test_ids_of_a_transform_are_in_the_vocabulary(tmp_path: Path) -> None:
    def as_tokens(document: streampack.Document, rng: object) -> streampack.Document:
        return streampack.Document(tokens=np.array([1, 259]))

    shard = write_tar(tmp_path / "0.tar", [("0.txt", b"ab")])
    with pytest.raises(ConfigError, match="transform .*as_tokens.*returned token ids from 1 to 259; .* from 0 to 258"):
        given_by(dataset(shard, ByteTokenizer(), transform=as_tokens))


@pytest.mark.parametrize("name", ["bos_id", "eos_id", "pad_id"])
def test_a_tokenizers_own_ids_are_in_its_vocabulary(tmp_path: Path, name: str) -> None:
    tokenizer = Shifted()
    setattr(tokenizer, name, np.int64(259))
    shard = write_tar(tmp_path / "0.tar", [("0.txt", b"ab")])
    with pytest.raises(TokenizerError, match=f"Shifted cannot be used .*: {name} must be below vocab_size, 259"):
        dataset(shard, tokenizer)


@pytest.mark.parametrize("token", [259, -1])
def test_a_label_at_boundaries_is_in_the_vocabulary(tmp_path: Path, token: int) -> None:
    shard = write_tar(tmp_path / "0.tar", [("0.txt", b"ab")])
    with pytest.raises(ConfigError, match=rf"ReplaceBoundary\({token}\) would be a label .* from 0 to 258"):
        dataset(shard, ByteTokenizer(), boundary=streampack.ReplaceBoundary(token))


@pytest.mark.parametrize(("token", "text"), [(259, "is not below 259, the vocab_size"), (-1, "must be a whole number")])
def test_a_padding_token_is_in_the_vocabulary(tmp_path: Path, token: int, text: str) -> None:
    shard = write_tar(tmp_path / "0.tar", [("0.txt", b"ab")])
    with pytest.raises(ConfigError, match=f"pad_id={token} {text}"):
        dataset(shard, ByteTokenizer(), pad_id=token)


def test_such_an_id_is_counted_as_a_bad_record(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", [("0.txt", b"ab"), ("1.txt", b"axb"), ("2.txt", b"cd")])
    for on_error in ("skip", "raise"):
        data = dataset(shard, Shifted(), on_error=on_error)
        listed = data.corpus(1).table[0]
        if on_error == "raise":
            with pytest.raises(RecordError, match=r"0\.tar, member '1': the tokenizer gave the token id 259"):
                tally_shard(data.pipeline, 0, listed, has_tokens=True, tell=lambda size: None)
        else:
            tally = tally_shard(data.pipeline, 0, listed, has_tokens=True, tell=lambda size: None)
            assert (tally.tokens, tally.bad_records) == (8, 1)


# One token for both, as GPT-2's.


class OneForBoth(ByteTokenizer):
    eos_id = 1
    digest = "one for both"


@pytest.mark.parametrize("boundary", ["mask_bos_target", "mask_eos_input"])
def test_policies_that_look_at_values_cannot_tell_a_bos_from_an_eos_of_the_same_id(
    tmp_path: Path, boundary: str
) -> None:
    shard = write_tar(tmp_path / "0.tar", [("0.txt", b"ab"), ("1.txt", b"c")])
    with pytest.raises(ConfigError, match=f'boundary="{boundary}" with bos_id == eos_id == 1 would mask'):
        dataset(shard, OneForBoth(), boundary=boundary)


def test_without_a_bos_in_front_an_eos_of_the_same_id_is_found(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", [("0.txt", b"ab"), ("1.txt", b"c")])
    [pack] = dataset(shard, OneForBoth(), boundary="mask_eos_input", add_bos=False)
    a, b, c = (ord(letter) + 3 for letter in "abc")
    assert pack["tokens"].tolist() == [a, b, 1, c, 1, 0, 0, 0]
    assert pack["labels"].tolist() == [b, 1, -100, 1, -100, -100, -100, -100]
    arrays = write_tar(tmp_path / "1.tar", [("0.npy", npy([1, a, 1], "<i4"))])
    with pytest.raises(ConfigError, match='boundary="mask_eos_input" with bos_id == eos_id'):  # they may hold a BOS
        dataset(arrays, OneForBoth(), boundary="mask_eos_input", add_bos=False, field="npy")
