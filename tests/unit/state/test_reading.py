"""A loader's state out of checkpoints that torch.distributed.checkpoint wrote in this process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from streampack.errors import ConfigError, StateError
from streampack.lanes.position import SkippedRange
from streampack.state.forms import SLOTS, key_of_more, may_have_more, read_lanes, to_tables
from streampack.state.reading import read_checkpoint

LANES = 12
SOURCES = 3
MANY = {
    (lane, source): tuple(SkippedRange(0, 7, lane, at, at + 1, source) for at in range(SLOTS + lane))
    for lane, source in ((0, 0), (3, 0), (3, 2), (5, 1))
}
"""(lane, source) -> what was skipped there."""


def state(*, first: int = 0, step: int = 1) -> dict[str, Any]:
    lanes = range(first, LANES, step)
    rows = np.array([[[lane, source] for source in range(SOURCES)] for lane in lanes])
    tables = to_tables(lanes, LANES, rows, {at: MANY[at] for at in MANY if at[0] in lanes})
    return {"order_version": 2, "global_pack": 7, **tables}


def save(path: Path, saved: dict[str, Any]) -> None:
    dcp.save(saved, checkpoint_id=path)


@pytest.mark.parametrize("ranks", [1, 3, 4])
@pytest.mark.filterwarnings("ignore")
def test_all_skipped_ranges_are_read_on_any_ranks(tmp_path: Path, ranks: int) -> None:
    top = {"bias": torch.zeros(3), "scalar": torch.tensor(3), "flat": torch.zeros(1, 5), "lr": 0.1}
    save(tmp_path, {**state(), **top})
    for rank in range(ranks):
        found = read_checkpoint(tmp_path, lambda lanes, rank=rank: range(rank, lanes, ranks), key=None)
        assert found.keys() <= {"order_version", "global_pack", "rows", "skipped_ranges", key_of_more(range(LANES))}
        held = read_lanes(found, LANES, SOURCES, 2)
        assert held.rows.tolist() == [[[lane, each] for each in range(SOURCES)] for lane in range(rank, LANES, ranks)]
        assert held.skipped_ranges == {at: MANY[at] for at in MANY if at[0] % ranks == rank}


def test_a_key_for_each_rank_and_only_where_there_are_more() -> None:
    assert [key for key in state() if "-" in key] == ["skipped_ranges.000000-0001"]
    assert [key for key in state(first=1, step=4) if "-" in key] == ["skipped_ranges.000001-0004"]
    assert not [key for key in state(first=2, step=4) if "-" in key]


@pytest.mark.parametrize("step", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("other", [1, 2, 3, 4, 6, 12])
def test_a_rank_looks_at_the_keys_that_may_hold_its_lanes(step: int, other: int) -> None:
    for first in range(step):
        lanes = range(first, LANES, step)
        for begin in range(other):
            theirs = range(begin, LANES, other)
            assert may_have_more(key_of_more(theirs), lanes) == bool(set(lanes) & set(theirs))


@pytest.mark.filterwarnings("ignore")
def test_plain_loading_into_a_state_of_other_sources_fails_and_names_the_table(tmp_path: Path) -> None:
    save(tmp_path, state())
    other = to_tables(range(LANES), LANES, np.zeros((LANES, SOURCES + 1, 2), dtype=np.int64), {})
    with pytest.raises(CheckpointException, match="(?s)Size mismatch between saved.* for rows"):
        dcp.load(dict(other), checkpoint_id=tmp_path)


def test_the_table_of_skipped_ranges_is_as_large_for_any_sources() -> None:
    rows = np.zeros((LANES, 50, 2), dtype=np.int64)
    tables = to_tables(range(LANES), LANES, rows, {(3, 49): MANY[3, 0][:1]})
    assert isinstance(tables["skipped_ranges"], torch.Tensor)
    assert tables["skipped_ranges"].shape == state()["skipped_ranges"].shape
    with pytest.raises(StateError, match="lane 3 has skipped a range of source 49: the state is damaged"):
        read_lanes({**tables, "rows": state()["rows"]}, LANES, SOURCES, 2)


def test_what_plain_loading_leaves_out_is_refused() -> None:
    part = {key: value for key, value in state().items() if "-" not in key}
    with pytest.raises(StateError, match=r"lane 3 has .*loader.load_checkpoint\(path\) takes all"):
        read_lanes(part, LANES, SOURCES, 2)


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        (None, ConfigError, "by its path or by a torch.distributed.checkpoint.StorageReader, not None"),
        (5, ConfigError, "not 5"),
        ("/no/such/folder", StateError, "the checkpoint /no/such/folder cannot be read"),
    ],
)
def test_no_checkpoint_is_an_error(source: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        read_checkpoint(source, range, key=None)
