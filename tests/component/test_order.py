"""Global batches are the same packs, bit for bit, for every number of ranks, workers and every batch size.

What the packs must be comes from `jobs.expected`, which knows the rules and not the pipeline.
"""

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.jobs import (
    BOS,
    EOS,
    LANES,
    Corpus,
    Job,
    assert_equal,
    dataset,
    documents_of,
    epoch_order,
    expected,
    lane_texts,
    read_corpus,
    texts,
    tokens_of,
    uneven,
    write_corpus,
    write_lanes,
)
from support.thorough import nightly, some

import streampack
from streampack.testing import ByteTokenizer

PACKS = 312  # more than an epoch of the uneven corpus has


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return uneven(tmp_path_factory.mktemp("uneven"))


@pytest.fixture(scope="module")
def wanted(corpus: Corpus) -> list[Any]:
    return expected(corpus, PACKS, seq_len=32)


def test_the_corpus_is_as_uneven_as_it_is_meant_to_be(corpus: Corpus) -> None:
    assert [len(shard) for shard in corpus.documents] == [2, 40, 9, 3, 14, 25, 60]
    lengths = sorted(map(len, corpus.texts))
    assert lengths[-1] > 50 * 32 and lengths[len(lengths) // 2] < 32
    assert len(corpus.shards) < LANES
    in_lanes = sorted(text for lane in range(LANES) for text in lane_texts(corpus, lane, 0))
    assert in_lanes == sorted(corpus.texts)
    assert 150 < sum(len(tokens_of(text)) for text in corpus.texts) / 32 < PACKS


@pytest.mark.parametrize(
    ("ranks", "batch_size"), some([(1, 1), (1, 8), (2, 3), (3, 5), (4, 2), (6, 7), (12, 4)], 2, first=1)
)
def test_the_packs_are_the_same_on_any_ranks(corpus: Corpus, wanted: list[Any], ranks: int, batch_size: int) -> None:
    with Job(dataset(corpus), ranks, batch_size=batch_size) as job:
        packs = job.step(PACKS // ranks // batch_size)
        assert len(packs) > 0.9 * PACKS - ranks * batch_size
        assert_equal(packs, wanted)


@pytest.mark.parametrize(
    ("ranks", "workers", "batch_size"),
    [
        *nightly([(1, 1, 1), (1, 2, 8), (1, 3, 4), (2, 1, 5), (12, 1, 3), (6, 2, 8), (3, 3, 7), (2, 5, 2)]),
        (1, 5, 6),  # 5 does not divide 12: three workers have three lane slots, one of them empty
        (4, 2, 3),
    ],
)
def test_the_packs_are_the_same_with_any_workers(
    corpus: Corpus, wanted: list[Any], ranks: int, workers: int, batch_size: int
) -> None:
    with Job(dataset(corpus), ranks, workers, batch_size) as job:
        packs = job.step(PACKS // ranks // batch_size)
        assert len(packs) > 0.8 * PACKS
        assert_equal(packs, wanted)


@pytest.mark.parametrize("ranks", some([4, 6], 2))
def test_workers_above_a_ranks_lanes_are_clamped_with_a_warning(corpus: Corpus, wanted: list[Any], ranks: int) -> None:
    message = f"num_workers=5 is more than the {LANES // ranks} lanes of this rank: {LANES // ranks} are started"
    with Job(dataset(corpus), ranks, 5, 2) as job:
        with pytest.warns(UserWarning, match=message):
            packs = job.step(10)
        assert_equal(packs, wanted)


def test_packs_made_in_a_worker_of_a_server_are_the_same(corpus: Corpus, wanted: list[Any]) -> None:
    with Job(dataset(corpus), 1, 1, 6, multiprocessing_context=None) as job:
        assert_equal(job.step(20), wanted)


@pytest.mark.parametrize(
    ("workers", "prefetch_bytes"), [(1, 4 * 32 * 9 * 5), (3, 1), *nightly([(1, 1), (3, 4 * 32 * 9 * 5)])]
)
def test_how_many_packs_a_message_holds_changes_nothing(
    corpus: Corpus, wanted: list[Any], prefetch_bytes: int, workers: int
) -> None:
    with Job(dataset(corpus), 1, workers, 5, prefetch_bytes=prefetch_bytes) as job:
        assert_equal(job.step(24), wanted)


def test_the_digest_is_one_number_on_every_topology(corpus: Corpus) -> None:
    digests, seen = set(), set()
    more = nightly([(2, 0, 6), (3, 0, 1), (6, 0, 4), (12, 0, 2)])
    for ranks, workers, batch_size in [(1, 0, 8), (1, 2, 2), (3, 0, 1), (4, 1, 2), *more]:
        with Job(dataset(corpus), ranks, workers, batch_size) as job:
            for step in range(1, 120 // ranks // batch_size + 1):
                job.step()
                if step * ranks * batch_size in (24, 120):
                    seen.add((step * ranks * batch_size, job.digest()))
            digests.add(job.digest())
    assert len(digests) == 1
    assert len(seen) == 2


def test_the_digest_sees_content_number_and_seed(corpus: Corpus) -> None:
    digests = []
    for changes in ({}, {"seed": 1}, {"seq_len": 33}, {"boundary": "keep"}, {"pad_id": 5}, {"num_lanes": 6}):
        with Job(dataset(corpus, **changes)) as job:
            job.step(24)
            digests.append(job.digest())
    assert len(set(digests)) == len(digests)


def test_the_digest_sees_which_number_a_pack_has(tmp_path: Path) -> None:
    """The same two packs, in the other order."""
    digests = []
    for order in ("ab", "ba"):
        corpus = write_lanes(tmp_path / order, [[letter * 14] for letter in order])
        with Job(dataset(corpus, seq_len=16, num_lanes=2, shuffle=False)) as job:
            job.step(2)
            digests.append(job.digest())
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    "packing",
    [
        {"boundary": "trim"},
        {"boundary": streampack.ReplaceBoundary(77)},
        *nightly([{"boundary": "mask_bos_target"}, {"boundary": "keep", "lookahead": False}]),
        {"boundary": "keep", "packing": "next_fit", "overflow": "truncate"},
        {"boundary": "mask", "packing": "best_fit", "window": 2},
        *nightly([{"boundary": "keep"}, {"boundary": "mask_eos_input"}, {"boundary": "mask", "lookahead": False}]),
        *nightly([{"boundary": "mask", "packing": "next_fit"}]),
        *nightly([{"boundary": "trim", "packing": "next_fit", "overflow": "drop"}]),
        *nightly([{"boundary": "trim", "packing": "best_fit", "window": 5, "overflow": "truncate"}]),
    ],
    ids=str,
)
def test_every_boundary_and_packing_keeps_the_order(corpus: Corpus, packing: dict[str, Any]) -> None:
    wanted = expected(corpus, 144, seq_len=32, **packing)
    with Job(dataset(corpus, **packing), 3, 0, 4) as job:
        assert_equal(job.step(12), wanted)


@pytest.mark.parametrize(
    ("changes", "per_text"),
    [
        *nightly([({"add_bos": False}, lambda text: [tokens_of(text)[1:]])]),
        *nightly([({"add_eos": False}, lambda text: [tokens_of(text)[:-1]]), ({"seq_len": 17}, None)]),
        ({"add_bos": False, "add_eos": False}, lambda text: [tokens_of(text)[1:-1]]),
        ({"seed": 3}, None),
        ({"shuffle": False}, None),
        ({"seq_len": 2}, None),
        ({"num_lanes": 6}, None),
        ({"num_lanes": 30}, None),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_the_packs_are_those_of_the_arguments(corpus: Corpus, changes: dict[str, Any], per_text: Any) -> None:
    rules = {key: value for key, value in changes.items() if key in ("seed", "shuffle", "seq_len", "num_lanes")}
    rules |= {"per_text": per_text} if per_text else {}
    wanted = expected(corpus, 144, **{"seq_len": 32, **rules})
    with Job(dataset(corpus, **changes), 2, 0, 4) as job:
        assert_equal(job.step(18), wanted)


@pytest.mark.parametrize(("field", "per_sample"), [("jsonl:text", 4), ("npy", 1), *nightly([("json:text", 1)])])
def test_every_field_keeps_the_order(tmp_path: Path, field: str, per_sample: int) -> None:
    corpus = uneven(tmp_path, field=field, per_sample=per_sample)
    wanted = expected(corpus, 240, seq_len=32)
    with Job(dataset(corpus, field=field), 2, 0, 4) as job:
        assert_equal(job.step(30), wanted)
    with Job(dataset(corpus, field=field), 1, 3, 4) as job:
        assert_equal(job.step(20), wanted)


def test_tokens_need_no_tokenizer(tmp_path: Path) -> None:
    corpus = uneven(tmp_path, field="npy")
    data = dataset(corpus, tokenizer=None, field="npy", add_bos=False, add_eos=False)
    wanted = expected(corpus, 120, seq_len=32, per_text=lambda text: [tokens_of(text)[1:-1]])
    with Job(data, 1, 0, 4) as job:
        assert_equal(job.step(30), wanted)


def test_lanes_go_from_epoch_to_epoch_by_themselves_each_in_its_own_order(corpus: Corpus) -> None:
    assert len({tuple(epoch_order(corpus, epoch)) for epoch in range(5)}) == 5
    with Job(dataset(corpus), 2, 0, 6) as job:
        job.step(PACKS // 12)
        state = job.state()
    assert {state[f"lanes.{lane:06d}"][0][0] for lane in range(LANES)} >= {0, 1, 2}


def test_the_packs_of_a_real_model_never_change() -> None:
    """Shards and SentencePiece model that ship with the package: as the rules say, and as they always were."""
    folder = Path(streampack.__file__).parent / "examples" / "data"
    corpus = read_corpus(sorted(folder.glob("devil-*.tar*")))
    model = streampack.SentencePieceTokenizer(folder / "devil.model")
    data = dataset(corpus, tokenizer=str(folder / "devil.model"), seq_len=64, seed=7)
    assert data.fingerprint()["tokenizer"] == model.digest

    def per_text(text: str) -> list[list[int]]:
        return [[model.bos_id, *model.encode(text).tolist(), model.eos_id]]

    wanted = expected(corpus, 240, seq_len=64, seed=7, per_text=per_text)  # endless: no padding
    for ranks, workers in [(4, 0), (1, 5)]:
        with Job(data, ranks, workers, 6) as job:
            assert_equal(job.step(240 // ranks // 6), wanted)
    golden = hashlib.blake2b(np.stack(wanted).astype("<i8").tobytes(), digest_size=8)
    assert golden.hexdigest() == "d3d5af6bf96fc0c9"


def test_a_batch_is_int64_tensors_with_the_number_of_targets(corpus: Corpus) -> None:
    with streampack.PackedDataLoader(dataset(corpus), 3, num_workers=0) as loader:
        batch = next(iter(loader))
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in batch.items()} == {
        **dict.fromkeys(("tokens", "labels", "position_ids", "segment_ids"), (torch.int64, (3, 32))),
        "num_targets": (torch.int64, (3,)),
            "source_ids": (torch.int32, (3,)),
    }
    assert batch["num_targets"].tolist() == (batch["labels"] != -100).sum(dim=1).tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_provenance_names_the_sample_of_every_segment(corpus: Corpus, workers: int) -> None:
    texts_by_place = {}
    for shard, (path, samples) in enumerate(zip(corpus.shards, corpus.documents, strict=True)):
        first = sum(len(documents) for documents in corpus.documents[:shard])
        for index, (text,) in enumerate(samples):
            texts_by_place[str(path), f"sample{first + index:04d}"] = tokens_of(text)
    numbers: list[int] = []
    with streampack.PackedDataLoader(dataset(corpus), 4, num_workers=workers, provenance=True) as loader:
        for batch in itertools.islice(loader, 40):
            for tokens, sources in zip(batch["tokens"].tolist(), batch["provenance"], strict=True):
                rows = [
                    token
                    for source in sources
                    for token in texts_by_place[source.url, source.key][source.row : source.row + source.length]
                ]
                assert tokens[: len(rows)] == rows
                assert sum(source.length for source in sources) == len(rows) == 32
            numbers += batch["pack_numbers"].tolist()
    assert numbers == list(range(160))


# --- splits and transforms


def test_train_and_val_share_no_document_and_miss_none(corpus: Corpus) -> None:
    arguments = {"fraction": 0.3, "epochs": 1}
    found = {}
    for split in ("train", "val"):
        with Job(dataset(corpus, part=split, **arguments), 1 if split == "val" else 2, 0, 4) as job:
            packs, _ = job.run_out()
            found[split] = sorted(documents_of(packs, job.num_lanes))
    assert sorted(found["train"] + found["val"]) == sorted(corpus.texts)
    assert 0.15 < len(found["val"]) / len(corpus.texts) < 0.45


def test_the_split_is_the_same_for_every_seed_lane_and_epoch(corpus: Corpus) -> None:
    found = set()
    for changes in ({}, {"seed": 9, "seq_len": 99}, {"num_lanes": 1, "shuffle": False}):
        with Job(dataset(corpus, part="train", fraction=0.3, epochs=1, **changes), 1, 0, 4) as job:
            for _ in range(2):
                packs, _ = job.run_out()
                found.add(tuple(sorted(documents_of(packs, job.num_lanes))))
    assert len(found) == 1


def test_validation_is_one_epoch_as_listed_and_the_same_at_every_pass(corpus: Corpus) -> None:
    data = dataset(corpus, part="val", fraction=0.3, seed=5, num_lanes=1)
    with Job(data, 1, 0, 4) as job:
        passes = [job.run_out()[0] for _ in range(3)]
    documents = [documents_of(packs, num_lanes=1) for packs in passes]
    listed = [text for text in corpus.texts if text in set(documents[0])]
    assert documents == [listed] * 3
    for packs in passes[1:]:
        np.testing.assert_array_equal(np.stack(list(packs.values())), np.stack(list(passes[0].values())))


def test_what_a_transform_does_depends_on_the_document_alone(corpus: Corpus) -> None:
    """It draws; the draws are the same on every topology and for other lanes."""
    found = []
    for ranks, workers in [(1, 0), (3, 0), (1, 4)]:
        with Job(dataset(corpus, transform=cut_up), ranks, workers, 2) as job:
            packs = job.step(60 // ranks)
            found.append([packs[number].tolist() for number in range(120)])
    assert found[0] == found[1] == found[2]
    documents = {}
    for num_lanes in (1, 12):
        with Job(dataset(corpus, transform=cut_up, num_lanes=num_lanes, epochs=1), 1, 0, 4) as job:
            documents[num_lanes] = sorted(documents_of(job.run_out()[0], num_lanes))
    assert documents[1] == documents[12]
    assert 0 < len(documents[1]) != len(corpus.texts)


def test_a_transform_draws_the_same_at_every_pass_of_a_validation_run(corpus: Corpus) -> None:
    data = dataset(corpus, part="val", fraction=0.5, num_lanes=1, transform=cut_up)
    with Job(data) as job:
        first, second = (list(job.run_out()[0].values()) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    with Job(dataset(corpus, epochs=1, num_lanes=1, transform=cut_up, shuffle=False)) as job:
        first, second = (documents_of(job.run_out()[0], num_lanes=1) for _ in range(2))
    assert first != second  # while the epochs of a training run draw anew


def cut_up(document: streampack.Document, rng: np.random.Generator) -> Any:
    """None, the document, or some pieces of it, by draw."""
    assert document.text is not None
    choice = int(rng.integers(4))
    if choice == 0:
        return None
    if choice == 1:
        return document
    cuts = sorted(int(cut) for cut in rng.integers(len(document.text) + 1, size=choice - 1))
    parts = [document.text[a:b] for a, b in itertools.pairwise([0, *cuts, len(document.text)])]
    return [streampack.Document(text=part) for part in parts]


def test_the_tokenizer_of_these_tests_has_no_other_bos_or_eos() -> None:
    assert not {BOS, EOS} & set(ByteTokenizer().encode("".join(map(chr, range(256)))).tolist())


def test_lanes_in_one_large_shard_are_cut_between_samples(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, [(".tar", texts(300, longest=700))])
    wanted = expected(corpus, 240, seq_len=64, num_lanes=24)
    with Job(dataset(corpus, seq_len=64, num_lanes=24), 8, 0, 5) as job:
        assert_equal(job.step(6), wanted)
