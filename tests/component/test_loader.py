"""What a loader answers and takes at any time: counts before it begins, other batch sizes, batches that are ahead."""

import contextlib
import copy
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from support.jobs import Corpus, dataset, rows, uneven

import streampack
from streampack.errors import ConfigError, LoaderError, ShardError
from streampack.loader import messages
from streampack.state.joining import to_json
from streampack.testing import ByteTokenizer, write_shards


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return uneven(tmp_path_factory.mktemp("loader"))


def make(corpus: Corpus, batch_size: int = 2, **options: Any) -> streampack.PackedDataLoader:
    return streampack.PackedDataLoader(dataset(corpus), batch_size, **{"num_workers": 0, **options})


# --- before the first batch


def test_counts_and_digest_are_zero_before_the_run_begins_and_wait_for_nobody(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment promises a second rank, which never comes."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with make(corpus) as loader:
        *flat, stages, _, limited_by, sources = loader.stats().values()
        assert not any([*flat, *stages["main"].values(), limited_by, *sources["default"].values()])
        assert loader.digest() == 0
        assert loader.num_lanes == 12
        assert "rank 0 of 2, num_workers=0, format=streampack; 12 lanes; 0 packs so far" in repr(loader)
    auto = streampack.PackedDataset(list(corpus.urls), ByteTokenizer(), 32)
    with (
        streampack.PackedDataLoader(auto, num_workers=0) as loader,
        pytest.raises(LoaderError, match=r'num_lanes="auto" is known once the ranks have listed the shards'),
    ):
        loader.num_lanes  # noqa: B018 (it raises)


def test_a_rank_alone_knows_its_lanes_and_sums_before_the_run_begins(corpus: Corpus) -> None:
    data = streampack.PackedDataset(list(corpus.urls), ByteTokenizer(), 32)
    with streampack.PackedDataLoader(data, num_workers=0) as loader:
        assert loader.num_lanes == data.num_lanes
        assert loader.stats(all_ranks=True) == loader.stats()
        next(iter(loader))
        assert loader.digest(all_ranks=True) == loader.digest() != 0


def test_sums_over_ranks_that_cannot_be_reached_are_refused(corpus: Corpus) -> None:
    with make(corpus, dp_rank=0, dp_size=2) as loader:
        for ask, name in ((loader.stats, "stats"), (loader.digest, "digest")):
            with pytest.raises(ConfigError, match=rf"{name}\(all_ranks=True\) needs to reach the other ranks"):
                ask(all_ranks=True)


def test_a_digest_fits_an_int64(corpus: Corpus) -> None:
    with make(corpus) as loader:
        digests = []
        for batch, _ in zip(loader, range(12), strict=False):
            assert batch
            digests.append(loader.digest())
        assert all(-(2**63) <= digest < 2**63 for digest in digests)
        assert min(digests) < 0 < max(digests)


# --- what can be set


def test_another_batch_size_and_number_of_workers_hold_from_the_next_iterator_on(corpus: Corpus) -> None:
    with make(corpus, 1) as quiet:
        expected = [rows(batch)[0] for batch, _ in zip(quiet, range(30), strict=False)]
    with make(corpus, 2) as loader:
        batches = iter(loader)
        got = rows(next(batches))
        loader.batch_size, loader.num_workers = 5, 2
        got += rows(next(batches))
        assert len(got) == 4
        batches = iter(loader)
        got += rows(next(batches)) + rows(next(batches))
        loader.batch_size, loader.num_workers = np.int64(3), 0
        loader.close()
        loader.skip(1)
        got += [None] * 3 + rows(next(iter(loader)))
        assert len(got) == 4 + 10 + 3 + 3
        for one, other in zip(got, expected, strict=False):
            assert one is None or np.array_equal(one, other)
        assert loader.batch_size == 3


def test_what_cannot_be_set_is_an_error_and_not_ignored(corpus: Corpus) -> None:
    with make(corpus) as loader:
        for name, value in (("batch_size", 0), ("batch_size", True), ("num_workers", -1)):
            with pytest.raises(ConfigError, match=f"{name}="):
                setattr(loader, name, value)
        for name in ("dataset", "whole_state", "dp_size", "drop_last", "prefetch_bytes", "format", "verify_every"):
            with pytest.raises(AttributeError, match=name):
                setattr(loader, name, 1)
        loader.note = "an attribute of the user's own"


def test_an_argument_that_is_set_on_a_dataset_is_refused_instead_of_ignored(corpus: Corpus) -> None:
    data = dataset(corpus)
    for name in ("seed", "seq_len", "transform", "epochs", "max_bad"):
        with pytest.raises(AttributeError, match=f"{name} cannot be set on a PackedDataset"):
            setattr(data, name, 1)
    data.note = "of the user's own"


# --- batches that a trainer has taken ahead


def test_skip_is_refused_while_a_trainer_holds_batches_that_it_has_taken_ahead(corpus: Corpus) -> None:
    with make(corpus) as quiet:
        expected = [rows(batch) for batch, _ in zip(quiet, range(12), strict=False)]
    with make(corpus) as loader:
        held: list[Any] = []
        batches = loader.iterate(taken_ahead=lambda: held)
        for _ in range(4):
            held.append(next(batches))
            if len(held) > 1:
                held.pop(0)
        with pytest.raises(LoaderError, match=r"skip\(2\): the trainer holds batches .* ahead \(1\).*load_state_dict"):
            loader.skip(2)
        assert loader.state_dict()["global_pack"] == 2 * 3
        loader.load_state_dict(loader.state_dict())  # as the error says
        loader.skip(2)
        np.testing.assert_array_equal(rows(next(iter(loader))), expected[3 + 2])


def test_what_a_trainer_holds_is_in_no_state_also_when_the_oldest_batches_are_added_up(corpus: Corpus) -> None:
    states = []
    with make(corpus) as quiet:
        for batch, _ in zip(quiet, range(50), strict=False):
            assert batch
            states.append(to_json(quiet.state_dict()))
    with make(corpus) as loader:
        held: list[Any] = []
        batches = loader.iterate(taken_ahead=lambda: held)
        for number in range(50):
            held.append(next(batches))
            if len(held) > 3:
                held.pop(0)
            if number > 12:
                assert to_json(loader.state_dict()) == states[number - 3]
                assert to_json(loader.state_dict(batches_back=8)) == states[number - 11]


# --- max_bad


@pytest.mark.parametrize("workers", [0, 2])
def test_max_bad_is_a_bound_of_all_lanes_together_also_from_a_state(tmp_path: Path, workers: int) -> None:
    documents = [b"\xff" * 40 if number % 10 == 5 else "x" * 40 for number in range(200)]
    shards = write_shards(tmp_path / "bad", documents, documents_per_shard=50)

    def run(max_bad: float, state: Any = None, errors: Any = ShardError) -> tuple[int, Any]:
        arguments: dict[str, Any] = {"num_lanes": 4, "shuffle": False, "epochs": 1, "on_error": "skip"}
        data = streampack.PackedDataset(shards, ByteTokenizer(), 32, max_bad=max_bad, **arguments)
        with streampack.PackedDataLoader(data, 1, num_workers=workers, multiprocessing_context="fork") as loader:
            if state is not None:
                loader.load_state_dict(state)
            with contextlib.suppress(*([errors] if errors else [])):
                for _ in loader:
                    pass
            return int(loader.stats()["bad_records"]), loader.state_dict()

    assert run(20)[0] == 20
    skipped, state = run(9)
    assert skipped == 9
    with pytest.raises(ShardError, match=r"\.tar: the run has skipped 10 bad records or shards, .*Repair the data"):
        run(9, state, errors=())
    again, same = run(9, state)
    assert again == skipped
    assert to_json(same) == to_json(state)
    assert run(20, state)[0] == 20
    assert run(0.2)[0] == 20
    assert run(0.05)[0] <= 10


# --- types, and how a dataset shows itself


def test_a_batch_has_the_keys_and_tensors_of_its_type(corpus: Corpus) -> None:
    hints = get_type_hints(streampack.PackedBatch)
    optional = {"mask", "loss_weights", "provenance", "pack_numbers"}
    for options in ({}, {"mask": True, "loss_weights": "token", "provenance": True}):
        with make(corpus, **options) as loader:
            batch: streampack.PackedBatch = next(iter(loader))
        assert set(batch) == set(hints) - (optional if not options else set())
        for name, value in batch.items():
            assert isinstance(value, list if name == "provenance" else torch.Tensor)
    assert optional == streampack.PackedBatch.__optional_keys__


def test_a_dataset_shows_its_shards_and_how_they_are_cut(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = "seq_len=32, packing=wrap, boundary=mask; num_lanes=12"
    assert repr(dataset(corpus)) == f"PackedDataset({len(corpus.urls)} shards; {cut})"
    web, code = streampack.Source(corpus.urls[:3]), streampack.Source(corpus.urls[3])
    stages = [streampack.Stage(), streampack.Stage(at_packs=120, weights={"web": 1})]
    mixed = streampack.PackedDataset({"web": web, "code": code}, ByteTokenizer(), 32, num_lanes=12, stages=stages)
    assert repr(mixed) == f"PackedDataset(web: 3 shards, code: 1 shard; {cut}, 2 stages)"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    unlisted = streampack.PackedDataset("s3://nowhere/*.tar", ByteTokenizer(), 32)
    assert "not listed yet" in repr(unlisted) and "num_lanes='auto'" in repr(unlisted)  # and nobody was asked
    with streampack.PackedDataLoader(unlisted, 4, num_workers=0, format="varlen") as loader:
        said = "batch_size=4, rank 0 of 2, num_workers=0, format=varlen; 0 packs so far, stage 0"
        assert repr(loader) == f"PackedDataLoader({said}; {unlisted!r})"


def test_a_loader_shows_its_lanes_and_how_far_it_has_come(corpus: Corpus) -> None:
    stages = [streampack.Stage(), streampack.Stage(at_packs=12, seq_len=16)]
    staged = streampack.PackedDataset(list(corpus.urls), ByteTokenizer(), 32, num_lanes=12, stages=stages)
    said = "batch_size=6, rank 0 of 1, num_workers=0, format=streampack"
    with streampack.PackedDataLoader(staged, 6, num_workers=0) as loader:
        assert repr(loader) == f"PackedDataLoader({said}; 12 lanes; 0 packs so far, stage 0; {staged!r})"
        for _ in zip(range(2), loader):
            pass
        assert repr(loader) == f"PackedDataLoader({said}; 12 lanes; 12 packs so far, stage 1; {staged!r})"
        loader.batch_size = 3
        assert "batch_size=3" in repr(loader)
        state = loader.state_dict()
    auto = streampack.PackedDataset(list(corpus.urls), ByteTokenizer(), 32, stages=stages)
    with streampack.PackedDataLoader(auto, 6, num_workers=0) as loader:
        loader.load_state_dict(state)
        assert "; 12 lanes; 12 packs so far, stage 1; " in repr(loader), "the state's"


def test_a_loader_of_a_validation_set_shows_no_lanes(corpus: Corpus) -> None:
    held_out = streampack.HoldOut("val", fraction=0.5)
    val = streampack.PackedDataset(list(corpus.urls), ByteTokenizer(), 32, hold_out=held_out)
    with streampack.PackedDataLoader(val, 2, num_workers=0) as loader:
        next(iter(loader))
        said = "batch_size=2, rank 0 of 1, num_workers=0, format=streampack; 2 packs so far, stage 0"
        assert repr(loader) == f"PackedDataLoader({said}; {val!r})"


# --- copies


def test_a_loader_can_be_copied_before_it_begins_and_says_so_afterwards(corpus: Corpus) -> None:
    with make(corpus) as loader:
        for copied in (copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
            with copied, make(corpus) as other:
                np.testing.assert_array_equal(rows(next(iter(copied))), rows(next(iter(other))))
        next(iter(loader))
        with pytest.raises(LoaderError, match="a loader that has begun cannot be copied or pickled"):
            copy.deepcopy(loader)


# --- without workers


@pytest.mark.parametrize(("field", "sizes"), [("npy", [2, 4, 8, 16]), ("txt", [2, 2, 2, 2])])
def test_packs_of_token_ids_are_made_some_batches_at_a_time_and_those_of_text_a_batch_at_a_time(
    field: str, sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    message_of = messages.message_of

    def counted(packs: Sequence[Any], *args: Any, **options: Any) -> messages.Message:
        made.append(len(packs))
        return message_of(packs, *args, **options)

    monkeypatch.setattr(messages, "message_of", counted)
    texts = [bytes(range(65, 91)) * 4] * 20
    documents = [np.frombuffer(text, np.uint8) if field == "npy" else text.decode() for text in texts]
    options = {"tokenizer": ByteTokenizer(), "add_bos": False, "add_eos": False, "num_lanes": 1, "epochs": 1}
    data = streampack.PackedDataset(write_shards(tmp_path, documents, field=field), seq_len=32, field=field, **options)
    with streampack.PackedDataLoader(data, 2, num_workers=0) as loader:
        batches = iter(loader)
        assert made == []
        first = next(batches)
        assert made[0] == 2, "the first batch waits for no other"
        assert len([first, *batches]) == 33
    assert made[:4] == sizes
