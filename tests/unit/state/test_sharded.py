"""The box of the lanes, and tables through the planners of torch.distributed.checkpoint, for every number of ranks."""

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner

from streampack.errors import StateError
from streampack.state.box import chunk_of, places, prime_powers, shape_of
from streampack.state.sharded import LaneTable, check_torch, from_table, to_table

SOURCES = 3


def divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def values_of(lanes: range) -> list[list[list[int]]]:
    return [[[lane, -source] for source in range(SOURCES)] for lane in lanes]


def table_of(rank: int, ranks: int, num_lanes: int, *, filled: bool = True) -> torch.Tensor:
    """The row of a lane and a source is (lane, -source)."""
    lanes = range(rank, num_lanes, ranks)
    values = np.array(values_of(lanes)) if filled else np.full((len(lanes), SOURCES, 2), 77)
    return to_table(values, range(rank, num_lanes, ranks), num_lanes)


@pytest.mark.parametrize("num_lanes", [1, 2, 7, 12, 16, 60, 61440])
def test_every_lane_has_a_place_and_every_ranks_lanes_are_one_chunk(num_lanes: int) -> None:
    box = np.zeros(shape_of(num_lanes), dtype=np.int64)
    np.add.at(box, tuple(places(np.arange(num_lanes), num_lanes)), 1)
    assert (box == 1).all() and box.size == num_lanes
    for ranks in divisors(num_lanes):
        for rank in {0, ranks // 2, ranks - 1}:
            chunk, index = chunk_of(range(rank, num_lanes, ranks), num_lanes)  # it asserts that they fill the chunk
            assert sorted(index.tolist()) == list(range(num_lanes // ranks))
            assert len(chunk.start) == len(prime_powers(num_lanes))


@pytest.mark.parametrize("num_lanes", [1, 12, 24, 30, 36, 49])
def test_tables_saved_by_any_ranks_are_loaded_by_any_others(num_lanes: int) -> None:
    for saved in divisors(num_lanes):
        tables = [table_of(rank, saved, num_lanes) for rank in range(saved)]
        plans = []
        for table in tables:
            planner = DefaultSavePlanner()
            planner.set_up_planner({"loader": {"rows": table}}, None, True)
            plans.append(planner.create_local_plan())
        final, metadata = planner.create_global_plan(plans)  # it checks that the chunks fill the table
        written: dict[Any, torch.Tensor] = {}
        for table, plan in zip(tables, final, strict=True):
            for item in plan.items:
                local = table.local if isinstance(table, LaneTable) else table
                written[item.index.offset] = local
        for loaded in divisors(num_lanes):
            for rank in range(loaded):
                mine = table_of(rank, loaded, num_lanes, filled=False)
                load = DefaultLoadPlanner()
                load.set_up_planner({"loader": {"rows": mine}}, metadata, True)
                for item in load.create_local_plan().items:
                    source = written[item.storage_index.offset]
                    for axis, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                        source = source.narrow(axis, start, length)
                    load.resolve_tensor(item).copy_(source)
                lanes, values = from_table(mine, num_lanes, SOURCES, 2, "rows")
                assert values.tolist() == values_of(lanes), (saved, loaded, rank)


def test_a_part_is_copied_and_stored_with_what_it_is_a_part_of() -> None:
    check_torch()
    table = table_of(1, 3, 12)
    stored = io.BytesIO()
    torch.save({"rows": table}, stored)
    stored.seek(0)
    assert isinstance(table, LaneTable)
    for other in (copy.deepcopy(table), torch.load(stored, weights_only=True)["rows"], table.clone()):
        assert isinstance(other, LaneTable)
        assert other.key == table.key and torch.equal(other.local, table.local)
        assert other.local.data_ptr() != table.local.data_ptr()


def test_a_part_is_nothing_to_calculate_with() -> None:
    with pytest.raises(StateError, match="a chunk of a table.*whole_state=True"):
        table_of(1, 3, 12) + 1
