"""Where the stages of a run begin and where it ends, once the number of its lanes is known: arithmetic alone.

In:    the stages as they were given, with how each is cut; those that have begun, from a state; the budget.
Out:   a `Schedule`.
Never: a stage that has begun moved elsewhere. What comes after those is resolved from them on.

    stages that have begun     (first_pack, first_tokens) as the state has them
    at_packs=N                 the first round at or after global pack N
    at_tokens=T                the first round at or after the pack before which there are T tokens
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from streampack.corpus.schedule import Schedule, StageOfRun
from streampack.corpus.shares import Shares
from streampack.errors import ConfigError


class PlannedStage(NamedTuple):
    """A stage before it is known with which pack it begins."""

    begin: tuple[str, int] | None
    """("at_tokens" or "at_packs", the number); None: with the run."""
    weights: Mapping[str, float]
    """Of every source of the run, in its order."""
    seq_len: int
    cut: Mapping[str, Any]
    """What else decides how its rows are cut, as a state keeps it."""

    def described(self) -> dict[str, Any]:
        """What a state keeps of it: plain JSON values. Sources without weight are left out: they change no pack."""
        weights = {name: weight for name, weight in self.weights.items() if weight}
        order = {"order": list(weights)} if len(weights) > 1 else {}  # that of the intervals; a JSON object has none
        begin = {} if self.begin is None else dict([self.begin])
        return {**begin, "weights": weights, **order, "seq_len": self.seq_len, **self.cut}


def resolve(
    stages: Sequence[PlannedStage],
    *,
    num_lanes: int,
    begun: Sequence[StageOfRun] = (),
    placed: Sequence[tuple[int, int]] = (),
    since: int = 0,
    num_tokens: float | None = None,
    num_packs: float | None = None,
) -> Schedule:
    """The schedule of a run.

    Args:
        stages: all of them, in order.
        num_lanes: of the run.
        begun: the first of these stages, as they have begun.
        placed: (first_pack, first_tokens) of stages that have begun, where no `begun` says more of them.
        since: the global pack since which the run has so many lanes; those that have not begun begin later.
        num_tokens: the budget of the whole run.
        num_packs: the same in packs.

    Raises:
        ConfigError: a stage that would begin with the same round as the one before it, or before.
    """
    resolved: list[StageOfRun] = []
    for index, stage in enumerate(stages):
        if index < len(begun):
            resolved.append(begun[index])
            continue
        if index < len(placed):
            first_pack, first_tokens = placed[index]
        elif stage.begin is None:
            first_pack, first_tokens = 0, 0
        else:
            before = resolved[-1]
            name, number = stage.begin
            at = number if name == "at_packs" else before.pack_at(number)
            first_pack = -(-max(at, since) // num_lanes) * num_lanes
            if first_pack <= before.first_pack:
                raise ConfigError(
                    f"stages[{index}] ({name}={number}) would begin with pack {first_pack:,}, and the one before it "
                    f"begins with pack {before.first_pack:,}"
                    f"{' and has begun' if index <= len(begun) and begun else ''}: a stage begins with a round, which "
                    f"has num_lanes={num_lanes} packs, and each needs one of its own. Begin it later, or leave one out"
                )
            first_tokens = before.tokens_at(first_pack)
        shares = Shares.of(list(stage.weights.values()))
        resolved.append(StageOfRun(first_pack, first_tokens, stage.seq_len, shares, stage.described()))
    return Schedule(num_lanes=num_lanes, since=since, stages=tuple(resolved), end=_end(resolved, num_tokens, num_packs))


def _end(stages: Sequence[StageOfRun], num_tokens: float | None, num_packs: float | None) -> int | None:
    """The first global pack that is not handed out."""
    if num_tokens is None:
        return None if num_packs is None else int(num_packs)
    last = next((stage for stage in reversed(stages) if stage.first_tokens < num_tokens), stages[0])
    return last.pack_at(int(num_tokens))
