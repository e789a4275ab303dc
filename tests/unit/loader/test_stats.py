"""The keys of `stats()`: one table, in the code and in the docs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from streampack.loader.processes import Forks
from streampack.loader.restarts import WorkerRestarts
from streampack.loader.stats import SOURCE_STATS, STATS, LoaderCounts, added_up, no_stats, stats_of
from streampack.records import Counts, StorageUse

DOCS = Path(__file__).parents[3] / "docs" / "stats.md"


def test_stats_has_the_keys_of_the_table_in_its_order() -> None:
    stats = stats_of(Counts(), LoaderCounts(), None, WorkerRestarts(Forks()))
    assert list(stats) == [stat.key for stat in STATS]
    assert not any(stats.values())


def test_numbers_come_from_the_record_that_the_table_names() -> None:
    counts = Counts(*range(1, len(Counts._fields) + 1))
    use = StorageUse(101, 102, 103, 104.5, 105, 106)
    loader = LoaderCounts(batches=201, left_out_packs=202, seconds_waited=203.5, engine_differences=204, storage=use)
    stats = stats_of(counts, loader, None, WorkerRestarts(Forks()))
    assert list(stats.values()) == [*counts, 201, 202, 0, 203.5, 204, 101, 102, 103, 104.5, 105, 106]


def test_what_is_in_the_state_is_of_the_run_and_nothing_else_is() -> None:
    assert tuple(stat.key for stat in STATS if stat.source == "run") == Counts._fields


def test_the_docs_have_the_same_table() -> None:
    rows = [line.strip("|").split(" | ") for line in DOCS.read_text("utf-8").splitlines() if line.startswith("| `")]
    found = [tuple(cell.strip().strip("`") for cell in row[:1]) + tuple(map(str.strip, row[1:])) for row in rows]
    every = [*STATS, *SOURCE_STATS]
    of = ["run" if stat.source == "run" else "loader" for stat in every]
    assert found == [(stat.key, whose, stat.unit, stat.meaning) for stat, whose in zip(every, of, strict=True)]


def test_over_all_ranks_counts_are_added_up_and_epochs_are_the_mean() -> None:
    one = {"packs": 6, "exhausted_lanes": 2, "epochs": 1.5, "share": 0.75, "share_so_far": 0.6}
    other = {"packs": 4, "exhausted_lanes": 0, "epochs": 0.5, "share": 0.25, "share_so_far": 0.4}
    mine = no_stats(["a", "b"])
    for name, given in (("a", one), ("b", other)):
        mine["sources"][name] |= given
    exchanges: Any = SimpleNamespace(
        topology=SimpleNamespace(size=3), sums=lambda numbers, _: [3 * number for number in numbers]
    )
    found = added_up(mine, exchanges, "stats")["sources"]
    assert found["a"] == {**mine["sources"]["a"], **one, "packs": 18, "exhausted_lanes": 6}
    assert found["b"] == {**mine["sources"]["b"], **other, "packs": 12}


def test_before_the_run_begins_there_are_the_same_keys() -> None:
    *flat, sources = no_stats(["a", "b"])
    assert (flat, sources) == ([stat.key for stat in STATS], "sources")
    assert list(no_stats(["a", "b"])["sources"]["b"]) == [stat.key for stat in SOURCE_STATS]
