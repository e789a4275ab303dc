"""The arguments of a dataset and of its loader: what is taken as what, and what is refused when they are given."""

import json
import pickle
import warnings
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streampack
from streampack.errors import ConfigError, TopologyError
from streampack.state.fingerprint import check_fingerprint

DATA = str(files("streampack") / "examples" / "data")


def dataset(data: Any = f"{DATA}/*.tar*", seq_len: Any = 64, **arguments: Any) -> streampack.PackedDataset:
    return streampack.PackedDataset(data, f"{DATA}/devil.model", seq_len, **arguments)


def loader(batch_size: Any = 1, **arguments: Any) -> streampack.PackedDataLoader:
    return streampack.PackedDataLoader(dataset(), batch_size, num_workers=0, **arguments)


def test_numbers_and_flags_of_numpy_are_stored_as_pythons() -> None:
    given = {
        "seq_len": np.int64(64),
        "num_lanes": np.int64(12),
        "pad_id": np.int32(0),
        "seed": np.uint8(3),
        "epochs": np.int16(1),
        "add_bos": np.bool_(True),
        "shuffle": np.bool_(False),
        "max_bad": np.float32(0.5),
        "hold_out": streampack.HoldOut("train", np.float32(0.25)),
        "limits": streampack.Limits(document_bytes=np.int64(2**20), buffer_bytes=np.int64(2**28)),
        "storage": streampack.Storage(cache_bytes=np.int64(2**30)),
    }
    data = dataset(**given)
    with streampack.PackedDataLoader(data, np.int64(2), num_workers=0, drop_last=np.bool_(True)) as batches:
        next(iter(batches))
        state = json.loads(json.dumps(batches.state_dict(), default=lambda tensor: tensor.tolist()))
    assert json.loads(state["fingerprint"])["num_lanes"] == 12
    numbers = (data.num_lanes, data.seq_len, data.pipeline.pad_id, data.epochs, data.limits.document_bytes)
    assert {type(number) for number in numbers} == {int}
    assert type(given["storage"].cache_bytes) is int
    assert type(data.pipeline.max_bad) is float


@pytest.mark.parametrize(
    "data",
    [
        lambda: map("{}/devil-0000{}.tar".format, [DATA] * 2, (0, 1)),
        {f"{DATA}/devil-00000.tar": 0, f"{DATA}/devil-00001.tar": 1}.keys,
    ],
    ids=["iterator", "keys"],
)
def test_names_of_shards_may_come_from_what_cannot_be_pickled(data: Callable[[], Any]) -> None:
    made = dataset(data())
    assert len(made.list_shards()) == 2
    assert pickle.loads(pickle.dumps(made)).fingerprint() == made.fingerprint()


class Rows:
    """As a `datasets.Dataset` is iterated."""

    def __iter__(self) -> Iterator[dict[str, str]]:
        return iter([{"text": "a document that no error prints"}])


def test_paths_are_taken_as_their_texts() -> None:
    first, second = Path(DATA, "devil-00000.tar"), Path(DATA, "devil-00001.tar")
    assert len(dataset(first).list_shards()) == 1
    assert dataset([first, str(second)]).fingerprint() == dataset([str(first), second]).fingerprint()


def test_no_error_prints_a_document() -> None:
    with pytest.raises(ConfigError) as caught:
        dataset(Rows())
    assert "a document" not in str(caught.value) and "write_shards" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: dataset(None), ConfigError, "data: None must be a URL or a path"),
        (lambda: dataset(3), ConfigError, "data: 3 must be"),
        (lambda: dataset(b"a.tar"), ConfigError, "data: b'a.tar' must be"),
        (lambda: dataset(["a.tar", 3]), ConfigError, "data: 3 (in a list) must be"),
        (lambda: dataset({"a.tar", "b.tar"}), ConfigError, "data: a set must be a URL or a path, as text"),
        (lambda: dataset({"text": {"a", "b"}}), ConfigError, "source 'text': data: a set must be"),
        (lambda: dataset(Rows()), ConfigError, ".Rows) must be a URL or a path, as text or os.PathLike; or several"),
        (lambda: dataset([]), ConfigError, "data: no shards, as a list is empty; it must be"),
        (lambda: dataset(""), ConfigError, "'' is not a shard specification"),
        (lambda: dataset(seq_len=64.0), ConfigError, "seq_len=64.0 must be a whole number from 2"),
        (lambda: dataset(field=3), ConfigError, "field=3 must be a string"),
        (lambda: dataset(transform="fn"), ConfigError, "transform='fn' must be a function or None"),
        (lambda: dataset(transform_version=1), ConfigError, "transform_version=1 must be a string"),
        (lambda: dataset(add_bos="no"), ConfigError, "add_bos='no' must be True or False"),
        (lambda: dataset(add_eos=0), ConfigError, "add_eos=0 must be True or False"),
        (lambda: dataset(limits={"buffer_bytes": 1}), ConfigError, "a streampack.Limits; write Limits(buffer_bytes=1)"),
        (lambda: dataset(num_lanes=np.array([1, 2])), ConfigError, "num_lanes=array([1, 2]) must be a whole number"),
        (lambda: dataset(shuffle=1), ConfigError, 'shuffle=1 must be True, "shards", False or a'),
        (lambda: dataset(max_bad="1"), ConfigError, "max_bad='1' must be a number"),
        (
            lambda: dataset(storage={"cache_dir": "/cache", "key": "hush"}),
            ConfigError,
            "options of the filesystem: use storage=streampack.Storage(cache_dir=...)",
        ),
        (lambda: dataset().for_rank("0", 2), ConfigError, "rank='0' must be a whole number."),
        (lambda: dataset().for_rank(False, 1), ConfigError, "rank=False must be a whole number."),
        (lambda: dataset().for_rank(-1, 2), TopologyError, "for_rank(-1, 2): the rank must be at least 0"),
        (lambda: dataset().set_epoch(0.5), ConfigError, "epoch=0.5 must be a whole number of at least 0"),
        (lambda: loader(dp_rank=0.0, dp_size=1), ConfigError, "dp_rank=0.0 must be a whole number."),
        (lambda: loader(dp_rank=0, dp_size=True), ConfigError, "dp_size=True must be a whole number."),
        (lambda: loader(mask="no"), ConfigError, "mask='no' must be True or False"),
        (lambda: loader(drop_last="no"), ConfigError, "drop_last='no' must be True or False"),
        (lambda: loader(provenance="no"), ConfigError, "provenance='no' must be True or False"),
        (lambda: loader(pin_memory="no"), ConfigError, "pin_memory='no' must be True, False or \"auto\""),
        (lambda: loader(whole_state="no"), ConfigError, "whole_state='no' must be True or False"),
        (
            lambda: loader(multiprocessing_context="thread"),
            ConfigError,
            "multiprocessing_context='thread' must be None, which forks workers from a process of their own",
        ),
        (lambda: loader(worker_timeout_s="1"), ConfigError, "worker_timeout_s='1' must be a number"),
        (lambda: loader().skip(-1), ConfigError, "num_batches=-1 must be a whole number of at least 0"),
    ],
)
def test_an_argument_of_a_wrong_type_is_refused(make: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert text in str(caught.value)


def test_a_setting_without_effect_warns_once() -> None:
    with pytest.warns(UserWarning, match="does nothing") as caught:
        data = dataset(packing=streampack.Packing("wrap", overflow="drop"))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packing = data.without_lookahead().pipeline.packing
        next(iter(data))
    assert (packing.lookahead, data.pipeline.packing.lookahead) == (False, True)


@pytest.mark.parametrize(
    ("saved", "now", "text"),
    [
        (("all", 0.0), ("train", 0.1), "'train' now; set hold_out=None, or start a new run"),
        (("train", 0.1), ("all", 0.0), "'all' now; set hold_out=HoldOut('train', 0.1), or start a new run"),
        (("train", 0.1), ("train", 0.2), "0.2 now; set HoldOut(fraction=...) back to the checkpoint's value"),
        (("train", 0.1), ("val", 0.1), "'val' now; set HoldOut(part=...) back to the checkpoint's value"),
    ],
)
def test_a_state_of_another_hold_out_says_what_to_set(saved: Any, now: Any, text: str) -> None:
    keys = ("split", "val_fraction")
    with pytest.raises(streampack.StateError) as caught:
        check_fingerprint(dict(zip(keys, saved, strict=True)), dict(zip(keys, now, strict=True)))
    assert text in str(caught.value)
