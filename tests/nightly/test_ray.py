"""`--ray` on a real cluster of two nodes on this machine: the output is that of one machine, whatever dies."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streampack.examples.make_data import DATA
from streampack.testing import write_shards

pytestmark = pytest.mark.filterwarnings("ignore")  # ray's own
NUM_SHARDS = 2000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small shards, one of them with a document that is not UTF-8; and a config with two sources."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = (f"document {number} " * (number % 40 + 1) for number in range(4 * NUM_SHARDS))
    shards = write_shards(folder / "small", texts, documents_per_shard=4)
    bad = Path(shards[1234])
    data = bytearray(bad.read_bytes())
    data[data.index(b"document")] = 0xFF
    bad.write_bytes(data)
    write_shards(folder / "code", ["some text " * 20] * 30, documents_per_shard=2)
    write_shards(folder / "web", ["another text " * 20] * 30, documents_per_shard=3)
    (folder / "mix.yaml").write_text(
        f"dataset:\n  sources: {{web: {folder}/web/, code: {folder}/code/}}\n"
        f"  tokenizer: {DATA}/devil.model\n  seq_len: 64\n  num_lanes: 1\n"
    )
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and a second node, with a core each."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    found.add_node(num_cpus=1)
    yield found
    found.shutdown()


def start(*arguments: object, cwd: Path | None = None) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "streampack.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd)


def finish(process: "subprocess.Popen[str]") -> str:
    stdout, stderr = process.communicate(timeout=250)
    assert process.returncode in (0, 1) and stdout, stderr
    return stdout


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def num_done(parts: Path) -> int:
    return len(list(parts.glob("*.json"))) if parts.exists() else 0


def test_verify_on_two_nodes_of_which_one_is_killed_prints_what_one_machine_prints(
    corpus: Path, cluster: Any, tmp_path: Path
) -> None:
    local = finish(start("verify", "small/", "-w", "2", "--json", cwd=corpus))
    assert json.loads(local)["num_problems"] == 1
    parts = tmp_path / "parts"
    [node] = cluster.worker_nodes
    driver = start("verify", "small/", "--json", "--ray", cluster.address, "--parts", parts, cwd=corpus)
    wait_until(lambda: num_done(parts) >= 200 or driver.poll() is not None)
    cluster.remove_node(node, allow_graceful=False)
    assert driver.poll() is None and num_done(parts) < NUM_SHARDS, "a node was killed in the middle"
    assert finish(driver) == local
    assert finish(start("merge", parts, "--json")) == local
    cluster.add_node(num_cpus=1)


def test_a_driver_that_is_killed_goes_on_where_it_was(corpus: Path, cluster: Any, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    asked = ["verify", corpus / "small" / "{01200..01259}.tar", "--json", "--ray", cluster.address, "--parts", parts]
    driver = start(*asked)
    wait_until(lambda: num_done(parts) >= 5 or driver.poll() is not None)
    driver.kill()
    driver.communicate()
    # That of the bad shard is read again.
    before = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.json") if path.name[:5] != "00034"}
    assert len(before) < 59
    assert json.loads(finish(start(*asked)))["num_problems"] == 1
    after = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.json")}
    assert len(after) == 60 and after | before == after, "what was done is not done again"


def test_count_and_manifest_on_a_cluster_are_those_of_one_machine(corpus: Path, cluster: Any, tmp_path: Path) -> None:
    ray = ["--ray", cluster.address]
    counted = ["count", corpus / "mix.yaml", "--json"]
    assert finish(start(*counted, *ray)) == finish(start(*counted, "-w", "1"))
    for name, more in (("here", []), ("there", ray)):
        (tmp_path / name).mkdir()
        finish(start("manifest", corpus / "mix.yaml", "--digests", "-o", tmp_path / name / "{source}.jsonl", *more))
    for source in ("web", "code"):
        here, there = (tmp_path / name / f"{source}.jsonl" for name in ("here", "there"))
        assert here.read_bytes() == there.read_bytes()


def test_an_error_of_the_work_is_told_as_on_one_machine(corpus: Path, cluster: Any) -> None:
    asked = ["count", corpus / "small" / "{01230..01239}.tar", "--ray", cluster.address]
    process = start(*asked)
    _, stderr = process.communicate(timeout=250)
    assert process.returncode == 1
    assert "error: " in stderr and "01234.tar" in stderr and "not UTF-8" in stderr and "Traceback" not in stderr


@pytest.mark.parametrize("shuffle", [[], ["--shuffle"]])
def test_write_on_a_cluster_writes_what_one_machine_writes(
    cluster: Any, tmp_path: Path, shuffle: list[str]
) -> None:
    records = "".join(json.dumps({"text": f"record {number} " * 30}) + "\n" for number in range(2500))
    (tmp_path / "data.jsonl").write_text(records)
    for name, more in (("here", []), ("there", ["--ray", cluster.address])):
        asked = ["write", "data.jsonl", "-o", name, "--shard-bytes", "65536", *shuffle, *more]
        for told in ("use it as @", "nothing was changed"):  # and once more
            assert told in finish(start(*asked, cwd=tmp_path))
    here, there = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if not path.name.startswith(".")}
        for name in ("here", "there")
    )
    assert here == there and len(here) > 10


def test_an_interrupt_ends_the_driver(corpus: Path, cluster: Any, tmp_path: Path) -> None:
    driver = start("verify", corpus / "small", "--ray", cluster.address, "--parts", tmp_path / "parts")
    wait_until(lambda: num_done(tmp_path / "parts") > 0 or driver.poll() is not None)
    os.kill(driver.pid, signal.SIGINT)
    assert driver.wait(timeout=60) != 0
    assert num_done(tmp_path / "parts") < NUM_SHARDS
