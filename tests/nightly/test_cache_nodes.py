"""Two nodes, each a network of its own, that read from one S3 server through caches of their own.

    node 0 --- 10.213.0.0/24 --- proxy --.
      |                                   S3 server          a proxy counts what its node asks for
    10.213.2.0/24 (the job's own)         |
      |                                   |
    node 1 --- 10.213.1.0/24 --- proxy --'

A node is a network namespace, which takes the rights of root. It ends with the process that holds it, and its links
with it, so nothing is left on the machine.
"""

import contextlib
import itertools
import json
import os
import pickle
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import servers
from support.arguments import packed_dataset
from support.caches import MIB
from support.processes import Job, needs_proc
from support.proxy import Proxy

import streampack
from streampack.hashing import as_int64
from streampack.testing import write_shards

RANKS_PER_NODE = 2


def run(*command: str | int) -> None:
    done = subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{command}: {done.stderr}")


def inside(node: int) -> tuple[str, ...]:
    """What runs a command in the namespace of a process."""
    return ("nsenter", f"--target={node}", "--net")


@pytest.fixture
def nodes() -> Iterator[list[int]]:
    """Two processes, each with a network of its own: links to this process's (10.213.N.1), and one to each other."""
    if any(shutil.which(tool) is None for tool in ("ip", "unshare", "nsenter")):
        pytest.skip("needs iproute2 and util-linux")
    mark = f"{os.getpid() % 100_000}"
    with contextlib.ExitStack() as stack:
        holders: list[int] = []
        for _ in range(2):
            holder = stack.enter_context(
                subprocess.Popen(
                    ["unshare", "--net", "sh", "-c", "echo ready; exec sleep 300"],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )
            stack.callback(holder.kill)
            assert holder.stdout is not None
            if holder.stdout.readline() != "ready\n":
                pytest.skip("network namespaces are not permitted here")
            holders.append(holder.pid)
        try:
            for node, pid in enumerate(holders):
                run("ip", "link", "add", f"spt{mark}n{node}", "type", "veth", "peer", "name", "storage", "netns", pid)
                run("ip", "address", "add", f"10.213.{node}.1/24", "dev", f"spt{mark}n{node}")
                run("ip", "link", "set", f"spt{mark}n{node}", "up")
                run(*inside(pid), "ip", "address", "add", f"10.213.{node}.2/24", "dev", "storage")
            peer = ("type", "veth", "peer", "name", "job", "netns", holders[1])
            run(*inside(holders[0]), "ip", "link", "add", "job", *peer)
            for node, pid in enumerate(holders):
                run(*inside(pid), "ip", "address", "add", f"10.213.2.{node + 1}/24", "dev", "job")
                for link in ("lo", "storage", "job"):
                    run(*inside(pid), "ip", "link", "set", link, "up")
        except OSError as error:
            pytest.skip(f"links between networks cannot be made here: {error}")
        yield holders


@needs_proc
def test_two_nodes_have_the_packs_of_one_process_and_ask_for_each_byte_once(nodes: list[int], tmp_path: Path) -> None:
    chooser = random.Random(7)
    texts = ["".join(chooser.choices("abcdefgh \n", k=chooser.randrange(20_000))) for _ in range(400)]
    prefix = f"nodes-{os.getpid()}"
    objects = {
        Path(shard).name: Path(shard).read_bytes()
        for shard in write_shards(tmp_path / "shards", texts, documents_per_shard=80)
    }
    for name, data in objects.items():
        servers.put_s3(f"{prefix}/{name}", data)
    shards = f"s3://{servers.BUCKET}/{prefix}/*.tar"
    arguments: dict[str, Any] = {"seq_len": 2048, "num_lanes": 12, "epochs": 1}
    proxies = [Proxy(upstream=servers.s3().url, host=f"10.213.{node}.1") for node in range(2)]
    place = [
        {"dataset": {"cache_dir": str(tmp_path / f"cache{node}"), "options": servers.s3().at(proxy.url)}}
        for node, proxy in enumerate(proxies)
    ]
    case = {
        "name": "two nodes",
        "dataset": {"data": shards, **arguments},
        "loader": {"batch_size": 8, "num_workers": 1},
        "passes": 3,
        "per_rank": {str(rank): place[rank // RANKS_PER_NODE] for rank in range(2 * RANKS_PER_NODE)},
    }
    (tmp_path / "job.json").write_text(json.dumps([case]))
    try:
        with contextlib.ExitStack() as stack:
            jobs = [
                stack.enter_context(
                    Job(
                        "cases.py",
                        tmp_path / "job.json",
                        tmp_path,
                        ranks=RANKS_PER_NODE,
                        log=tmp_path / f"log{node}",
                        options=(
                            "--nnodes=2",
                            f"--node-rank={node}",
                            "--master-addr=10.213.2.1",
                            "--master-port=29500",
                        ),
                        inside=inside(pid),
                        environment={"GLOO_SOCKET_IFNAME": "job"},
                    )
                )
                for node, pid in enumerate(nodes)
            ]
            for job in jobs:
                assert job.wait(150) == 0, job.output
    finally:
        for proxy in proxies:
            proxy.close()
    outcomes = [pickle.loads((tmp_path / f"rank{rank}.pickle").read_bytes())[0] for rank in range(2 * RANKS_PER_NODE)]
    assert [outcome["errors"] for outcome in outcomes] == [[]] * 4
    dataset = packed_dataset(shards, options=servers.s3().options, **arguments)
    with streampack.PackedDataLoader(dataset, 32, num_workers=0, dp_rank=0, dp_size=1) as alone:
        for number in range(3):
            assert sum(1 for _ in alone) == len(outcomes[0]["passes"][number]["tokens"])
            assert as_int64(sum(outcome["digests"][number] for outcome in outcomes)) == alone.digest()
    total = sum(map(len, objects.values()))
    for node, proxy in enumerate(proxies):
        gets = sorted((get.path, get.first, get.last + 1) for get in proxy.gets)
        assert all(one[0] != two[0] or one[2] <= two[1] for one, two in itertools.pairwise(gets)), "a byte came twice"
        mine = outcomes[node * RANKS_PER_NODE :][:RANKS_PER_NODE]
        came, cached = (sum(outcome["stats"][key] for outcome in mine) for key in ("bytes_read", "cache_bytes"))
        assert came == sum(stop - first for _, first, stop in gets) <= total
        assert came + cached > 1.4 * total  # half of the corpus in each of three passes
        assert cached > MIB
