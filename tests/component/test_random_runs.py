"""Random corpora with all that can be wrong in them: each start of a run is the run that was never stopped.

Packs, states, counts and digests are those of one process that hands out one pack at a time; and where that ends, with
an error or with the data, every start ends too.
"""

import dataclasses
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from support.damage import break_header, members, plain, store, zero_block
from support.jobs import Array, Corpus, Job, dataset, texts, write_corpus
from support.thorough import some

import streampack
from streampack.corpus.partition import fitting_ranks

LIMIT = 60
WINDOWS = streampack.Shuffle(block_bytes=4096, window=3)


def spoil(corpus: Corpus, choose: random.Random) -> None:
    """Bad records here and there, and a third of the shards broken."""
    for path in corpus.shards:
        data = bytearray(plain(path))
        for member in members(path):
            if member.size > 3 and choose.random() < 0.1:
                data[member.offset_data + choose.randrange(member.size)] = 0xFF
        store(path, bytes(data))
        if choose.random() < 0.3:
            choose.choice((break_header, zero_block))(path, choose.randrange(len(members(path))))


def transform_of(kind: str, refused: str) -> Callable[..., Any]:
    def transform(document: streampack.Document, rng: np.random.Generator) -> Any:
        text = document.text or ""
        if kind == "refuse" and text.startswith(refused):
            raise ArithmeticError(f"refused {refused}")
        if kind == "drop":
            return document if rng.random() < 0.3 else None
        size = int(rng.integers(1, 40))
        return [dataclasses.replace(document, text=text[at : at + size]) for at in range(0, len(text) + size, size)]

    return transform


def random_run(folder: Path, choose: random.Random) -> streampack.PackedDataset:
    field = choose.choice(("txt", "txt", "jsonl:text", "json:text"))
    shards, first = [], 0
    for number in range(choose.randint(1, 4)):
        group = texts(choose.randint(1, 30), seed=choose.randrange(99), first=first, longest=choose.choice((40, 300)))
        first += len(group)
        group = [text if number % 2 or choose.random() < 0.7 else "" for text in group]
        group[choose.randrange(len(group))] += "long " * choose.choice((0, 0, 300))
        shards.append((choose.choice((".tar", ".tar", ".tar.gz", ".tar.zst")), group))
    corpus = write_corpus(folder, shards, field=field, per_sample=choose.choice((1, 4)) if field[:5] == "jsonl" else 1)
    spoil(corpus, choose)
    lanes = choose.choice((1, 2, 4, 6))
    options: dict[str, Any] = {
        "field": field,
        "num_lanes": lanes,
        "seq_len": choose.choice((4, 16, 48)),
        "shuffle": choose.choice((False, "shards", WINDOWS, WINDOWS)),
        "epochs": choose.choice((None, None, 1, 2)),
        "on_error": choose.choice(("skip", "skip", "skip", "raise")),
        "max_bad": choose.choice((1000, 3, 0.2)),
        "boundary": choose.choice(("keep", "mask", "trim", "mask_bos_target", streampack.ReplaceBoundary(99))),
        "packing": (packing := choose.choice(("wrap", "next_fit", "best_fit"))),
        "overflow": "split" if packing == "wrap" else choose.choice(("split", "truncate", "drop", "error")),
        "tail": choose.choice(("pad", "drop")),
        "retry": streampack.RetryPolicy.immediate(),
    }
    if packing == "best_fit":
        options |= {"window": choose.choice((1, 2, 5)), "boundary": choose.choice(("mask", "trim"))}
    if (kind := choose.choice(("", "refuse", "drop", "pieces"))) != "":
        options |= {"transform": transform_of(kind, f"<{choose.randrange(50)}>"), "transform_version": "1"}
    if options["shuffle"] != WINDOWS and choose.random() < 0.4:
        options |= {"buffer_bytes": lanes * 4 * 64 * 2**10, "document_bytes": 64 * 2**10}  # lanes are parked
    return dataset(corpus, **options)


class Standing(NamedTuple):
    """All that a job tells of where it is."""

    state: dict[str, Any]
    stats: dict[str, int]
    digest: int


def standing(job: Job) -> Standing:
    return Standing(job.state(), job.stats(), job.digest())


def said(error: Exception | None, *, in_worker: bool) -> tuple[str, str]:
    """An error's kind and text; ordinals and remedies depend on where the reading began, a worker's tells its way."""
    text = "" if in_worker else str(error)
    return type(error).__name__, re.sub(r"document \d+ |; the shard is cut short.*", "", text)


def tried(job: Job) -> dict[int, Array] | Exception:
    try:
        return job.step()
    except Exception as error:  # noqa: BLE001 (it is compared)
        return error


@pytest.mark.parametrize("seed", some(range(60), 14, first=4))
def test_every_start_is_the_run_that_was_never_stopped(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = random.Random(seed)
    monkeypatch.setattr("streampack.corpus.epochs.MOST_TEXT", choose.choice((2, 0.2, 0.02)))  # of some records
    data = random_run(tmp_path, choose)
    packs, stood = list[Array](), dict[int, Standing]()
    ended: Exception | None = None
    with Job(data) as job:
        try:
            stood[0] = standing(job)
            while len(packs) < LIMIT and (step := job.step()):
                packs += step.values()
                stood[job.global_pack] = standing(job)
        except Exception as error:  # noqa: BLE001 (each start must end with the same)
            ended = error
    for _ in range(3):
        reached, state, alive = 0, None, True
        while alive and reached < LIMIT:
            # By hand, ranks of a finite run would end on their own, and each would have a max_bad of its own.
            is_alike = data.epochs is None and data.pipeline.max_bad == 1000
            ranks = choose.choice(fitting_ranks(data.num_lanes)) if is_alike else 1
            workers = min(choose.choice((0,) * 7 + (1, 2)), data.num_lanes) if ranks == 1 else 0
            batch_size = choose.randint(1, 4)
            with Job(data, ranks, workers, batch_size, state=state) as job:
                for _ in range(choose.randint(1, 12)):
                    step = tried(job)
                    if isinstance(step, Exception):
                        alive = False
                        if ended is None and reached + ranks * batch_size > LIMIT:
                            break  # the run is not known so far
                        assert reached <= len(packs) < reached + ranks * batch_size, "an error out of its place"
                        if ranks == 1:  # of several ranks, each has its own next pack
                            assert said(step, in_worker=workers > 0) == said(ended, in_worker=workers > 0)
                        break
                    for number, pack in step.items():
                        if number < len(packs):
                            np.testing.assert_array_equal(pack, packs[number], err_msg=f"global pack {number}")
                        else:
                            assert len(packs) == LIMIT or not pack[3].any(), "more than the run has"
                    if not step:
                        assert ended is None and reached >= len(packs), "an end that is none"
                        alive = False
                        break
                    reached = job.global_pack
                    if reached in stood:
                        assert standing(job) == stood[reached]
                if alive:
                    state = json.loads(json.dumps(job.state()))
