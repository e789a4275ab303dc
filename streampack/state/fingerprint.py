"""Whether a state belongs to this run: the fingerprints of both, compared field by field.

In:    two fingerprints, plain JSON objects such as {"seq_len": 4096, "seed": 0, "field": "txt", "shards": {...}}.
Out:   nothing, or a line for each field that differs: its name, both values, and what to do.
Never: a source that only one of two runs has as a difference: the state carries it, or it begins.

With named sources, what is of one source is in {"sources": {"web": {"field": "txt", "shards": {...}}, "code": {...}}}.
"""

import json
import logging
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from streampack.corpus.shares import DEFAULT
from streampack.corpus.table import differing_block
from streampack.errors import StateError

_log = logging.getLogger(__name__)

RECUTTABLE = frozenset({"seq_len", "boundary", "packing", "overflow", "packing_window", "tail", "lookahead", "pad_id"})
"""Fields that only decide how rows are cut into packs: a run can continue with other values, from the same row."""
PLACING = ("packing", "packing_window", "seq_len", "boundary", "overflow")
"""Those of them that decide which documents are in which pack of a packing window."""

OF_SOURCE = frozenset({"shuffle", "field", "transform", "chat_template", "train_on", "shards"})
"""Fields that each source has for itself; of a run whose data have no names they stand beside the others."""

_ARGUMENTS = {
    "chat_template": "Chat(template=...)",
    "packing_window": "Packing(window=...)",
    "hold_out_by": "HoldOut(by=...)",
    "max_document_bytes": "Limits(document_bytes=...)",
    "split": "HoldOut(part=...)",
    "train_on": "Chat(train_on=...)",
    "val_fraction": "HoldOut(fraction=...)",
}
"""Field of the fingerprint -> the argument that it comes from, where the names differ."""
_OF_HOLD_OUT = ("split", "val_fraction", "hold_out_by")
"""Fields that `hold_out` decides; without it they are "all", 0 and absent. The last one is present by block only."""


def fingerprint_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprint that a state was saved with."""
    try:
        fingerprint = json.loads(state["fingerprint"])
    except (TypeError, ValueError) as error:
        raise StateError(f"the state's fingerprint is not JSON: {state['fingerprint']!r:.80}") from error
    if not isinstance(fingerprint, dict):
        raise StateError(f"the state's fingerprint is not an object: {fingerprint!r:.80}")
    return fingerprint


def check_fingerprint(saved: Mapping[str, Any], now: Mapping[str, Any], *, allow: Collection[str] = ()) -> None:
    """Raise `StateError` that names every field that differs, both values, and what would work."""
    known = {name for fields in (*by_source(saved).values(), *by_source(now).values()) for name in fields}
    for name in sorted(set(allow) - known - RECUTTABLE):
        near = [field for field in sorted(RECUTTABLE) if name in field] or get_close_matches(name, RECUTTABLE, n=1)
        hint = f'did you mean "{near[0]}"? Choose' if near else "choose"
        raise StateError(f'allow: "{name}" is unknown; {hint} from {", ".join(sorted(RECUTTABLE))}.')
    unknown = set(allow) - RECUTTABLE
    if unknown:
        raise StateError(
            f"allow={sorted(unknown)} cannot be allowed: it changes which rows there are. Only fields that cut the "
            f"same rows in another way can be: {', '.join(sorted(RECUTTABLE))}."
        )
    differences = describe_differences(saved, now, skip=widened(allow, saved, now))
    if differences:
        raise StateError("the state is of another run:\n  " + "\n  ".join(differences))


def widened(allow: Collection[str], saved: Mapping[str, Any], now: Mapping[str, Any]) -> frozenset[str]:
    """`allow`, with what goes with it: another kind of packing does not have a "packing_window"."""
    of_both = [by_source(fingerprint) for fingerprint in (saved, now)]
    kinds = [{name: fields.get("packing") for name, fields in each.items()} for each in of_both]
    return frozenset({*allow, "packing_window"} if "packing" in allow and kinds[0] != kinds[1] else allow)


def by_source(fingerprint: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """All fields that hold for each source, by its name."""
    common = _common(fingerprint)
    return {name: {**common, **fields} for name, fields in _own(fingerprint).items()}


def carrying(fingerprint: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """A fingerprint with those sources besides its own that `saved` has, cut as they were there."""
    own, then = _own(fingerprint), _own(saved)
    if then.keys() <= own.keys():
        return dict(fingerprint)
    common, whole = _common(fingerprint), by_source(saved)
    # What sources differ in is written relative to what all have in common, which may be another value now.
    differing = sorted(RECUTTABLE & {field for fields in then.values() for field in fields})
    carried = {
        name: {
            **{field: value for field, value in fields.items() if field not in differing},
            **{field: whole[name].get(field) for field in differing if whole[name].get(field) != common.get(field)},
        }
        for name, fields in then.items()
    }
    return {**common, "sources": {**carried, **own}}


def _common(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that no source has for itself."""
    return {name: value for name, value in fingerprint.items() if name not in OF_SOURCE and name != "sources"}


def _own(fingerprint: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Of each source the fields that it has for itself."""
    if "sources" not in fingerprint:
        return {DEFAULT: {name: value for name, value in fingerprint.items() if name in OF_SOURCE}}
    own = fingerprint["sources"]
    if not isinstance(own, Mapping) or not all(isinstance(fields, Mapping) for fields in own.values()):
        raise StateError(f"sources in the state's fingerprint is {own!r:.80}: the state is damaged")
    return own


def describe_differences(
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    skip: Collection[str] = (),
    saved_where: str = "in the checkpoint",
    now_where: str = "now",
    advise: bool = True,
) -> list[str]:
    """A line for each field of two fingerprints that differs: its name, both values, and what would work.

    Sources that only one of them has are left out. What differs in the same way for all others is said once.
    """
    befores, afters = by_source(saved), by_source(now)
    lines: dict[str, list[str]] = {}
    both = [name for name in befores if name in afters]
    if not both:  # what all sources have in common may differ
        both, befores, afters = [""], {"": _common(saved)}, {"": _common(now)}
    for name in both:
        for line in _describe(befores[name], afters[name], set(skip), saved_where, now_where, advise=advise):
            lines.setdefault(line, []).append(name)
    return [
        line if names == both else f"source {name!r}, {line}"
        for line, names in lines.items()
        for name in (names[:1] if names == both else names)
    ]


def _describe(
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
    skip: Collection[str],
    saved_where: str,
    now_where: str,
    *,
    advise: bool,
) -> list[str]:
    """The lines of one source."""
    lines = []
    is_derived = any(saved.get(name) != now.get(name) for name in ("num_lanes", "shards"))
    for name in sorted({*saved, *now} - set(skip)):
        before, after = (_without_names(fields.get(name)) for fields in (saved, now))
        if before == after or (is_derived and _are_windows(before) and _are_windows(after, before)):
            continue
        if name == "shards" and isinstance(before, dict) and isinstance(after, dict):
            what = _describe_shards(saved[name], now[name], saved_where, now_where)
            remedy = "point the dataset at the same shards in the same order, or start a new run"
            if _differ_in_marks_only(before, after):
                remedy = (
                    "a lane reads a marked shard in one piece, and others in parts, so with other marks this run would "
                    "have documents twice and miss others. To go on, give the manifest the marks of the checkpoint; "
                    "new marks need a new run"
                )
        else:
            what = f"{_shown(before)} {saved_where}, {_shown(after)} {now_where}"
            remedy = f"set {_setting(name, saved, now)}, or start a new run"
        if name == "num_lanes":
            remedy = (
                f"streampack.relane(state, dataset, {now.get(name)}), or `streampack relane`, gives the run so many; "
                f"or set num_lanes={saved.get(name)}"
            )
        if name in RECUTTABLE:
            remedy = f'load_state_dict(state, allow={{"{name}"}}) continues from the same row with the new value'
            if name in PLACING and saved.get("packing") == "best_fit":
                remedy += (
                    ", where no lane is inside a packing window, such as after a finite pass; elsewhere a Stage that "
                    "begins later changes it"
                )
        lines.append(f"{name}: {what}" + (f"; {remedy}" if advise else ""))
    return lines


def _without_names(value: Any) -> Any:
    """A value of the fingerprint without the names that only messages need: digests stand for them."""
    return {key: each for key, each in value.items() if key != "block_names"} if isinstance(value, dict) else value


def _are_windows(value: object, other: object = None) -> bool:
    """Whether a value is that of a `Shuffle`; where another one is given, of a window of as many blocks.

    Lanes and shards bound the bytes of a block, so these differ where those do.
    """
    if not (isinstance(value, dict) and value.keys() == {"block_bytes", "window"}):
        return False
    return not isinstance(other, dict) or value["window"] == other.get("window")


def _shown(value: Any) -> str:
    """A value as its argument is written."""
    if _are_windows(value):
        return f"Shuffle(block_bytes={value['block_bytes']}, window={value['window']})"
    return repr(value)


def _setting(name: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The argument behind a field of the fingerprint, and the value that it had."""
    argument = _ARGUMENTS.get(name, name)
    if name in _OF_HOLD_OUT and saved.get("split") == "all":
        argument = "hold_out=None"
    elif name in _OF_HOLD_OUT and now.get("split") == "all":
        by = ', by="block"' if saved.get("hold_out_by") == "block" else ""
        argument = f"hold_out=HoldOut({saved.get('split')!r}, {saved.get('val_fraction')!r}{by})"
    return argument if argument.startswith("hold_out") else f"{argument} back to the checkpoint's value"


def _differ_in_marks_only(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    return {**before, "marked_whole": ""} == {**after, "marked_whole": ""}


def _describe_shards(before: Mapping[str, Any], after: Mapping[str, Any], saved_where: str, now_where: str) -> str:
    names = [each.get("block_names") or ["?"] for each in (before, after)]
    if before.get("num_shards") != after.get("num_shards"):
        then, now = (
            f"{each.get('num_shards')} {where} ({ends[0]} to {ends[-1]})"
            for each, where, ends in zip((before, after), (saved_where, now_where), names, strict=True)
        )
        return f"num_shards is {then}, {now}"
    if _differ_in_marks_only(before, after):
        then, now = (each.get("marked_whole", "none") for each in (before, after))
        return f'marked "whole": true in the manifest (indexes from 0): {then} {saved_where}, {now} {now_where}'
    num_shards = int(after["num_shards"])
    found = differing_block(before.get("blocks", ()), after.get("blocks", ()), num_shards=num_shards)
    if found is None:
        keys = sorted(key for key in {*before, *after} - {"block_names"} if before.get(key) != after.get(key))
        return "; ".join(f"{key} is {before.get(key)} {saved_where}, {after.get(key)} {now_where}" for key in keys)
    block, shards = found
    then, now = (each[min(block, len(each) - 1)] for each in names)
    sizes = ""
    if before.get("total_bytes") != after.get("total_bytes"):
        sizes = f" (total_bytes is {before.get('total_bytes')} {saved_where}, {after.get('total_bytes')} {now_where})"
    if len(shards) > 1:
        which = f"shards {shards.start} to {shards.stop - 1} of {num_shards}"
        return f"names or sizes differ among {which}, from {then} on {saved_where}, from {now} on {now_where}{sizes}"
    if then != now:
        return f"shard {shards.start} of {num_shards} is {then} {saved_where}, {now} {now_where}{sizes}"
    return f"shard {shards.start} of {num_shards}, {now}, has another size{sizes}"


def warn_of_libraries(saved: object, now: Mapping[str, str]) -> None:
    """Log a warning where the libraries that make the ids have other versions than those of the state.

    Args:
        saved: "libraries" of the state, a JSON object; None where the state has none.
        now: name -> version.
    """
    try:
        before = json.loads(saved) if isinstance(saved, str) else {}
    except ValueError:
        before = {}
    if not isinstance(before, dict):
        before = {}
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            _log.warning(
                "%s, which makes the token ids, is %s in the state and %s now: where the two give other ids, the packs "
                "are other ones from here on. The other version brings them back.",
                name,
                before.get(name, "not used"),
                now.get(name, "not used"),
            )
