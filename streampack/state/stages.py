"""The stages of a run in its state: those that have begun stay as they were, all others may be edited.

In:    the stages that a state has; those of the run that loads it.
Out:   the begun stages as the run goes on with them.
Never: a pack that was handed out and has another source or length now: `StateError` names the stage and the field.

    in the state    |--- 0 ---|------ 1 -----:                 the state is at global pack g: 0 and 1 have begun
    now             |--- 0 ---|------ 1 -----:--|-- 2 --|      0 and 1 must be equal, what comes after g is free
"""

import json
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any

from streampack.corpus.schedule import Schedule, StageOfRun
from streampack.corpus.shares import DEFAULT, Shares
from streampack.errors import StateError

_BEGINS = ("at_tokens", "at_packs")
_NO_CUT = frozenset({*_BEGINS, "weights", "order", "sources"})
"""Fields of a stage that do not say how its rows are cut."""


def cut_of(described: Mapping[str, Any], source: str) -> dict[str, Any]:
    """How a stage cuts the rows of one of its sources, of what was described."""
    common = {name: value for name, value in described.items() if name not in _NO_CUT}
    return {**common, **described.get("sources", {}).get(source, {})}


def begun(stages: Sequence[StageOfRun], global_pack: int) -> tuple[StageOfRun, ...]:
    """Those stages of which packs have been handed out, where the packs below `global_pack` have been."""
    return tuple(stage for stage in stages if stage.first_pack < global_pack)


def continued(
    saved: Sequence[StageOfRun],
    now: Sequence[StageOfRun],
    *,
    sources: Collection[str],
    global_pack: int,
    allow: Collection[str] = (),
) -> tuple[StageOfRun, ...]:
    """The stages that have begun, as the run goes on with them: where they began, with the shares of this run.

    Args:
        saved: the stages of a state, which have begun.
        now: all stages of this run; where they begin does not count.
        sources: the names of this run's sources. One that is missing here may have been in a stage that is over.
        global_pack: where the state is.
        allow: fields of the cut that may differ. The stage under way goes on with this run's, and with as many tokens
            at `global_pack` as the state has.

    Raises:
        StateError: a stage that has begun is missing, or is another one now.
    """
    where = f"the run is at global pack {global_pack:,}"
    if len(saved) > len(now):
        raise StateError(
            f"stages[{len(now)}] ({_shown(saved[len(now)])}) has begun in the state, and this run has {len(now)} "
            f"stages: {where}. A stage that has begun stays; give it back, and put changes into one that begins later"
        )
    found, differences = [], []
    for index, (before, after) in enumerate(zip(saved, now, strict=False)):
        is_over = index + 1 < len(saved) or _begins_at(now[index + 1 : index + 2], before, global_pack)
        then, as_now = before.described, after.described
        if is_over:
            then = _of_sources(then, sources)
            if not then["weights"]:  # it read nothing that this run names: only its place is compared
                then, as_now = ({name: each[name] for name in _BEGINS if name in each} for each in (then, as_now))
        then, as_now = _without(then, allow), _without(as_now, allow)
        differences += [
            f"stages[{index}].{name}: {then.get(name)!r} in the checkpoint, {value!r} now"
            for name, value in _differing(then, as_now)
        ]
        stage = after._replace(first_pack=before.first_pack, first_tokens=before.first_tokens)
        if is_over:
            described = before.described if before.described["weights"].keys() - sources else _mixed_as(before, after)
            stage = stage._replace(seq_len=before.seq_len, described=described)
        elif after.seq_len != before.seq_len:
            tokens = before.tokens_at(global_pack)
            stage = stage._replace(first_tokens=tokens - (global_pack - before.first_pack) * after.seq_len)
        found.append(stage)
    if differences:
        raise StateError(
            f"a stage that has begun was edited ({where}):\n  "
            + "\n  ".join(differences)
            + "\nWhat has begun stays as it was: set it back, and put the change into a stage that begins later"
            + _hint(saved, now, sources)
        )
    return tuple(found)


def check_future(schedule: Schedule, num_begun: int, global_pack: int) -> None:
    """Raise `StateError` where a stage would begin, or the run end, before the packs still to be handed out."""
    if schedule.end is not None and schedule.end < global_pack:
        raise StateError(
            f"the budget of this run ends it at global pack {schedule.end:,}, and the state is at global pack "
            f"{global_pack:,}: raise num_packs or num_tokens; a budget may be raised at any resume"
        )
    for index, stage in enumerate(schedule.stages[num_begun:], num_begun):
        if stage.first_pack < global_pack:
            raise StateError(
                f"stages[{index}] ({_shown(stage)}) would begin with global pack {stage.first_pack:,}, and the run "
                f"is at global pack {global_pack:,} ({schedule.tokens_at(global_pack):,} tokens): packs handed out "
                "cannot be of another stage. Let it begin later"
            )


def _shown(stage: StageOfRun) -> str:
    begin = next((name for name in ("at_tokens", "at_packs") if name in stage.described), None)
    return "the first stage" if begin is None else f"{begin}={stage.described[begin]}"


def _begins_at(following: Sequence[StageOfRun], before: StageOfRun, global_pack: int) -> bool:
    """Whether the stage that follows `before`, if there is one, begins exactly here."""
    if not following or following[0].first_pack != global_pack:
        return False
    tokens = following[0].described.get("at_tokens")
    return tokens is None or before.pack_at(tokens) <= global_pack  # by the tokens that the state has counted


def _mixed_as(before: StageOfRun, after: StageOfRun) -> dict[str, Any]:
    """How `after` is cut, with the weights of `before`."""
    mixed = {name: before.described[name] for name in ("weights", "order") if name in before.described}
    return {**after.described, **mixed}


def _without(described: Mapping[str, Any], allow: Collection[str]) -> dict[str, Any]:
    """What was described, without fields; a source that is cut otherwise has fields of its own."""
    left = {name: value for name, value in described.items() if name not in allow}
    if "sources" in left:
        own = {name: _without(fields, allow) for name, fields in left.pop("sources").items()}
        left |= {f"sources[{name!r}]": fields for name, fields in own.items() if fields}
    return left


def _of_sources(described: Mapping[str, Any], sources: Collection[str]) -> dict[str, Any]:
    """What was described, as a run without the sources that are not named any more describes it.

    The fields of a stage are those of its first source, and each other source has what is different there. So without
    the first one all of them are written in another way.
    """
    weights = {name: weight for name, weight in described["weights"].items() if name in sources}
    if len(weights) == len(described["weights"]):
        return dict(described)
    order = [name for name in described.get("order", weights) if name in weights]
    cuts = {name: cut_of(described, name) for name in order}
    first = cuts[order[0]] if order else {}
    own = {
        name: {field: cut.get(field) for field in {*cut, *first} if cut.get(field) != first.get(field)}
        for name, cut in cuts.items()
    }
    own = {name: fields for name, fields in own.items() if fields}
    return {
        **{name: described[name] for name in _BEGINS if name in described},
        "weights": weights,
        **({"order": order} if len(order) > 1 else {}),
        **{name: value for name, value in first.items() if value is not None},
        **({"sources": own} if own else {}),
    }


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(name, value after) of the fields that differ; where the weights do, their order says nothing."""
    names = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    if "weights" in names and _parts(before["weights"]) == _parts(after["weights"]):
        names.remove("weights")
    return [(name, after.get(name)) for name in names if name != "order" or "weights" not in names]


def _parts(weights: Mapping[str, float]) -> dict[str, Fraction]:
    """The exact part of each source of the whole: weights are proportions."""
    exact = {name: Fraction(weight) for name, weight in weights.items()}
    return {name: weight / sum(exact.values()) for name, weight in exact.items()}


def _hint(saved: Sequence[StageOfRun], now: Sequence[StageOfRun], sources: Collection[str]) -> str:
    names = [{name for stage in stages for name in stage.described["weights"]} for stages in (saved, now)]
    if (DEFAULT in names[0]) != (DEFAULT in names[1]):
        return f'. The data of a run without names are a source "{DEFAULT}": with that name it goes on beside others'
    gone = sorted(saved[-1].described["weights"].keys() - sources)
    if gone:
        return (
            f". {', '.join(map(repr, gone))} has a weight in stages[{len(saved) - 1}], which is under way: name it "
            "until another stage has begun; from there on it may be left out"
        )
    return ""


def stages_to_json(stages: Sequence[StageOfRun]) -> str:
    """A JSON list of stages."""
    plain = [stage._asdict() for stage in stages]
    return json.dumps([{name: each[name] for name in each if name != "shares"} for each in plain], sort_keys=True)


def stages_from_json(value: Any, sources: Sequence[str]) -> tuple[StageOfRun, ...]:
    """The stages that `stages_to_json` wrote; `sources`: the names behind the indexes of their shares.

    Raises:
        StateError: the value is not what it wrote.
    """
    try:
        return tuple(_from_plain(plain, sources) for plain in json.loads(value))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise StateError(f"stages is {value!r:.80}, not a JSON list of stages: the state is damaged") from error


def _from_plain(plain: dict[str, Any], sources: Sequence[str]) -> StageOfRun:
    weights = plain["described"]["weights"]
    shares = Shares.of([weights.get(name, 0) for name in sources])
    return StageOfRun(**{**plain, "shares": shares})
