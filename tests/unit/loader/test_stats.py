"""The keys of `stats()`: one table, in the code and in the docs."""

from pathlib import Path

from streampack.loader.restarts import WorkerRestarts
from streampack.loader.stats import STATS, LoaderCounts, Scope, stats_of
from streampack.records import Counts

DOCS = Path(__file__).parents[3] / "docs" / "stats.md"


def test_stats_has_the_keys_of_the_table_in_its_order() -> None:
    stats = stats_of(Counts(), LoaderCounts(), None, worker_restarts=WorkerRestarts().number)
    assert list(stats) == [stat.key for stat in STATS]
    assert not any(stats.values())


def test_what_is_in_the_state_is_of_the_run_and_nothing_else_is() -> None:
    assert tuple(stat.key for stat in STATS if stat.scope is Scope.RUN) == Counts._fields


def test_the_docs_have_the_same_table() -> None:
    rows = [line.strip("|").split(" | ") for line in DOCS.read_text("utf-8").splitlines() if line.startswith("| `")]
    found = [tuple(cell.strip().strip("`") for cell in row[:1]) + tuple(map(str.strip, row[1:])) for row in rows]
    assert found == [(stat.key, str(stat.scope), stat.unit, stat.meaning) for stat in STATS]
