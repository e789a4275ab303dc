"""The options of a storage: what works, what is refused, what is shown."""

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest

from streampack import RetryPolicy, Storage
from streampack.errors import ConfigError
from streampack.storage.access import StorageReader


def test_options_are_equal_by_value_and_survive_a_pickle() -> None:
    given = {"key": "who", "secret": "hush-hush"}
    storage = Storage(options=given, retry=RetryPolicy(budget_s=1), cache_dir=Path("/cache"), cache_bytes=2**30)
    assert storage == Storage(options=given, retry=RetryPolicy(budget_s=1), cache_dir="/cache", cache_bytes=2**30)
    assert pickle.loads(pickle.dumps(storage)) == storage
    given["secret"] = "another"
    assert storage.options == {"key": "who", "secret": "hush-hush"}


def test_no_value_of_a_storage_option_is_shown() -> None:
    storage = Storage(options={"secret": "hush", "client_kwargs": {"password": "hush"}}, cache_dir="/cache")
    assert repr(storage) == (
        "Storage(options={'secret': ***, 'client_kwargs': ***}, "
        f"retry={RetryPolicy()!r}, cache_dir='/cache', cache_bytes=68719476736)"
    )
    assert "hush" not in repr(StorageReader.of(storage))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cache_dir": "s3://b/cache"}, "cache_dir='s3://b/cache' must be a folder on a disk of this node, or None"),
        ({"cache_dir": ""}, "cache_dir='' must be a folder on a disk"),
        ({"cache_bytes": 1000}, "cache_bytes=1000 must be a whole number of at least 16777216"),
        ({"cache_bytes": 1e9}, "cache_bytes=1000000000.0 must be a whole number"),
        ({"cache_bytes": True}, "cache_bytes=True must be a whole number"),
        ({"options": ["key"]}, "storage options must be a mapping, not list"),
        ({"options": {1: 2}}, "storage options have names, which are strings: 1 is not one"),
        ({"cache_dir": 3}, "cache_dir=3 must be a folder on a disk"),
        ({"cache_dir": b"x"}, "cache_dir=b'x' must be a folder on a disk"),
        ({"retry": 3}, "retry=3 must be a RetryPolicy"),
    ],
)
def test_a_value_that_cannot_work_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Storage(**given)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget_s": "1"}, "budget_s='1' must be a number"),
        ({"timeout_s": None}, "timeout_s=None must be a number"),
        ({"timeout_s": float("nan")}, "it needs budget_s >= 0, timeout_s > 0"),
        ({"first_wait_s": True}, "first_wait_s=True must be a number"),
        ({"max_wait_s": 0.01}, "first_wait_s <= max_wait_s"),
        ({"jitter": "no"}, "jitter='no' must be True or False"),
        ({"max_tries": True}, "max_tries=True must be a whole number of at least 1"),
        ({"max_tries": 1.5}, "max_tries=1.5 must be a whole number of at least 1"),
        ({"start_s": -1}, "and start_s >= 0"),
        ({"start_s": None}, "start_s=None must be a number"),
    ],
)
def test_a_policy_that_cannot_work_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        RetryPolicy(**given)
    assert message in str(raised.value)


def test_a_record_cannot_be_changed() -> None:
    storage = Storage(options={"key": "who"})
    with pytest.raises(TypeError):
        storage.options["key"] = "another"  # type: ignore[index]
    assert hash(storage) == hash(Storage(options={"key": "who"}))
    assert copy.deepcopy(storage) == dataclasses.replace(storage) == storage


def test_a_reader_of_options_reads_through_their_cache(tmp_path: Path) -> None:
    reader = StorageReader.of(Storage(cache_dir=tmp_path))
    assert pickle.loads(pickle.dumps(reader)).__getstate__()["folder"].max_bytes == 64 * 2**30
    assert StorageReader.of(Storage()).__getstate__()["folder"] is None
