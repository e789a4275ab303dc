"""Stages: what is taken as one, what is refused, and where they begin."""

import dataclasses
import pickle
import warnings
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.arguments import packed_dataset

from streampack import BoundaryPolicy, PackedDataLoader, PackedDataset, Packing, ReplaceBoundary, Source, Stage
from streampack.corpus.schedule import Schedule
from streampack.dataset.resolution import PlannedStage, resolve
from streampack.errors import ConfigError
from streampack.lanes.budget import LaneNeeds
from streampack.lanes.run import Continued

DATA = str(files("streampack") / "examples" / "data")
WEB, CODE, BOOKS, MATHS = (f"{DATA}/devil-0000{index}.tar" for index in range(4))
LANES = 24


def dataset(*stages: Stage, data: Any = None, **arguments: Any) -> PackedDataset:
    data = {"web": WEB, "code": CODE} if data is None else data
    return packed_dataset(data, **{"seq_len": 64, "num_lanes": LANES, "stages": stages, **arguments})


def schedule(*stages: Stage, **arguments: Any) -> Schedule:
    return dataset(*stages, **arguments).run().schedule


def test_without_stages_there_is_one() -> None:
    made = schedule()
    assert [(stage.first_pack, stage.first_tokens, stage.seq_len) for stage in made.stages] == [(0, 0, 64)]
    assert made.end is None
    assert made == schedule(Stage())


def test_a_stage_begins_with_the_first_round_at_or_after_its_number() -> None:
    made = schedule(
        Stage(),
        Stage(at_tokens=100 * 64.0, seq_len=128),  # pack 100
        Stage(at_packs=121, seq_len=256),
        Stage(at_packs=168),
    )
    assert [(stage.first_pack, stage.first_tokens, stage.seq_len) for stage in made.stages] == [
        (0, 0, 64),
        (120, 120 * 64, 128),
        (144, 120 * 64 + 24 * 128, 256),
        (168, 120 * 64 + 24 * 128 + 24 * 256, 256),
    ]


def test_what_a_stage_does_not_name_stays_as_it_was() -> None:
    made = dataset(
        Stage(weights={"web": 3, "code": 1}),
        Stage(at_packs=24, sources={"maths": Source(MATHS)}, weights={"web": 1, "maths": 1}, boundary="trim"),
        Stage(at_packs=48, seq_len=128, packing=Packing("next_fit", tail="drop")),
        Stage(at_packs=72, weights={"code": 2}),
    )
    assert list(made.sources) == ["web", "code", "maths"]
    run = made.run()
    shares = [[stage.shares.share(index) for index in range(3)] for stage in run.schedule.stages]
    assert shares == [[0.75, 0.25, 0], [0.5, 0, 0.5], [0.5, 0, 0.5], [0, 1, 0]]
    first, second, third, fourth = run.sources[0].pipelines
    assert [(each.seq_len, each.boundary, each.packing.kind) for each in (first, second, third)] == [
        (64, "mask", "wrap"),
        (64, "trim", "wrap"),
        (128, "trim", "next_fit"),
    ]
    assert third is fourth
    assert first.slack is third.slack
    cut = {"overflow": "split", "tail": "pad", "lookahead": True}
    assert [stage.described for stage in run.schedule.stages[:2]] == [
        {"weights": {"web": 3, "code": 1}, "order": ["web", "code"]}
        | {"seq_len": 64, "boundary": "mask", "packing": "wrap", **cut},
        {"at_packs": 24, "weights": {"web": 1, "maths": 1}, "order": ["web", "maths"]}
        | {"seq_len": 64, "boundary": "trim", "packing": "wrap", **cut},
    ]


def test_a_source_without_weight_changes_nothing_that_a_state_keeps() -> None:
    few, many = (
        schedule(data={"web": WEB, "code": CODE}),
        schedule(data={"web": WEB, "x": Source(BOOKS, 0), "code": CODE}),
    )
    assert few.stages[0].described == many.stages[0].described
    assert few.stages[0].shares.ends == many.stages[0].shares.ends


def test_the_ids_that_a_boundary_looks_for_are_those_of_its_stage() -> None:
    made = dataset(Stage(), Stage(at_packs=24, boundary="mask_eos_input"), data=WEB, add_bos=False)
    first, second = made.run().sources[0].pipelines
    alone = dataset(data=WEB, add_bos=False, boundary="mask_eos_input").run().sources[0].pipelines[0]
    assert second.token_ids == alone.token_ids != first.token_ids


def test_a_model_that_shifts_labels_has_no_lookahead_in_any_stage() -> None:
    made = dataset(Stage(), Stage(at_packs=24, seq_len=128), Stage(at_packs=48)).without_lookahead()
    for source in made.run().sources:
        assert [pipeline.packing.lookahead for pipeline in source.pipelines] == [False] * 3
        assert source.pipelines[1] is source.pipelines[2]


@pytest.mark.parametrize(
    ("budget", "end"),
    [
        ({}, None),
        ({"num_packs": 1000}, 1000),
        ({"num_packs": 1e3}, 1000),
        ({"num_tokens": 1}, 1),
        ({"num_tokens": 24 * 64}, 24),
        ({"num_tokens": 24 * 64 + 1}, 25),
        ({"num_tokens": 24 * 64 + 128.0}, 25),
        ({"num_tokens": 24 * 64 + 129}, 26),
    ],
)
def test_a_run_ends_with_the_first_pack_at_or_after_its_budget(budget: dict[str, Any], end: int | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a stage that does not begin
        assert schedule(Stage(), Stage(at_tokens=10, seq_len=128), **budget).end == end


def test_stages_that_have_begun_stay_where_they_are() -> None:
    """Also with another number of tokens before them: `allow={"seq_len"}` changes what the packs so far are worth."""
    stages = (Stage(), Stage(at_tokens=24 * 64), Stage(at_tokens=100 * 64))
    made = dataset(*stages)
    begun = made.run().schedule.stages[:2]
    assert made.run(continued=Continued(begun)).schedule == made.run().schedule
    moved = (begun[0], begun[1]._replace(first_pack=48, first_tokens=24 * 64))
    after = made.run(continued=Continued(moved)).schedule.stages
    assert [(stage.first_pack, stage.first_tokens) for stage in after] == [(0, 0), (48, 1536), (144, 1536 + 96 * 64)]


def test_the_run_is_made_once_for_what_is_asked() -> None:
    made, other = dataset(), dataset()
    run = made.run()
    assert made.run(LANES) is run
    assert made.run(2 * LANES).sources[0].corpus.num_lanes == 2 * LANES
    made.adopt_tables(other.tables())
    assert made.run().sources[0].corpus.table is other.tables()[0]


def test_passes_end_so_many_epochs_after_they_begin() -> None:
    made = dataset(data=WEB, epochs=3)
    assert made.run(continued=Continued(first_epoch=6)).sources[0].end_epoch == 9


def test_stages_survive_a_pickle() -> None:
    made = dataset(Stage(weights={"web": 1}), Stage(at_packs=24, boundary=ReplaceBoundary(7)))
    assert pickle.loads(pickle.dumps(made)).run().schedule == made.run().schedule


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=4), st.integers(1, 60), st.integers(1, 8))
def test_stages_begin_with_rounds_and_their_tokens_add_up(gaps: list[int], num_lanes: int, length: int) -> None:
    planned, at = [PlannedStage(None, {"a": 1}, length, {})], 0
    for index, gap in enumerate(gaps):
        at += (gap + num_lanes) * (length + index + 1)
        planned.append(PlannedStage(("at_tokens", at), {"a": 1}, length + index + 1, {}))
    made = resolve(planned, num_lanes=num_lanes).stages
    for before, stage, (name, tokens) in zip(
        made, made[1:], [stage.begin or ("", 0) for stage in planned[1:]], strict=False
    ):
        assert name == "at_tokens"
        assert stage.first_pack % num_lanes == 0
        assert stage.first_tokens == before.tokens_at(stage.first_pack) >= tokens
        assert before.tokens_at(stage.first_pack - num_lanes) < tokens


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Stage(at_tokens=1, at_packs=1), "at_tokens=1 and at_packs=1: give one of the two"),
        (lambda: Stage(at_tokens=-1), "at_tokens=-1 must be a whole number of at least 1"),
        (lambda: Stage(at_tokens="2e12"), "at_tokens='2e12' must be a whole number"),
        (lambda: Stage(at_packs=1.5), "at_packs=1.5 must be a whole number"),
        (lambda: Stage(weights=[0.7, 0.3]), "weights=[0.7, 0.3] must be a mapping of the names of sources to numbers"),
        (lambda: Stage(weights={"web": -0.1}), "weights['web']=-0.1 must be a number of at least 0, and finite"),
        (lambda: Stage(weights={"web": float("nan")}), "weights['web']=nan must be"),
        (lambda: Stage(weights={"web": "0.7"}), "weights['web']='0.7' must be a number."),
        (lambda: Stage(weights={"web": 0, "code": 0}), "weights={'web': 0, 'code': 0}: one of them must be above 0"),
        (lambda: Stage(weights={}), "weights={}: one of them must be above 0"),
        (lambda: Stage(sources=[Source(WEB)]), "sources must be a mapping of names to sources, not a list"),
        (lambda: Stage(sources={"a b": WEB}), "sources: 'a b' is not the name of a source"),
        (lambda: Stage(seq_len=1), "seq_len=1 must be a whole number from 2"),
        (lambda: Stage(packing="best"), "packing='best' is not known"),
        (lambda: Stage(boundary="masked"), "boundary='masked' is not known"),
    ],
)
def test_a_value_that_a_stage_cannot_have_is_refused(make: Callable[[], Stage], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert text in str(caught.value)


MATHS_LATER = {"maths": Source(MATHS)}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"stages": {"web": 1}}, "stages must be a list of stages, not a dict: [streampack.Stage(weights={...}), ...]"),
        ({"stages": Stage()}, "stages must be a list of stages, not a Stage"),
        ({"stages": None}, "stages must be a list of stages, not a NoneType"),
        (
            {"stages": [{"at_packs": 2}]},
            "stages[0]={'at_packs': 2} must be a streampack.Stage; write Stage(at_packs=2)",
        ),
        (
            {"stages": [Stage(at_packs=24)]},
            "stages[0] begins with the run, and has at_packs=24: leave it out, or put a",
        ),
        ({"stages": [Stage(), Stage()]}, "stages[1] needs at_tokens or at_packs: where it begins"),
        (
            {"stages": [Stage(), Stage(at_packs=48), Stage(at_packs=24)]},
            "stages[2] has at_packs=24, and the one before it 48: stages come in the order in which they begin",
        ),
        (
            {"stages": [Stage(), Stage(at_packs=48), Stage(at_tokens=64)]},
            "stages[2] (at_tokens=64) would begin with pack 48, and the one before it begins with pack 48: a stage",
        ),
        (
            {"stages": [Stage(), Stage(at_packs=1), Stage(at_packs=24)]},
            "with a round, which has num_lanes=24 packs, and each needs one of its own",
        ),
        ({"stages": [Stage(sources=MATHS_LATER)]}, "stages[0] has sources: those that are there from the beginning"),
        (
            {"stages": [Stage(), Stage(at_packs=24, sources=MATHS_LATER)]},
            "stages[1] adds 'maths' without weights: give it the weights of all sources that it is to have",
        ),
        (
            {"stages": [Stage(), Stage(at_packs=24, sources={"web": Source(MATHS)}, weights={"web": 1})]},
            "stages[1] adds a source 'web', and there is one of that name: give it another one, or give",
        ),
        (
            {"stages": [Stage(), Stage(at_packs=24, sources={"maths": Source(MATHS, 2)}, weights={"maths": 1})]},
            "source 'maths' has weight=2, and stages[1] has weights: give it in one of the two places",
        ),
        (
            {"stages": [Stage(weights={"wob": 1})]},
            "stages[0].weights has 'wob', which is no source: did you mean 'web'?",
        ),
        (
            {"stages": [Stage(weights={"maths": 1}), Stage(at_packs=24, sources=MATHS_LATER, weights={"maths": 1})]},
            "stages[0].weights has 'maths', a source that only a later stage adds",
        ),
        (
            {"data": {"web": Source(WEB, 0.7), "code": CODE}, "stages": [Stage(weights={"web": 1})]},
            "source 'web' has weight=0.7, and stages[0] has weights: give it in one of the two places",
        ),
        (
            {"data": WEB, "epochs": 1, "stages": [Stage(), Stage(at_packs=24)]},
            "epochs=1 is passes over one source, and",
        ),
        (
            {"part": "val", "fraction": 0.5, "stages": [Stage(), Stage(at_packs=24)]},
            'hold_out: part="val" is one epoch of the sources in data; leave stages out',
        ),
        (
            {"stages": [Stage(), Stage(at_packs=24, boundary=ReplaceBoundary(999))]},
            "source 'web': stages[1]: boundary: ReplaceBoundary(999) would be a label that no model has",
        ),
        (
            {"stages": [Stage(), Stage(at_packs=24, packing="best_fit", boundary="keep")]},
            "source 'web': stages[1]: ",
        ),
        (
            {"stages": [Stage(), Stage(at_packs=24, sources={"copy": Source(WEB)}, weights={"copy": 1, "web": 1})]},
            "is in two sources, 'web' and 'copy'",
        ),
    ],
)
def test_stages_that_cannot_be_are_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        dataset(**arguments)
    assert text in str(caught.value)


def test_memory_for_the_packing_windows_of_a_stage_is_needed_in_those_after_it() -> None:
    """A lane may be inside one still, also where the source was paused in between."""
    windows = [Packing("best_fit", window=each) for each in (32, 16)]
    first, second = (each.window_bytes(64) for each in windows)
    stages = [
        Stage(weights={"web": 1}, packing=windows[0]),
        Stage(at_packs=24, weights={"code": 1}, packing=windows[1]),
        Stage(at_packs=48, weights={"code": 1, "web": 1}, packing="wrap"),
    ]
    needs = [LaneNeeds.of(dataset(*stages[:number]).run()) for number in (1, 2, 3)]
    assert [(each.packing, each.sources) for each in needs] == [(first, 1), (first, 1), (first + second, 2)]
    lanes = LANES * (first + second)
    with pytest.raises(ConfigError, match=f"{first + second:,} bytes for the packing windows"):
        PackedDataLoader(dataset(*stages, buffer_bytes=lanes), 4, num_workers=0)


def test_a_stage_after_the_end_of_the_run_is_told() -> None:
    with pytest.warns(
        UserWarning, match=r"stages\[1\] \(at_packs=48\) does not begin: the run ends at num_packs=48"
    ) as caught:
        dataset(Stage(), Stage(at_packs=48), num_packs=48)
    assert len(caught) == 1


def test_stages_are_frozen() -> None:
    weights = {"web": 1.0}
    stage = Stage(weights=weights, boundary="trim")
    weights["web"] = 2
    assert stage.weights == {"web": 1}
    assert stage.boundary is BoundaryPolicy.TRIM
    with pytest.raises(dataclasses.FrozenInstanceError):
        stage.seq_len = 3  # type: ignore[misc]
