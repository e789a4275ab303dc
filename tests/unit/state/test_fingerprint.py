"""The lines that say in what two fingerprints differ."""

from typing import Any

import pytest

from streampack.state.fingerprint import describe_differences


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_lanes": 24, "shuffle": {"block_bytes": 4096, "window": 8}}, ["num_lanes"]),
        ({"num_lanes": 24, "shuffle": {"block_bytes": 4096, "window": 4}}, ["num_lanes", "shuffle"]),
        ({"num_lanes": 24, "shuffle": "shards"}, ["num_lanes", "shuffle"]),
        ({"shuffle": {"block_bytes": 4096, "window": 8}}, ["shuffle"]),
    ],
)
def test_bytes_of_blocks_that_follow_from_the_lanes_are_no_difference_of_their_own(
    changes: dict[str, Any], named: list[str]
) -> None:
    saved = {"num_lanes": 12, "shuffle": {"block_bytes": 8192, "window": 8}}
    lines = describe_differences(saved, {**saved, **changes})
    assert [line.split(":")[0] for line in lines] == named
    if "shuffle" in named:
        assert "Shuffle(block_bytes=8192, window=8) in the checkpoint" in lines[-1]
