"""The keys of `stats()`: one table, in the code and in the docs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from streampack.loader.processes import Forks
from streampack.loader.restarts import WorkerRestarts
from streampack.loader.stats import LoaderCounts, added_up, no_stats, numbers_of
from streampack.metrics.clock import STAGES
from streampack.metrics.stats import SOURCE_STATS, STATS, SourceStats, Stats
from streampack.records import Counts, StorageUse

DOCS = Path(__file__).parents[3] / "docs" / "stats.md"


def test_stats_has_the_keys_of_the_table_in_its_order() -> None:
    stats = numbers_of(Counts(), LoaderCounts(), None, WorkerRestarts(Forks()))
    assert list(stats) == [stat.key for stat in STATS]
    assert not any(stats.values())


def test_numbers_come_from_the_record_that_the_table_names() -> None:
    counts = Counts(*range(1, len(Counts._fields) + 1))
    use = StorageUse(101, 102, 103, 104.5, 105, 106)
    loader = LoaderCounts(batches=201, left_out_packs=202, seconds_waited=203.5, engine_differences=204, storage=use)
    stats = numbers_of(counts, loader, None, WorkerRestarts(Forks()))
    assert list(stats.values()) == [*counts, 201, 202, 0, 203.5, 204, 101, 102, 103, 104.5, 105, 106]


def test_what_is_in_the_state_is_of_the_run_and_nothing_else_is() -> None:
    assert tuple(stat.key for stat in STATS if stat.of == "run") == Counts._fields


def test_the_docs_have_the_same_table() -> None:
    rows = [line.strip("|").split(" | ") for line in DOCS.read_text("utf-8").splitlines() if line.startswith("| `")]
    found = [tuple(cell.strip().strip("`") for cell in row[:1]) + tuple(map(str.strip, row[1:])) for row in rows]
    stages = slice(len(STATS), len(STATS) + len(STAGES))
    assert [row[0] for row in found[stages]] == list(STAGES)
    del found[stages]
    assert found == [tuple(stat) for stat in (*STATS, *SOURCE_STATS)]


def test_the_types_have_the_keys_of_the_tables() -> None:
    tables = {"stages", "source_seconds", "limited_by", "sources"}
    assert set(Stats.__annotations__) == {*tables, *(stat.key for stat in STATS)}
    assert set(SourceStats.__annotations__) == {stat.key for stat in SOURCE_STATS}


def ranks(*others: Stats) -> Any:
    """Exchanges with ranks that have these numbers."""
    return SimpleNamespace(
        topology=SimpleNamespace(size=1 + len(others)),
        sums=lambda numbers, _: [sum(each) for each in zip(numbers, *map(sent_by, others), strict=True)],
    )


def sent_by(rank: Stats) -> list[float]:
    sent: list[float] = []
    alone: Any = SimpleNamespace(topology=SimpleNamespace(size=1), sums=lambda numbers, _: sent.extend(numbers) or sent)
    added_up(rank, alone, "stats")
    return sent


def stats_with(**values: Any) -> Stats:
    made: Any = no_stats(["a", "b"])
    return made | values


def test_over_all_ranks_counts_and_seconds_are_added_up_and_epochs_are_the_mean() -> None:
    one = {"packs": 6, "exhausted_lanes": 2, "epochs": 1.5, "share": 0.75, "share_so_far": 0.6}
    other = {"packs": 4, "exhausted_lanes": 0, "epochs": 0.5, "share": 0.25, "share_so_far": 0.4}
    mine = stats_with(tokens=7)
    for name, given in (("a", one), ("b", other)):
        mine["sources"][name].update(given)  # type: ignore[typeddict-item]
    mine["stages"]["pack"]["busy"] = 2.5
    mine["source_seconds"]["b"]["blocked"] = 1.5
    all_ranks = added_up(mine, ranks(mine, mine), "stats")
    assert (all_ranks["tokens"], all_ranks["stages"]["pack"]) == (21, {"busy": 7.5, "blocked": 0})
    assert all_ranks["source_seconds"] == {"a": {"busy": 0, "blocked": 0}, "b": {"busy": 0, "blocked": 4.5}}
    found = all_ranks["sources"]
    assert found["a"] == {**mine["sources"]["a"], **one, "packs": 18, "exhausted_lanes": 6}
    assert found["b"] == {**mine["sources"]["b"], **other, "packs": 12}
    assert list(found["a"]) == list(mine["sources"]["a"])
    assert list(all_ranks) == list(mine)


def test_what_limits_all_ranks_is_what_limits_most_of_those_that_wait_for_their_data() -> None:
    trainer, tar, storage = (stats_with(limited_by=stage) for stage in ("trainer", "tar", "storage"))
    nothing = stats_with()
    for these, limit in (
        ([nothing, nothing], None),
        ([nothing, trainer], "trainer"),
        ([trainer, trainer, trainer, tar], "tar"),
        ([tar, storage, trainer, storage], "storage"),
    ):
        assert added_up(these[0], ranks(*these[1:]), "stats")["limited_by"] == limit


def test_before_the_run_begins_there_are_the_same_keys() -> None:
    stats = no_stats(["a", "b"])
    assert list(stats) == [*(stat.key for stat in STATS), "stages", "source_seconds", "limited_by", "sources"]
    assert list(stats["stages"].items()) == [(stage, {"busy": 0, "blocked": 0}) for stage in STAGES]
    assert list(stats["sources"]["b"]) == [stat.key for stat in SOURCE_STATS]
