"""Messages of several sources and stages: dealt from any number of workers, and gone on with after a restart."""

import dataclasses
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from support.jobs import write_tar
from support.runs import begun

from streampack import PackedDataset, Source, Stage
from streampack.lanes.digest import pack_digest
from streampack.lanes.pool import LanePool
from streampack.lanes.position import LanePack
from streampack.lanes.run import Run
from streampack.loader.dealing import Item, deal
from streampack.loader.messages import Assignment, Message, WorkerStream
from streampack.loader.restarts import _Received
from streampack.loader.stretches import Counting, Stretches
from streampack.storage import pacing
from streampack.testing import ByteTokenizer

LANES, PACKS = 5, 110


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("mix")
    sources = {}
    for name, count in (("web", 80), ("code", 40), ("books", 9)):
        texts = [name[0] * (3 + number * 7 % 23) for number in range(count)]
        members = [(f"{number}.txt", text.encode()) for number, text in enumerate(texts)]
        shard = str(write_tar(folder / f"{name}.tar", members))
        sources[name] = Source(shard, max_epochs=1 if name == "books" else None)
    stages = [
        Stage(weights={"web": 2, "code": 1, "books": 1}),
        Stage(at_packs=30, weights={"code": 1}),
        Stage(at_packs=50, weights={"web": 1, "books": 1}, seq_len=24),
        Stage(at_packs=75, weights={"books": 1}),
        Stage(at_packs=90, weights={"web": 1}, seq_len=16),
    ]
    dataset = PackedDataset(sources, ByteTokenizer(), 16, num_lanes=LANES, stages=stages, shuffle="shards")
    return dataset.run()


def assignment(run: Run, **changes: Any) -> Assignment:
    arguments: dict[str, Any] = {
        "run": run,
        "lanes": range(LANES),
        "starts": list(begun(range(LANES), 3).values()),
        "first_round": 0,
        "first_slots": 1,
        "max_slots": 7,
        "max_rows": 100,
        "budget_bytes": 10**8,
        "with_provenance": False,
    }
    return Assignment(**{**arguments, **changes})


def in_turn(streams: list[Iterator[Message]]) -> Iterator[Message]:
    while True:
        for stream in streams:
            yield next(stream)


def plain(item: Item) -> tuple[Any, ...]:
    if item.pack is None:
        return item.round, item.lane_index, item.ends, item.waits
    message, number = item.pack.message, item.pack.number
    rows = message.block.tokens[number].tolist()
    return item.round, item.lane_index, item.ends, item.pack.source, rows, message.changes[number].tolist()


@pytest.fixture(scope="module")
def wanted(run: Run) -> list[tuple[Any, ...]]:
    pool = LanePool(run, begun(range(LANES), 3), budget_bytes=10**8)
    found: list[tuple[Any, ...]] = []
    for number in range(PACKS):
        pack = pool.take(number % LANES)
        place = number // LANES, number % LANES, pack.ends
        if isinstance(pack, LanePack):
            seq_len = run.schedule.stage_of(number).seq_len
            row = pack.rows.tokens.tolist()
            digest = pack_digest(pack.rows, number, seq_len=seq_len, pad_id=0)
            changes = [*pack.cursor, digest, *pack.counts]
            found.append((*place, pack.source, row + [0] * (seq_len - len(row)), changes))
        else:
            found.append((*place, pack.waits))
    assert {len(each) for each in found} == {4, 6}, "there are lanes without a pack in some rounds"
    assert {each[3] for each in found if len(each) == 4} == {True}, "a later stage has one for them"
    return found


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_any_number_of_workers_gives_the_packs_of_the_lanes(
    run: Run, wanted: list[tuple[Any, ...]], workers: int
) -> None:
    streams = [iter(WorkerStream(assignment(run), worker=worker, num_workers=workers)) for worker in range(workers)]
    items = deal(in_turn(streams), num_lanes=LANES, num_workers=workers, first_round=0)
    assert [plain(item) for item in islice(items, PACKS)] == wanted


def test_a_message_has_packs_of_one_length_and_as_many_as_fit(run: Run) -> None:
    messages = list(islice(WorkerStream(assignment(run)), 28))
    lengths = [message.block.tokens.shape[1] for message in messages]
    assert sorted(set(lengths)) == [16, 24]
    assert max(len(message.slots) for message in messages) == 100 // 16
    assert max(len(message.slots) for message, length in zip(messages, lengths, strict=True) if length == 24) == 4
    large = list(islice(WorkerStream(assignment(run, max_rows=1)), 3))
    assert [len(message.slots) for message in large] == [1, 1, 1]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_go_on_after_the_messages_that_came(run: Run, wanted: list[tuple[Any, ...]], workers: int) -> None:
    """Restarted after each message, the other workers after as many as they had sent by then."""
    to_do = assignment(run)

    def messages() -> Iterator[Message]:
        received = [_Received(to_do, worker, workers) for worker in range(workers)]
        while True:
            for worker in range(workers):
                starts = list(to_do.starts)
                for other, each in enumerate(received):
                    starts[other::workers] = each.starts()
                again = dataclasses.replace(to_do, starts=starts, sent=tuple(each.messages for each in received))
                message = next(iter(WorkerStream(again, worker=worker, num_workers=workers)))
                received[worker].add(message)
                yield message

    items = deal(messages(), num_lanes=LANES, num_workers=workers, first_round=0)
    assert [plain(item) for item in islice(items, PACKS)] == wanted


def test_a_process_begins_among_the_workers_of_all_ranks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the first requests of a job are spread in proportion to its processes."""
    found: list[int] = []
    monkeypatch.setattr(pacing, "begin_among", found.append)
    starts = list(begun(range(LANES), 3).values())
    next(assignment(run).messages())
    next(assignment(run, lanes=[2], starts=starts[2:3]).messages())
    next(assignment(run, lanes=[2], starts=starts[2:3]).messages(2, 3))
    list(Counting(run=run, num_ranks=7, lanes=[], step=1, budget_bytes=10**8).messages(1, 2))
    list(Stretches(run=run, num_ranks=7, stretches=[], budget_bytes=10**8, with_provenance=False).messages())
    assert found == [1, LANES, 3 * LANES, 14, 7]
