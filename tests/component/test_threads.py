"""A loader and several threads: one takes batches, others close, load, and ask for states."""

import contextlib
import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support.jobs import Corpus, dataset, rows, uneven
from support.thorough import nightly

import streampack
from streampack.errors import LoaderError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return uneven(tmp_path_factory.mktemp("threads"))


def make(corpus: Corpus, *, num_workers: int = 0, **changes: Any) -> streampack.PackedDataLoader:
    return streampack.PackedDataLoader(
        dataset(corpus, **changes), 2, num_workers=num_workers, multiprocessing_context="fork"
    )


class Taker(threading.Thread):
    """Takes batches until it is stopped or an error comes; holds each until the test has seen it."""

    def __init__(self, batches: Iterator[Any]) -> None:
        super().__init__()
        self.batches = batches
        self.taken: queue.Queue[Any] = queue.Queue(maxsize=2)
        self.error: BaseException | None = None
        self.num_taken = 0
        self.start()

    def run(self) -> None:
        try:
            for batch in self.batches:
                self.num_taken += 1
                self.taken.put(batch, timeout=30)
        except BaseException as error:  # noqa: BLE001 (the test looks at it)
            self.error = error

    def drain(self) -> None:
        while self.is_alive():
            with contextlib.suppress(queue.Empty):
                self.taken.get(timeout=0.01)


ENDINGS: dict[str, Callable[[streampack.PackedDataLoader, Any], None]] = {
    "close": lambda loader, state: loader.close(),
    "load_state_dict": lambda loader, state: loader.load_state_dict(state),
    "iter": lambda loader, state: iter(loader) and None,
}


@pytest.mark.parametrize("num_workers", [2, *nightly([0])])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_thread_that_takes_batches_is_told_when_another_ends_its_iterator(
    corpus: Corpus, num_workers: int, ending: str
) -> None:
    """Also in a finite run, where it must not take the end of the workers for the end of the pass."""
    with make(corpus) as quiet:
        expected = [rows(batch) for batch in itertools.islice(quiet, 60)]
    with make(corpus, num_workers=num_workers, epochs=1) as loader:
        start = loader.state_dict()
        taker = Taker(iter(loader))
        for number in range(5):
            np.testing.assert_array_equal(rows(taker.taken.get(timeout=30)), expected[number])
        ENDINGS[ending](loader, start)
        taker.drain()
        taker.join()
        assert isinstance(taker.error, LoaderError)
        state = loader.state_dict()
        assert state["first_epoch"] == 0
        given = 0 if ending == "load_state_dict" else taker.num_taken
        assert state["global_pack"] == 2 * given
        np.testing.assert_array_equal(rows(next(iter(loader))), expected[given])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_that_is_closed_while_a_thread_waits_for_a_batch_lets_it_come_back(
    corpus: Corpus, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_inside, may_go_on = threading.Event(), threading.Event()
    with make(corpus, num_workers=num_workers, epochs=1) as loader:
        batches = iter(loader)
        next(batches)
        running = loader._delivery.current_pass
        inner = running.batches

        def slowly() -> Iterator[Any]:
            for batch in inner:
                is_inside.set()
                assert may_go_on.wait(30)
                yield batch

        running.batches = slowly()
        taker = Taker(batches)
        assert is_inside.wait(30)
        loader.close()  # it does not wait for the thread
        loader.close()
        assert taker.is_alive()
        may_go_on.set()
        taker.join(30)
        assert isinstance(taker.error, LoaderError)
        assert loader.state_dict()["global_pack"] == 2
        assert not loader._delivery._retired


def test_two_threads_that_take_batches_of_one_loader_are_told_so(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_inside, may_go_on = threading.Event(), threading.Event()
    with make(corpus) as loader:
        batches = iter(loader)
        next(batches)
        prepare = loader._delivery._formatter.format

        def slowly(*arguments: Any) -> Any:
            is_inside.set()
            assert may_go_on.wait(30)
            return prepare(*arguments)

        monkeypatch.setattr(type(loader._delivery._formatter), "format", lambda _, *arguments: slowly(*arguments))
        taker = Taker(batches)
        assert is_inside.wait(30)
        with pytest.raises(LoaderError, match="two threads take batches of one loader"):
            next(batches)
        with pytest.raises(LoaderError, match="two threads take batches of one loader"):
            loader.skip(1)
        may_go_on.set()
        taker.taken.get(timeout=30)  # the first one is not disturbed
        loader.close()
        taker.drain()


def test_states_counts_and_digests_are_asked_for_beside_the_thread_that_takes_batches(corpus: Corpus) -> None:
    with make(corpus) as loader, make(corpus) as probe:
        taker = Taker(iter(loader))
        for _ in range(50):
            taker.taken.get(timeout=30)
            state = loader.state_dict()
            probe.load_state_dict(state)
            assert loader.stats()["documents"] >= 0
            loader.digest()
        loader.close()
        taker.drain()
        assert isinstance(taker.error, LoaderError)
