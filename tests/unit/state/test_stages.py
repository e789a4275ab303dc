"""Stages of a state beside those of the run that loads it: the past stays, the future is free."""

from typing import Any

import pytest

from streampack.corpus.schedule import Schedule, StageOfRun
from streampack.corpus.shares import Shares
from streampack.errors import StateError
from streampack.state.stages import begun, check_future, continued, stages_from_json, stages_to_json

LANES = 10
SOURCES = ("web", "code")


def stage(first_pack: int, weights: dict[str, float], *, seq_len: int = 16, **more: Any) -> StageOfRun:
    order = {"order": list(weights)} if len(weights) > 1 else {}
    begin = {"at_packs": first_pack} if first_pack else {}
    described = {**begin, "weights": weights, **order, "seq_len": seq_len, "packing": "wrap", **more}
    shares = Shares.of([weights.get(name, 0) for name in SOURCES])
    return StageOfRun(first_pack, first_pack * 16, seq_len, shares, described)


FIRST, SECOND = stage(0, {"web": 0.7, "code": 0.3}), stage(100, {"web": 0.5, "code": 0.5})
THIRD = stage(500, {"code": 1})
ALL = (FIRST, SECOND, THIRD)


def go_on(saved: Any, now: Any, at: int, **options: Any) -> tuple[StageOfRun, ...]:
    return continued(begun(saved, at), now, **{"sources": SOURCES, **options}, global_pack=at)


@pytest.mark.parametrize(("at", "number"), [(0, 0), (1, 1), (100, 1), (101, 2), (500, 2), (501, 3)])
def test_what_has_begun_goes_on_and_the_rest_is_free(at: int, number: int) -> None:
    other = stage(100, {"code": 5}), stage(300, {"web": 1}), stage(400, {"web": 2})
    assert go_on(ALL, ALL, at) == ALL[:number]
    assert go_on(ALL, (*ALL[:number], *other), at) == ALL[:number]
    if number:
        assert go_on(ALL, ALL[:number], at) == ALL[:number]


@pytest.mark.parametrize(
    ("now", "texts"),
    [
        ((stage(0, {"web": 0.6, "code": 0.3}), SECOND), ["stages[0].weights: {'web': 0.7, 'code': 0.3} in", "0.6"]),
        ((stage(0, {"code": 0.3, "web": 0.7}), SECOND), ["stages[0].order: ['web', 'code'] in the checkpoint, ['code"]),
        ((FIRST, stage(110, {"web": 0.5, "code": 0.5})), ["stages[1].at_packs: 100 in the checkpoint, 110 now"]),
        ((FIRST, stage(100, {"web": 0.5, "code": 0.5}, seq_len=8)), ["stages[1].seq_len: 16 in the checkpoint, 8 now"]),
        ((FIRST, stage(50, {"web": 1}), SECOND), ["stages[1].at_packs: 100", "stages[1].weights: "]),
        ((FIRST,), ["stages[1] (at_packs=100) has begun in the state, and this run has 1 stages: the run is at"]),
        ((stage(0, {"default": 1}), SECOND), ['data of a run without names are a source "default"']),
        ((FIRST, stage(100, {"web": 0.5})), ["stages[1].weights: {'web': 0.5, 'code': 0.5} in the checkpoint"]),
    ],
)
def test_the_past_is_not_edited(now: tuple[StageOfRun, ...], texts: list[str]) -> None:
    with pytest.raises(StateError) as error:
        go_on(ALL, now, 230, sources=("web", "code", "default"))
    for text in (*texts, "global pack 230"):
        assert text in str(error.value)


def test_a_source_that_is_not_named_any_more_was_in_stages_that_are_over() -> None:
    now = stage(0, {"web": 0.7}), stage(100, {"web": 1})
    saved = FIRST, stage(100, {"web": 1})
    [first, _] = go_on(saved, now, 230, sources=("web",))
    assert first.described == FIRST.described, "the state goes on telling what was there"
    with pytest.raises(StateError, match=r"stages\[0\].weights(.|\n)*'code' has a weight in stages\[0\], whi"):
        go_on(saved, now, 90, sources=("web",))
    with pytest.raises(StateError, match=r"stages\[0\].weights"):
        go_on(saved, now, 230)


def test_the_stage_under_way_is_cut_otherwise_where_that_is_allowed() -> None:
    now = stage(0, FIRST.described["weights"], seq_len=32), stage(100, SECOND.described["weights"], seq_len=32)
    with pytest.raises(StateError, match=r"stages\[0\].seq_len.*\n.*stages\[1\].seq_len"):
        go_on(ALL, now, 230)
    first, second = go_on(ALL, now, 230, allow={"seq_len"})
    assert first.tokens_at(100) == 1600 and second.tokens_at(230) == 230 * 16
    assert second.tokens_at(231) == 230 * 16 + 32
    again = stages_from_json(stages_to_json((first, second)), SOURCES)
    assert go_on(again, now, 231) == again == (first, second)
    own = stage(0, {"web": 1}, sources={"web": {"packing": "next_fit", "tail": "pad"}})
    with pytest.raises(StateError, match=r"stages\[0\].sources\['web'\]: {'tail': 'pad'} in the checkpoint, None now"):
        go_on((own,), (stage(0, {"web": 1}),), 5, allow={"packing"})


def test_shares_are_those_of_this_run() -> None:
    """Another order of sources in the run is another index, not another stage, as long as their intervals stay."""
    moved = SECOND._replace(shares=Shares.of([0, 0.5, 0.5]))
    assert go_on(ALL, (FIRST, moved), 230)[1].shares == moved.shares


def test_a_stage_does_not_begin_before_what_is_to_come() -> None:
    for at in (230, 500):
        check_future(Schedule(num_lanes=LANES, stages=ALL), 2, at)
    with pytest.raises(StateError, match=r"stages\[2\] \(at_packs=500\) would begin with global pack 500, .* 501 \("):
        check_future(Schedule(num_lanes=LANES, stages=ALL), 2, 501)


def test_a_budget_that_ends_before_the_state_is_refused_and_one_that_ends_there_is_not() -> None:
    check_future(Schedule(num_lanes=LANES, stages=ALL, end=40), 2, 40)
    with pytest.raises(StateError, match=r"ends it at global pack 40, and the state is at global pack 41: raise"):
        check_future(Schedule(num_lanes=LANES, stages=ALL, end=40), 2, 41)


def test_a_stage_is_over_where_the_next_one_begins_exactly_here() -> None:
    saved, next_one = (FIRST, stage(100, {"web": 1})), stage(100, {"web": 1})
    for then in (next_one, stage(100, {"web": 1}, seq_len=8)):
        [first] = go_on(saved, (stage(0, {"web": 0.7}), then), 100, sources=("web",))
        assert first.described == FIRST.described
    late = stage(0, {"web": 1})._replace(first_pack=100, described={**FIRST.described, "at_tokens": 1601})
    web = stage(0, {"web": 0.7})
    for now in ((web,), (web, stage(110, {"web": 1})), (web, late)):
        with pytest.raises(StateError, match=r"stages\[0\].weights"):
            go_on(saved, now, 100, sources=("web",))


def test_of_a_stage_that_read_nothing_that_is_named_only_the_place_is_compared() -> None:
    saved = stage(0, {"code": 1}, packing="next_fit"), stage(100, {"code": 2}), stage(200, {"web": 1})
    now = stage(0, {"web": 3}), stage(100, {"web": 1}), stage(200, {"web": 1})
    assert [each.described for each in go_on(saved, now, 230, sources=("web",))] == [each.described for each in saved]
    with pytest.raises(StateError, match=r"stages\[1\].at_packs: 100 in the checkpoint, 110 now"):
        go_on(saved, (now[0], stage(110, {"web": 1}), now[2]), 230, sources=("web",))


@pytest.mark.parametrize("first", ["chat", "web"])
def test_a_source_of_another_kind_is_left_out(first: str) -> None:
    wrap = {"packing": "wrap", "tail": "pad"}  # of text; conversations have no tail here, and others are cut as text
    chat = {"packing": "next_fit", "tail": None}
    cuts = {"chat": chat, "web": wrap, "code": {**wrap, "tail": "drop"}}
    order = sorted(cuts, key=lambda name: name != first)
    common = {name: value for name, value in cuts[first].items() if value is not None}
    own = {
        name: {field: value for field, value in cuts[name].items() if value != common.get(field)} for name in order
    }
    own = {name: fields for name, fields in own.items() if fields}
    mixed = stage(0, dict.fromkeys(order, 1.0), **common, sources=own)
    over = stage(100, {"web": 1}, **wrap)
    left = {name: 1.0 for name in order if name != "chat"}
    base, other = (cuts[name] for name in left)
    now = stage(0, left, **base, sources={[*left][1]: {"tail": other["tail"]}})
    [past, _] = go_on((mixed, over), (now, over), 230, sources=("web", "code"))
    assert past.described == mixed.described
    with pytest.raises(StateError, match=r"stages\[0\].*tail"):
        go_on((mixed, over), (stage(0, left, **base), over), 230, sources=("web", "code"))


def test_weights_are_proportions() -> None:
    for now in ((stage(0, {"web": 1.4, "code": 0.6}), SECOND), (FIRST, stage(100, {"web": 3, "code": 3}))):
        assert len(go_on(ALL, now, 230)) == 2
    with pytest.raises(StateError, match=r"stages\[1\].order: \['web', 'code'\] in the checkpoint"):
        go_on(ALL, (FIRST, stage(100, {"code": 2, "web": 2})), 230)
