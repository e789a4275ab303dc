"""What comes between two steps of `next(batches)`: a signal handler, its exception, or another thread.

All come between two instructions. So a trace function stands for them: at an instruction of the loader's own modules
it raises, or does what the handler or the other thread would do.
"""

import dis
import itertools
import sys
from collections.abc import Callable, Collection, Iterator
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest
from support.jobs import Corpus, dataset, rows, uneven
from support.thorough import THOROUGH

import streampack
from streampack.corpus.partition import packs_before
from streampack.dataset import iteration
from streampack.errors import LoaderError
from streampack.lanes.position import NUM_CURSOR
from streampack.loader import commits, dealing, delivery, passes, rounds, workers
from streampack.state.checkpoint import FIELDS, PACKS
from streampack.state.forms import read_lanes

STEPS = {module.__file__ for module in (commits, delivery)}
ALL = STEPS | {module.__file__ for module in (dealing, passes, rounds)}
BATCH_SIZE = 3
FINITE = {"epochs": 1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return uneven(tmp_path_factory.mktemp("interrupts"))


@pytest.fixture(scope="module")
def wanted(corpus: Corpus) -> dict[bool, list[Any]]:
    """The batches of a run that nothing interrupts: endless, and of one epoch."""
    with make(corpus) as endless, make(corpus, **FINITE) as finite:
        return {False: [rows(batch) for batch in itertools.islice(endless, 300)], True: list(map(rows, finite))}


def make(corpus: Corpus, *, num_workers: int = 0, **changes: Any) -> streampack.PackedDataLoader:
    return streampack.PackedDataLoader(dataset(corpus, **changes), BATCH_SIZE, num_workers=num_workers)


def traced(act: Callable[[CodeType, int], None], call: Callable[[], Any], files: Collection[Any] = STEPS) -> Any:
    """What `call` gives; `act` is told (code, offset) of each instruction in these files before it runs."""

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if event == "call":
            if frame.f_code.co_filename not in files:
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode":
            act(frame.f_code, frame.f_lasti)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return call()
    finally:
        sys.settrace(before)


class Interrupt(BaseException):
    """What a signal handler raises."""


def next_or_interrupt(batches: Any, instruction: int, files: Collection[Any]) -> tuple[Any, bool]:
    """The next batch, or None if the instruction with this number was reached; and whether that one was a `return`."""
    numbers, is_return = itertools.count(), False

    def act(code: CodeType, offset: int) -> None:
        nonlocal is_return
        if next(numbers) == instruction:
            is_return = dis.opname[code.co_code[offset]].startswith("RETURN")
            raise Interrupt

    try:
        return traced(act, lambda: next(batches), files), False
    except Interrupt:
        return None, is_return


def is_whole(state: Any, num_lanes: int = 12) -> bool:
    """Whether all lanes of a state stand at its global pack."""
    held = read_lanes(state, num_lanes, 1, len(FIELDS))
    assert sorted(held.lanes) == list(range(num_lanes))
    due = [packs_before(state["global_pack"], lane, num_lanes) for lane in held.lanes]
    return held.rows[:, 0, PACKS].tolist() == due


@pytest.mark.parametrize("changes", [{}, FINITE], ids=["endless", "finite"])
@pytest.mark.parametrize(
    ("files", "step"),
    [(STEPS, 17 if THOROUGH else 101), (ALL, 61 if THOROUGH else 271)],
    ids=["commits", "all"],
)
def test_an_exception_at_any_instruction_loses_no_batch(
    corpus: Corpus, wanted: dict[bool, list[Any]], changes: dict[str, Any], files: Collection[Any], step: int
) -> None:
    expected, given, instruction, is_over = wanted[bool(changes)], 0, 0, False
    with make(corpus, **changes) as loader:
        start = loader.state_dict()
        batches = iter(loader)
        while not is_over:
            for call in range(2):  # the second one makes the pass again
                batch, is_return = next_or_interrupt(batches, instruction, files)
                state = loader.state_dict()
                assert is_whole(state)
                # At a `return` the batch may count as handed out: the loader cannot know that nobody has got it.
                assert state["global_pack"] // BATCH_SIZE - given in ({1} if batch else {0, int(is_return)})
                is_over = bool(batch) and call == 1
                if batch:
                    np.testing.assert_array_equal(rows(batch), expected[given])
                given = state["global_pack"] // BATCH_SIZE
            # What goes on is the iterator or, as in a notebook, another one.
            if instruction % 3 == 0:
                batches = iter(loader)
            np.testing.assert_array_equal(rows(next(batches)), expected[given])
            given, instruction = given + 1, instruction + step
            if given + 4 > len(expected):
                loader.load_state_dict(start)
                batches, given = iter(loader), 0


def test_an_exception_at_any_instruction_of_the_end_of_a_pass_ends_it_once(corpus: Corpus) -> None:
    with make(corpus, **FINITE) as loader:
        for _ in loader:
            before_end = loader.state_dict()
        first = rows(next(iter(loader)))
        instruction, was_interrupted = 0, True
        while was_interrupted:
            loader.load_state_dict(before_end)
            batches = iter(loader)
            try:
                next_or_interrupt(batches, instruction, STEPS)
            except StopIteration:
                was_interrupted = False
            assert list(batches) == []
            assert loader.state_dict()["first_epoch"] == 1
            np.testing.assert_array_equal(rows(next(iter(loader))), first)
            instruction += 83


def test_a_state_that_another_thread_takes_at_any_instruction_stands_at_one_batch(corpus: Corpus) -> None:
    with make(corpus) as loader, make(corpus) as probe:
        batches = iter(loader)
        for given in range(34):
            if given not in {2, 32}:  # 32: the oldest batches are added up then
                next(batches)
                continue
            states: list[Any] = []
            numbers = itertools.count()

            def ask(*_: Any, states: list[Any] = states, numbers: Iterator[int] = numbers) -> None:
                if next(numbers) % 4 == 0:
                    states.append(loader.state_dict())

            traced(ask, lambda: next(batches))
            assert len(states) > 50
            for state in states:
                assert is_whole(state)
                assert state["global_pack"] in {BATCH_SIZE * given, BATCH_SIZE * (given + 1)}
            for state in states[::50]:
                probe.load_state_dict(state)


def handled_at(instruction: int, handler: Callable[[], Any]) -> Callable[[CodeType, int], None]:
    """Calls a handler once, at this instruction or the first one after it before which Python runs signal handlers."""
    numbers, after_call, is_done = itertools.count(), False, False

    def act(code: CodeType, offset: int) -> None:
        nonlocal after_call, is_done
        if next(numbers) >= instruction and after_call and not is_done:
            is_done = True
            handler()
        after_call = dis.opname[code.co_code[offset]].startswith(("CALL", "RESUME"))

    return act


@pytest.mark.parametrize("what", ["next", "skip"])
def test_a_signal_handler_that_takes_a_batch_inside_next_is_refused(
    corpus: Corpus, wanted: dict[bool, list[Any]], what: str
) -> None:
    refusals: list[str] = []
    taken: list[Any] = []
    with make(corpus) as loader, make(corpus) as probe:
        batches = iter(loader)

        def take() -> None:
            try:
                taken.append(rows(next(batches)) if what == "next" else loader.skip(1))
            except LoaderError as error:
                refusals.append(str(error))

        given = 0
        for instruction in range(0, 400, 29 if THOROUGH else 43):
            taken.clear()
            batch = rows(traced(handled_at(instruction, take), lambda: next(batches)))
            # In the head or the tail of `next` it is not refused, and comes before or after the other batch.
            expected = wanted[False][given : given + 1 + len(taken)]
            for each in [batch, *taken] if what == "next" else [batch]:
                assert any(np.array_equal(each, one) for one in expected)
            given += len(expected)
            state = loader.state_dict()
            assert is_whole(state)
            assert state["global_pack"] == BATCH_SIZE * given
        probe.load_state_dict(state)
        np.testing.assert_array_equal(rows(next(iter(probe))), wanted[False][given])
    assert len(refusals) > 3
    assert all("the same thread is in another next or skip" in each for each in refusals)


ENDINGS: dict[str, Callable[[streampack.PackedDataLoader, Any], Any]] = {
    "close": lambda loader, state: loader.close(),
    "load_state_dict": lambda loader, state: loader.load_state_dict(state),
    "iter": lambda loader, state: iter(loader),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_signal_handler_that_ends_the_iterator_inside_next_loses_no_batch(
    corpus: Corpus, wanted: dict[bool, list[Any]], ending: str
) -> None:
    errors: list[str] = []
    with make(corpus) as loader:
        start = loader.state_dict()
        for instruction in range(0, 400, 29 if THOROUGH else 43):
            loader.load_state_dict(start)
            batches, batch, has_ended = iter(loader), None, []
            next(batches)

            def end(has_ended: list[int] = has_ended) -> None:
                ENDINGS[ending](loader, start)
                has_ended.append(True)

            try:
                batch = traced(handled_at(instruction, end), lambda batches=batches: next(batches))
            except LoaderError as error:
                errors.append(str(error))
            state = loader.state_dict()
            assert is_whole(state)
            given = state["global_pack"] // BATCH_SIZE
            assert given == (0 if has_ended and ending == "load_state_dict" else 1 + (batch is not None))
            assert not loader._delivery._retired
            np.testing.assert_array_equal(rows(next(iter(loader))), wanted[False][given])
    assert len(errors) > 3
    assert all("this iterator is over" in each or "the state was changed" in each for each in errors)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_signal_handler_that_ends_the_iterator_while_next_waits_for_workers_ends_them(
    corpus: Corpus, wanted: dict[bool, list[Any]], ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make(corpus, num_workers=2) as loader:
        start, states = loader.state_dict(), []
        batches, wait, interrupted = iter(loader), workers._wait, loader._delivery.current_pass

        def handled(*arguments: Any) -> float:
            if not states:
                states.append(loader.state_dict())
                ENDINGS[ending](loader, start)
                with pytest.raises(LoaderError, match="the same thread is in another next or skip"):
                    next(iter(loader))
            return wait(*arguments)

        monkeypatch.setattr(workers, "_wait", handled)
        with pytest.raises(LoaderError, match="this iterator is over"):
            next(batches)
        assert states[0]["global_pack"] == 0
        assert not loader._delivery._retired
        assert not interrupted._restarting._workers._workers
        np.testing.assert_array_equal(rows(next(iter(loader))), wanted[False][0])


def test_an_exception_at_any_instruction_loses_no_pack_of_a_dataset(corpus: Corpus) -> None:
    """What iterates over a dataset without the loader: its iterator and the state that StatefulDataLoader saves."""
    data, files = dataset(corpus, epochs=1), {iteration.__file__}
    expected = [item["tokens"].numpy() for item in data]
    packs, number = iter(data), 0
    for instruction in itertools.count(0, 3):
        item, is_return = next_or_interrupt(packs, instruction, files)
        is_over = item is not None
        if item is None:
            given = sum(row[NUM_CURSOR] for _, row in packs.state_dict()["lanes"].values())
            assert given - number in {0, int(is_return)}  # 1: it was given, to nobody
            number, item = given, next(packs)
        np.testing.assert_array_equal(item["tokens"], expected[number])
        number += 1
        if is_over:
            break
    other = iter(data)
    other.load_state_dict(packs.state_dict())
    for one in (packs, other):
        for item, wanted_tokens in zip(one, expected[number:], strict=True):
            np.testing.assert_array_equal(item["tokens"], wanted_tokens)
