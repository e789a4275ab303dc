"""The lines that say in what two fingerprints differ."""

from typing import Any

import pytest

from streampack.errors import StateError
from streampack.state.fingerprint import carrying, check_fingerprint, describe_differences


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


WEB, CODE = {"field": "txt", "shards": {"num_shards": 3}}, {"field": "md", "shards": {"num_shards": 2}}
COMMON = {"num_lanes": 12, "seq_len": 16, "packing": "wrap"}


def named(**sources: dict[str, Any]) -> dict[str, Any]:
    return {**COMMON, "sources": sources}


def test_sources_are_compared_by_name_and_those_of_one_run_alone_are_no_difference() -> None:
    saved = named(web=WEB, code=CODE)
    assert describe_differences(saved, named(code=CODE, web=WEB)) == []
    assert describe_differences(saved, named(code=CODE, books=WEB)) == []
    assert describe_differences({**COMMON, **WEB}, named(default=WEB, code=CODE)) == []
    [line] = describe_differences(saved, named(web=WEB, code={**CODE, "field": "txt"}))
    assert line.startswith("source 'code', field: 'md' in the checkpoint, 'txt' now; set field back")
    [line] = describe_differences(saved, {**named(web=WEB, code=CODE), "seq_len": 32})
    assert line.startswith("seq_len: 16 in the checkpoint, 32 now"), "what all have in common is said once"
    [line] = describe_differences({**COMMON, **WEB}, {**COMMON, **WEB, "field": "md"})
    assert line.startswith("field: 'txt' in the checkpoint")
    [line] = describe_differences(named(web=WEB), {**named(code=CODE), "seq_len": 32})
    assert line.startswith("seq_len: 16 in the checkpoint, 32 now"), "also without a source in common"
    [line] = describe_differences(saved, named(web=WEB, code={**CODE, "packing": "next_fit"}))
    assert line.startswith("source 'code', packing: 'wrap' in the checkpoint, 'next_fit' now; load_state_dict(state, ")


def test_a_state_goes_on_describing_sources_that_the_run_does_not_name() -> None:
    saved = named(web=WEB, code=CODE)
    assert carrying({**COMMON, **WEB}, {**COMMON, **WEB}) == {**COMMON, **WEB}
    assert carrying({**COMMON, **WEB}, saved) == named(web=WEB, code=CODE, default=WEB)
    assert carrying({**named(books=WEB), "seq_len": 32}, saved) == {
        **named(web=WEB, code=CODE, books=WEB),
        "seq_len": 32,
    }
    check_fingerprint(carrying(named(books=WEB), saved), saved)


def test_a_field_of_a_source_is_known_and_cannot_be_allowed() -> None:
    with pytest.raises(StateError, match="cannot be allowed: it changes which rows there are"):
        check_fingerprint(named(web=WEB), named(web=CODE), allow={"field"})
    with pytest.raises(StateError, match="state is damaged"):
        check_fingerprint({**COMMON, "sources": 5}, named(web=CODE))


def test_a_carried_source_is_cut_as_it_was_though_another_one_comes_first_now() -> None:
    chat = {**CODE, "field": "json:messages"}
    own = {"web": {**WEB, "packing": "wrap", "tail": "pad"}, "chat": chat}
    saved = {**COMMON, "packing": "next_fit", "sources": own}
    carried = carrying({**COMMON, "packing": "wrap", "tail": "pad", "sources": {"web": WEB}}, saved)
    assert carried["sources"]["chat"] == {**chat, "packing": "next_fit", "tail": None}
    check_fingerprint(carried, saved)
