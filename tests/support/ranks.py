"""What jobs of several ranks hand out, and what one process says that they must: programs/cases.py and its outcomes."""

import json
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import streampack
from streampack.hashing import as_int64
from streampack.state.joining import to_json
from streampack.testing import write_shards
from support.arguments import packed_dataset
from support.processes import run_program
from support.reference import Pass, lane_packs, prose

Dataset = dict[str, Any]
"""Arguments of a PackedDataset but for the tokenizer."""
Outcome = dict[str, Any]
"""What one rank did in a case: see programs/cases.py."""


def write_corpora(folder: Path) -> dict[str, Dataset]:
    """Small corpora, by name."""
    even = write_shards(folder / "even", prose(1, 70), documents_per_shard=19)
    small = write_shards(folder / "small", prose(4, 24), documents_per_shard=8)
    sizes = [12, 2, 3, 5, 1, 1, 2]
    uneven = write_shards(folder / "uneven", prose(2, sum(sizes)), shard_sizes=sizes)
    manifest = folder / "uneven" / "manifest.jsonl"
    manifest.write_text("".join(json.dumps({"url": url, "whole": True}) + "\n" for url in uneven))
    few = write_shards(folder / "few", prose(3, 40), shard_sizes=[24, 16], compression="gz")
    other_bytes = []
    for url in even:  # a copy in which one letter of some documents is another one
        (folder / "other bytes").mkdir(exist_ok=True)
        copy = folder / "other bytes" / Path(url).name
        copy.write_bytes(Path(url).read_bytes().replace(b"boundary", b"boundery").replace(b"tokens", b"tokans"))
        other_bytes.append(str(copy))
    return {
        "even": {"data": even, "seq_len": 32, "num_lanes": 12},
        "other bytes": {"data": other_bytes, "seq_len": 32, "num_lanes": 12},
        # Whole shards: lanes of very different length.
        "uneven": {"data": f"@{manifest}", "seq_len": 32, "num_lanes": 4},
        # Two shards for four lanes, at 0 and behind the middle: lanes 1 and 3 have nothing, so an odd rank neither.
        "few": {"data": few, "seq_len": 64, "num_lanes": 4, "shuffle": False},
        "small": {"data": small, "seq_len": 32, "num_lanes": 4, "shuffle": "shards"},  # too few blocks for all lanes
        "next_fit": {"data": even, "seq_len": 64, "num_lanes": 8, "packing": "next_fit", "boundary": "trim"},
    }


@dataclass(frozen=True, kw_only=True)
class Finite:
    corpus: str = "uneven"
    num_workers: int = 0
    batch_size: int = 3
    epochs: int = 1
    passes: int = 2
    pad: bool = True
    drop_last: bool = False
    resume_pass: int = 0
    """Go on in this pass from a state of one process ..."""
    resume_part: tuple[int, int] | None = None
    """... (a, b): a rounds before the pass's end (negative) or behind its start, and b packs; None: begin afresh."""
    extra: dict[str, Any] = field(default_factory=dict)


class References:
    """What is expected, worked out in this process, each thing once."""

    def __init__(self, corpora: dict[str, Dataset]) -> None:
        self.corpora = corpora
        self.lanes = cache(self._lanes)

    def _lanes(self, corpus: str, epoch: int, epochs: int | None, limit: int | None = None) -> list[Any]:
        return lane_packs({**self.corpora[corpus], "epochs": epochs}, epoch=epoch, limit=limit)

    def loader(self, corpus: str, batch_size: int, **arguments: Any) -> streampack.PackedDataLoader:
        """The same run in one process."""
        drop_last = arguments.pop("drop_last", False)
        dataset = packed_dataset(**self.corpora[corpus], **arguments)
        return streampack.PackedDataLoader(
            dataset, batch_size, num_workers=0, dp_rank=0, dp_size=1, drop_last=drop_last
        )

    def passes(self, case: Finite) -> Iterator[Pass]:
        """The passes from the first one on, one behind the other without `drop_last`."""
        start = 0
        for number in range(case.resume_pass + 1):
            current = self.one_pass(case, number, start)
            yield current
            start = current.end

    def one_pass(self, case: Finite, number: int, start: int) -> Pass:
        lanes = self.lanes(case.corpus, number * case.epochs, case.epochs)
        return Pass(lanes=lanes, seq_len=self.corpora[case.corpus]["seq_len"], start=start, pad=case.pad)

    def begin(self, case: Finite) -> tuple[Pass, int, str | None]:
        """The pass that a case begins in, the global pack that it begins with, and the state to begin from."""
        *before, current = self.passes(case)
        if case.resume_part is None:
            return current, current.start, None
        rounds, packs = case.resume_part
        num_lanes = len(current.lanes)
        begin = (current.start if rounds > 0 else current.end) + rounds * num_lanes + packs
        assert current.start < begin <= current.end, (current.start, begin, current.end)
        arguments = {"epochs": case.epochs, "epoch_end": "pad" if case.pad else "stop"}
        with self.loader(case.corpus, 1, **arguments) as loader:
            for _ in before:
                assert sum(1 for _ in loader) > 0
            iterator = iter(loader)
            for _ in range(begin - current.start):
                next(iterator)
            return current, begin, to_json(loader.state_dict())

    def state_after(self, packs: int) -> str:
        """The state, as JSON, of one process that has handed out so many packs of "even"."""
        with self.loader("even", 1) as loader:
            iterator = iter(loader)
            for _ in range(packs):
                next(iterator)
            return to_json(loader.state_dict())


class Ran:
    """A job that is over: what each rank did in each case."""

    def __init__(self, num_ranks: int, outcomes: dict[str, list[Outcome]], folder: Path) -> None:
        self.num_ranks = num_ranks
        self.outcomes = outcomes
        self.folder = folder

    def __getitem__(self, name: str) -> list[Outcome]:
        """The outcomes by rank of a case that went well."""
        outcomes = self.outcomes[name]
        errors = [outcome["errors"] for outcome in outcomes]
        assert not any(errors), f"{name!r} failed: {errors}"
        return outcomes

    def errors(self, name: str) -> list[list[str]]:
        return [outcome["errors"] for outcome in self.outcomes[name]]

    def seen(self, name: str) -> dict[str, set[int]]:
        """Which processes asked the watched storage of a case for what."""
        found: dict[str, set[int]] = {"list": set(), "read": set()}
        for line in (self.folder / name).read_text().splitlines():
            pid, operation = line.split()
            found["read" if operation == "read" else "list"].add(int(pid))
        return found


def run_job(cases: Iterable[dict[str, Any]], num_ranks: int, folder: Path, **how: Any) -> Ran:
    """The outcomes of cases; `how` as `run_program` takes it."""
    cases = list(cases)
    (folder / "job.json").write_text(json.dumps(cases))
    run_program("cases.py", folder / "job.json", folder, ranks=num_ranks, log=folder / "log", **how)
    by_rank = [pickle.loads((folder / f"rank{rank}.pickle").read_bytes()) for rank in range(num_ranks)]
    outcomes = {case["name"]: list(of_ranks) for case, *of_ranks in zip(cases, *by_rank, strict=True)}
    return Ran(num_ranks, outcomes, folder)


def check_sum(got: list[int], expected: int) -> None:
    assert as_int64(sum(got)) == expected
