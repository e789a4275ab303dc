"""What is committed, as a whole and some batches ago, against a model that keeps all rows after each batch."""

import random
from typing import Any

import numpy as np
import pytest

from streampack.errors import StateError
from streampack.hashing import as_int64
from streampack.lanes.position import SkippedRange
from streampack.loader.commits import BATCHES_BACK, Change, Commits
from streampack.state.checkpoint import DIGEST, FIELDS, Committed

NUM_LANES = 5


def changes(count: int, *, seed: int = 0) -> list[Change]:
    """Batches of three packs or fillers; now and then one skips something."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        lanes = [rng.randrange(NUM_LANES) for _ in range(3)]
        num_packs = rng.choice([3, 3, 2, 0])
        rows = np.array([[rng.randrange(100) for _ in FIELDS] for _ in range(num_packs)], np.int64)
        skipped = [(lanes[0], SkippedRange(0, 9, 0, number, number + 1, 0))] if num_packs and rng.random() < 0.3 else []
        made.append(
            Change(
                row_indexes=np.array(lanes[:num_packs], np.intp),
                rows=with_digests(rows.reshape(num_packs, len(FIELDS)), rng),
                fillers=np.array(lanes[num_packs:], np.intp),
                skipped_ranges=skipped,
                global_pack=3 * (number + 1),
            )
        )
    return made


def with_digests(rows: Any, rng: random.Random) -> Any:
    for row in rows:
        row[DIGEST] = rng.randrange(-(2**63), 2**63)
    return rows


def plain(committed: Committed) -> tuple[Any, ...]:
    return committed.rows.tolist(), list(committed.skipped_ranges), committed.global_pack, committed.first_epoch


def fresh() -> Committed:
    return Committed.fresh(range(NUM_LANES), NUM_LANES)


def test_rows_counts_and_digest_are_those_of_all_batches_and_the_last_ones_can_be_left_out() -> None:
    model, history = fresh(), [plain(fresh())]
    commits = Commits(fresh())
    for number, change in enumerate(changes(50), start=1):
        before = commits.committed()
        commits.commit(change, after=commits.standing)
        assert plain(before) == history[-1]  # what was given stays as it was
        change.apply(model)
        model.prune()
        history.append(plain(model))
        for back in range(min(number, BATCHES_BACK) + 1):
            assert plain(commits.committed(back)) == history[-1 - back]
        assert commits.digest() == model.digest()
        assert commits.global_pack == model.global_pack
        assert commits.num_batches == number
        assert as_int64(commits.digest()) == commits.digest()


def test_a_state_from_before_the_start_or_further_back_than_is_kept_is_refused() -> None:
    commits = Commits(fresh())
    for number, change in enumerate(changes(20)):
        with pytest.raises(StateError, match=f"can go back {min(number, BATCHES_BACK)} batches now"):
            commits.committed(min(number, BATCHES_BACK) + 1)
        commits.commit(change, after=commits.standing)
    with pytest.raises(StateError, match="batches_back=-1"):
        commits.committed(-1)


def test_what_a_trainer_holds_is_left_out_and_can_be_taken_back() -> None:
    made, held = changes(40), [1, 2]
    commits, without = Commits(fresh()), Commits(fresh())
    commits.hold(held)
    for change in made:
        commits.commit(change, after=commits.standing)
    for change in made[:-2]:
        without.commit(change, after=without.standing)
    assert plain(commits.committed()) == plain(without.committed())
    assert plain(commits.committed(BATCHES_BACK)) == plain(without.committed(BATCHES_BACK))
    commits.take_back()
    assert plain(commits.latest()) == plain(without.latest())
    assert commits.num_ahead == 0


def test_only_the_last_batch_can_be_withdrawn() -> None:
    first, second = changes(2)
    commits = Commits(fresh())
    commits.commit(first, after=commits.standing)
    after_first = plain(commits.latest())
    commits.commit(second, after=commits.standing)
    commits.withdraw(first)
    assert commits.num_batches == 2
    commits.withdraw(second)
    commits.withdraw(second)
    assert (plain(commits.latest()), commits.num_batches) == (after_first, 1)
