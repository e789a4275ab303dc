"""`streampack plan`: what it says beforehand is what a run then does."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.runs import begun
from support.thorough import nightly
from typer.testing import CliRunner, Result

from streampack import PackedDataLoader, PackedDataset, StreampackError
from streampack.cli import app
from streampack.config.file import load_config
from streampack.corpus.partition import check_ranks
from streampack.examples.make_data import DATA
from streampack.lanes.budget import LaneNeeds, check_budget
from streampack.lanes.pool import LanePool
from streampack.lanes.position import LaneEnd, LanePosition
from streampack.lanes.stream import LaneStream
from streampack.storage.backends import local
from streampack.testing import write_shards

DEMO = str(Path(__file__).parents[2] / "configs" / "demo.yaml")
MODEL = str(DATA / "devil.model")
NO_SAMPLE = ("--bytes-per-token", "4")
"""Nothing is read: for what has nothing to do with tokens."""


def run(*args: str, **env: str) -> Result:
    return CliRunner(env={"COLUMNS": "100", **env}).invoke(app, ["plan", *args])


def plan(*args: str, exit_code: int = 0) -> dict[str, Any]:
    result = run(*args, "--json")
    assert result.exit_code == exit_code, result.output
    made: dict[str, Any] = json.loads(result.stdout)
    return made


def config(folder: Path, dataset: str, loader: str = "batch_size: 1") -> str:
    path = folder / "run.yaml"
    path.write_text(f"dataset: {{tokenizer: {MODEL!r}, {dataset}}}\nloader: {{{loader}}}\n")
    return str(path)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain tars of uneven size, and a manifest by which they cannot be cut."""
    folder = tmp_path_factory.mktemp("uneven")
    shards = write_shards(folder, ["some words " * 100] * 400, shard_sizes=[200, 20, 60, 120])
    rows = [{"url": Path(shard).name, "size": Path(shard).stat().st_size, "whole": True} for shard in shards]
    (folder / "whole.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


# -- what it says is so ----------------------------------------------------------------------------------------------


def test_the_demo_on_three_ranks() -> None:
    made = plan(DEMO, "--ranks", "3", "--workers", "2", "--batch-size", "4")
    assert made["errors"] == []
    assert made["corpus"] | {"estimated_tokens": 0} == {
        "num_shards": 9,
        "total_bytes": sum(path.stat().st_size for path in DATA.glob("devil-*.tar*")),
        "num_estimated": 0,
        "num_cut": 8,
        "cut_bytes": sum(path.stat().st_size for path in DATA.glob("devil-*.tar")),
        "num_whole": 1,
        "whole_bytes": (DATA / "devil-00008.tar.zst").stat().st_size,
        "num_compressed": 1,
        "largest_compressed_bytes": (DATA / "devil-00008.tar.zst").stat().st_size,
        "estimated_tokens": 0,
    }
    assert made["lanes"]["fitting_ranks"] == [1, 2, 3, 4, 6, 12]
    rank = made["rank"]
    assert (rank["lanes_per_rank"], rank["workers"], rank["lanes_per_worker"]) == (4, 2, 2)
    assert (rank["batch_size"], rank["global_batch"]) == (4, 12)


@pytest.mark.parametrize("shuffle", ["shards", "{block_bytes: 8KiB, window: 4}"])
@pytest.mark.parametrize(("workers", "buffer"), [(3, "200MiB"), *nightly([(0, "64MiB"), (1, "64MiB")])])
def test_the_range_and_the_share_are_those_of_the_pool(
    workers: int, buffer: str, shuffle: str, tmp_path: Path
) -> None:
    data = str(DATA / "devil-*.tar")
    path = config(
        tmp_path, f"data: {data!r}, num_lanes: 24, shuffle: {shuffle}, limits: {{buffer_bytes: {buffer}}}"
    )
    rank = plan(path, "--ranks", "2", "--workers", str(workers))["rank"]
    dataset = PackedDataset(**load_config(path).dataset_arguments()).for_rank(0, 2)
    lanes = range(0, 24, 2)[:: max(workers, 1)]
    pool = LanePool(
        dataset.run(), begun(lanes), budget_bytes=dataset.limits.buffer_bytes // max(workers, 1)
    )
    needs = LaneNeeds.of(dataset.run())
    assert (len(lanes), pool._budget_bytes, pool._share_bytes, pool._range_bytes, needs.windows) == (
        rank["lanes_per_worker"],
        rank["buffer_bytes"],
        rank["share_bytes"],
        rank["range_bytes"],
        rank["shuffle_window_bytes"] + rank["packing_window_bytes"],
    )
    assert (rank["shuffle_window_bytes"] > 0) == (shuffle != "shards")


@pytest.mark.parametrize("shuffle", ["{window: 16}", *nightly(["shards"])])
def test_the_smallest_budget_is_what_the_loader_takes(shuffle: str, tmp_path: Path) -> None:
    data = f"data: {str(DATA / 'devil-*.tar')!r}, num_lanes: 24, shuffle: {shuffle}, packing: best_fit"
    options = ("--workers", "3", *NO_SAMPLE)
    least = plan(config(tmp_path, data), *options)["rank"]["needed_bytes"]

    def errors(buffer_bytes: int) -> list[str]:
        path = config(tmp_path, f"{data}, limits: {{buffer_bytes: {buffer_bytes}}}")
        made: list[str] = plan(path, *options, exit_code=int(buffer_bytes < least))["errors"]
        return made

    assert errors(least) == []
    assert f"{least:,} ({least // 3:,} for each of 3 workers)" in errors(least - 1)[0]


@pytest.mark.parametrize(
    ("shards", "lanes", "buffer", "shuffle"),
    [
        ("", 7, "64MiB", "shards"),  # a range holds a whole piece
        ("", 12, "3648KiB", "shards"),  # sizes of requests do not reach the range before the piece ends
        ("", 2, "224KiB", "shards"),  # many requests of the largest size
        ("@", 3, "1MiB", "shards"),  # whole shards are not searched for a cut
        ("", 2, "64MiB", "{window: 4}"),  # one for each block
        ("@", 3, "64MiB", "{window: 4}"),
    ],
)
def test_an_epoch_takes_as_many_requests_as_it_says(
    shards: str, lanes: int, buffer: str, shuffle: str, uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = f"@{uneven}/whole.jsonl" if shards else f"{uneven}/"
    path = config(
        tmp_path,
        f"data: {spec!r}, num_lanes: {lanes}, shuffle: {shuffle}, "
        f"limits: {{buffer_bytes: {buffer}, document_bytes: 64KiB}}",
    )
    rank = plan(path, "--workers", "1", "--tokens-per-second", "1000", "--bytes-per-token", "5")["rank"]
    requests: list[int] = []
    read = local.LocalFile.read

    def counted(self: local.LocalFile, start: int, stop: int) -> bytes:
        requests.append(stop - start)
        return read(self, start, stop)

    dataset = PackedDataset(**load_config(path).dataset_arguments())
    corpus = dataset.corpus()
    monkeypatch.setattr(local.LocalFile, "read", counted)
    for lane in range(lanes):
        stream = LaneStream(
            dataset.pipeline, corpus, lane, LanePosition(), end_epoch=1, max_range_bytes=rank["range_bytes"]
        )
        while not isinstance(stream.next(), LaneEnd):
            pass
    # The search for a sample after a cut takes a second request where a range holds too few headers.
    assert len(requests) == pytest.approx(corpus.table.total_bytes / rank["request_bytes"], rel=0.1)
    assert len(requests) == pytest.approx(rank["requests_per_epoch"], rel=0.1)
    assert rank["requests_per_s"] * rank["request_bytes"] == pytest.approx(1000 * 5)


def test_the_state_has_the_size_that_it_says() -> None:
    with PackedDataLoader.from_config(DEMO) as loader:
        state = loader.state_dict()
    size = sum(
        len(key) + (value.nbytes if hasattr(value, "nbytes") else len(str(value))) for key, value in state.items()
    )
    assert plan(DEMO)["lanes"]["state_bytes"] == size > 12 * 8 * 10


def test_the_share_of_fillers_is_about_that_of_the_run(uneven: Path, tmp_path: Path) -> None:
    path = config(tmp_path, f"data: '@{uneven}/whole.jsonl', num_lanes: 3, epochs: 1, seq_len: 64, shuffle: false")
    estimated = plan(path)["lanes"]["filler_share"]
    with PackedDataLoader.from_config(path) as loader:
        packs = sum(1 for _ in loader)
        fillers = loader.stats()["fillers"]
    assert fillers > 0.2 * packs
    assert estimated == pytest.approx(fillers / packs, abs=0.03)


def test_epochs_even_lanes_out_and_endless_runs_have_no_fillers(uneven: Path, tmp_path: Path) -> None:
    def share(epochs: str) -> float | None:
        path = config(tmp_path, f"data: '@{uneven}/whole.jsonl', num_lanes: 3, {epochs}")
        found: float | None = plan(path)["lanes"]["filler_share"]
        return found

    one, many = share("epochs: 1"), share("epochs: 60")
    assert one is not None
    assert many is not None
    assert many < one
    assert share("epochs: null") is share("epochs: 1, epoch_end: stop") is None


# -- what cannot be, and what is not wise ----------------------------------------------------------------------------


def test_ranks_that_do_not_fit_are_the_error_of_the_lanes_and_the_rest_is_shown() -> None:
    result = run(DEMO, "--ranks", "5", *NO_SAMPLE)
    with pytest.raises(StreampackError) as refused:
        check_ranks(num_lanes=12, num_ranks=5)
    assert result.exit_code == 1
    assert f"error: {refused.value}\n" in result.stderr
    assert re.search(r"^ranks that fit +1 2 3 4 6 12", result.stdout, re.MULTILINE)
    assert plan(DEMO, "--ranks", "5", *NO_SAMPLE, exit_code=1)["rank"] is None


def test_a_budget_that_is_too_small_is_the_error_of_the_pool(tmp_path: Path) -> None:
    data = f"data: {str(DATA / 'devil-*.tar')!r}, num_lanes: 60, shuffle: shards"
    path = config(tmp_path, f"{data}, limits: {{buffer_bytes: 3MiB}}")
    with pytest.raises(StreampackError) as refused:
        check_budget(budget_bytes=3 * 2**20, num_lanes=60, num_workers=2, needs=LaneNeeds())
    result = run(path, "--workers", "2", *NO_SAMPLE)
    assert (result.exit_code, result.stderr) == (1, f"error: {refused.value}\n")
    enough = config(tmp_path, f"{data}, limits: {{buffer_bytes: 7MiB}}")
    assert run(enough, "--workers", "2", *NO_SAMPLE).exit_code == 0


def test_what_the_loader_refuses_is_an_error(tmp_path: Path) -> None:
    path = config(tmp_path, f"data: {str(DATA / 'devil-*.tar')!r}", loader="format: nonsense")
    assert "nonsense" in run(path).stderr
    assert run(path).exit_code == 1


def test_an_unknown_key_is_the_error_of_the_config(tmp_path: Path) -> None:
    result = run(config(tmp_path, "data: x.tar, sequence_len: 3"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "unknown key `sequence_len` in `dataset`: did you mean `seq_len`?" in result.stderr


@pytest.mark.parametrize(
    ("dataset", "loader", "warning"),
    [
        ("num_lanes: 12, limits: {document_bytes: 1MiB}", "num_workers: 13",
         "13 workers for the 12 lanes of a rank: only 12 will be started"),
        ("num_lanes: 12", "batch_size: 13", "a global batch has 13 packs and there are 12 lanes"),
        ("num_lanes: 12, limits: {buffer_bytes: 2MiB}, seq_len: 32768, shuffle: shards", "num_workers: 1",
         "holds less than two packs besides a range of its shard"),
    ],
)  # fmt: skip
def test_what_is_not_wise_is_a_warning(dataset: str, loader: str, warning: str, uneven: Path, tmp_path: Path) -> None:
    result = run(config(tmp_path, f"data: {f'{uneven}/'!r}, {dataset}", loader))
    assert (result.exit_code, result.stderr.count("\n")) == (0, 1)
    assert result.stderr.startswith("warning: ")
    assert warning in result.stderr


def test_plain_tars_of_any_size_give_equal_lanes_and_no_warning(uneven: Path, tmp_path: Path) -> None:
    made = plan(config(tmp_path, f"data: {f'{uneven}/'!r}, num_lanes: 7, epochs: 3, shuffle: shards"))
    assert made["warnings"] == []
    assert made["lanes"]["max_bytes"] - made["lanes"]["min_bytes"] <= 1
    assert made["lanes"]["filler_share"] < 1e-4


def test_whole_shards_make_lanes_drift_and_leave_some_empty(uneven: Path, tmp_path: Path) -> None:
    def warnings(rest: str) -> str:
        return "\n".join(plan(config(tmp_path, f"data: '@{uneven}/whole.jsonl', {rest}"))["warnings"])

    drift = warnings("num_lanes: 3, shuffle: false")  # 200 documents, 20 + 60, 120; and the archives' ends
    assert "lanes differ in size: the largest has 1.48 times the mean in epoch 0, since 4 shards cannot be" in drift
    assert re.search(r"\d+ of 12 lanes have no shard in epoch 0: there are fewer shards", warnings("num_lanes: 12"))
    assert re.search(r"about \d\d% of the packs are fillers", warnings("num_lanes: 12, epochs: 1"))


def test_an_endless_run_that_would_stop_is_an_error_here_too(uneven: Path, tmp_path: Path) -> None:
    path = config(tmp_path, f"data: '@{uneven}/whole.jsonl', num_lanes: 12, shuffle: false")
    result = run(path)
    assert result.exit_code == 1
    assert re.search(r"error: \d+ of 12 lanes have no shard in epoch 0, nor in any other", result.stderr)
    with PackedDataLoader.from_config(path) as loader, pytest.raises(StreampackError, match="gives no pack"):
        for _ in zip(loader, range(12), strict=False):  # until the turn of such a lane has come
            pass


def test_compressed_shards_warn_of_what_a_resume_costs() -> None:
    size = (DATA / "devil-00008.tar.zst").stat().st_size / 1024
    warning = run(DEMO, "--batch-size", "1").stderr
    assert "1 compressed shard: for each lane inside one, a resume decompresses it from its start" in warning
    assert f"up to {size:.1f} KiB" in warning


# -- how it looks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [48, 200, *nightly([80])])
def test_it_fits_any_terminal(columns: int) -> None:
    result = run(DEMO, "--ranks", "6", COLUMNS=str(columns))
    assert max(map(len, result.stdout.splitlines())) <= columns
    values = dict(re.findall(r"^(\S[\w ]+?) {2,}(~?[\d.,]+(?: [KM]iB| k)?)(?: |/|$)", result.stdout, re.MULTILINE))
    assert values["shards"] == "9"
    assert values["lanes"] == "12"
    assert values["lanes per rank"] == "2"
    assert values["global batch"] == "24"
    assert values["range"] == "8.0 MiB"


def test_the_number_of_ranks_in_question_stands_out() -> None:
    coloured = run(DEMO, "--ranks", "4", FORCE_COLOR="1", TERM="xterm-256color").stdout
    assert "\x1b[1;32m4\x1b[0m" in coloured
