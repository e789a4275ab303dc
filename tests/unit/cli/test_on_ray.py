"""Parts as tasks of a cluster, on one that exists in this process: what is done again, what ends all, what is told.

The real one is in tests/nightly/test_ray.py.
"""

import os
import pickle
import re
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from streampack.cli import app
from streampack.cli.parts.on_ray import run_tasks
from streampack.cli.parts.options import with_address
from streampack.errors import ConfigError, CorruptShardError, LoaderError
from streampack.storage.options import Storage
from streampack.storage.writing import StorageWriter
from streampack.testing import write_shards

ITEMS = {number: 10 * number for number in range(5)}


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__(f"a task failed\n{cause}")
        self.cause = cause


class Ray:
    """As much of the module as is used; `dies` says of a task that has begun whether its process dies."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
    cloudpickle = pickle

    def __init__(self, dies: Callable[[int], bool] = lambda item: False, *, is_there: bool = True) -> None:
        self._dies, self._is_there = dies, is_there
        self._tasks: dict[int, tuple[Any, ...]] = {}
        self.is_shut_down = False
        self.begun: list[int] = []
        self.most_at_once = 0

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: object) -> None:
        if options["address"] == "auto" and not self._is_there:
            raise ConnectionError("Could not find a running Ray instance.\nAnd more.")

    def shutdown(self) -> None:
        self.is_shut_down = True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def put(self, value: object) -> object:
        return value

    def remote(self, **options: object) -> Callable[[Any], Any]:
        def of(task: Any) -> Any:
            def begin(*arguments: Any) -> int:
                number = len(self.begun)
                self.begun.append(arguments[1])
                self._tasks[number] = (task, *arguments)
                self.most_at_once = max(self.most_at_once, len(self._tasks))
                return number

            return SimpleNamespace(remote=begin)

        return of

    def wait(self, references: list[int], *, timeout: float) -> tuple[list[int], list[int]]:
        return references[-1:], references[:-1]  # the last one is done first

    def get(self, reference: int) -> Any:
        task, *arguments = self._tasks.pop(reference)
        if self._dies(arguments[1]):
            raise RayError("the process died")
        try:
            return task(*arguments)
        except Exception as error:
            raise RayTaskError(error) from error


@dataclass(frozen=True)
class Doubling:
    error: Exception | None = None

    def __call__(self, item: int) -> int:
        if self.error is not None:
            raise self.error
        return 2 * item


def run_on(ray: object, monkeypatch: pytest.MonkeyPatch, task: Doubling | None = None, **more: Any) -> dict[int, int]:
    monkeypatch.setitem(sys.modules, "ray", ray)
    options = {"address": "auto", "at_once": None, "has_files": True}
    return dict(run_tasks(task or Doubling(), ITEMS, **options | more))


def test_every_part_is_done_and_no_more_wait_than_the_cluster_soon_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray()
    assert run_on(ray, monkeypatch) == {number: 20 * number for number in ITEMS}
    assert ray.most_at_once == 4 and ray.is_shut_down
    few = Ray()
    assert len(run_on(few, monkeypatch, at_once=1)) == 5 and few.most_at_once == 1


def test_a_part_whose_process_dies_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    left = Counter({10: 19, 30: 1})

    def dies(item: int) -> bool:
        left[item] -= 1
        return left[item] >= 0

    ray = Ray(dies)
    assert run_on(ray, monkeypatch) == {number: 20 * number for number in ITEMS}
    assert len(ray.begun) == 5 + 20


def test_a_part_whose_processes_always_die_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray(lambda item: item == 20)
    with pytest.raises(LoaderError, match="a part ended 20 times without a result, .*: the process died"):
        run_on(ray, monkeypatch)
    assert ray.is_shut_down


@pytest.mark.parametrize(
    ("error", "told", "says"),
    [
        (CorruptShardError("checksum is wrong", url="a.tar"), CorruptShardError, "^a.tar: checksum is wrong$"),
        (ModuleNotFoundError("No module named 'mine'"), ConfigError, "cannot import .* named 'mine'; install"),
        (ZeroDivisionError("division by zero"), LoaderError, "a part failed on the cluster: .*\ndivision by zero"),
    ],
)
def test_an_error_of_the_work_ends_all_and_is_told_as_here(
    monkeypatch: pytest.MonkeyPatch, error: Exception, told: type[Exception], says: str
) -> None:
    ray = Ray()
    with pytest.raises(told, match=says):
        run_on(ray, monkeypatch, Doubling(error))
    assert ray.is_shut_down


def test_without_ray_or_a_cluster_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody_listens = taken.getsockname()[1]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"--ray auto: Could not find a running Ray instance\. Start a cluster"):
        run_on(Ray(is_there=False), monkeypatch)
    for address in (f"127.0.0.1:{nobody_listens}", f"ray://127.0.0.1:{nobody_listens}"):
        with pytest.raises(ConfigError, match=f"--ray {address}: .*refused. Start a cluster"):
            run_on(Ray(), monkeypatch, address=address)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{nobody_listens}")
    with pytest.raises(ConfigError, match="refused"):
        run_on(Ray(), monkeypatch)
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(ConfigError, match=r"pip install 'streampack\[ray\]', here and on all nodes"):
        run_on(None, monkeypatch)


@pytest.mark.parametrize(
    ("given", "as_taken"),
    [
        (["verify", "in/", "--ray"], ["verify", "in/", "--ray=auto"]),
        (["verify", "--ray", "--parts", "p", "in/"], ["verify", "--ray=auto", "--parts", "p", "in/"]),
        (["verify", "--ray", "--", "in/"], ["verify", "--ray=auto", "--", "in/"]),
        (["verify", "--ray=", "in/"], ["verify", "--ray=auto", "in/"]),
        (["verify", "in/", "--ray", ""], ["verify", "in/", "--ray=auto"]),
        (["verify", "--ray", "auto", "in/"], ["verify", "--ray=auto", "in/"]),
        (["verify", "--ray", "node-7:6379", "in/"], ["verify", "--ray=node-7:6379", "in/"]),
        (["verify", "--ray=[::1]:6379", "in/"], ["verify", "--ray=[::1]:6379", "in/"]),
        (["verify", "in/", "--ray", "ray://head:10001"], ["verify", "in/", "--ray=ray://head:10001"]),
        (["verify", "--", "--ray", "in/"], ["verify", "--", "--ray", "in/"]),
    ],
)
def test_ray_without_an_address_is_the_cluster_of_the_environment(given: list[str], as_taken: list[str]) -> None:
    assert with_address(given) == as_taken


@pytest.mark.parametrize("shards", ["corpus/", "@manifest.jsonl", "s3://b/{0..9}.tar", "run.yaml", "C", "in:x"])
def test_what_may_be_a_shard_is_no_address_of_ray(shards: str) -> None:
    for given in (["--ray", shards], [f"--ray={shards}"]):
        with pytest.raises(typer.BadParameter, match=f"{re.escape(shards)} is no address of a Ray cluster: "):
            with_address(["verify", *given, "in/"])


def test_the_same_command_reads_again_what_has_changed_and_what_had_problems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun: list[int] = []

    def run_in_place(task: Any, items: dict[int, Any], **_: object) -> Iterator[tuple[int, Any]]:
        begun.extend(items)
        yield from [(index, task(item)) for index, item in items.items()]

    monkeypatch.setattr("streampack.cli.parts.dispatch.run_tasks", run_in_place)
    urls = write_shards(tmp_path / "in", [f"document {number} " for number in range(6)], documents_per_shard=1)
    asked = ["verify", str(tmp_path / "in"), "--parts", str(tmp_path / "parts"), "--ray"]
    seen = []
    for changed, byte in ((1, b"\xff"), (4, b"D"), (1, b"d")):
        data = Path(urls[changed]).read_bytes()
        at = data.index(b"ocument") - 1
        Path(urls[changed]).write_bytes(data[:at] + byte + data[at + 1 :])
        seen.append((CliRunner().invoke(app, asked).exit_code, begun[:]))
        begun.clear()
    assert seen == [(1, [0, 1, 2, 3, 4, 5]), (1, [1, 4]), (0, [1])]


def test_write_gives_all_nodes_the_scratch_folder_of_this_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With remote data its tasks stay in the folder in which their node began."""
    given: list[Any] = []

    def run_in_place(task: Any, items: dict[int, int], **_: object) -> Iterator[tuple[int, bool]]:
        given.append(task.request.scratch)
        (tmp_path / "node").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "node")
        yield from [(index, task(item)) for index, item in items.items()]

    monkeypatch.setattr("streampack.cli.write.run_tasks", run_in_place)
    monkeypatch.chdir(tmp_path)
    url = f"memory://{tmp_path.name}"
    StorageWriter(Storage()).write(f"{url}/in/a.jsonl", b'{"text": "a"}\n')
    asked = ["write", f"{url}/in/a.jsonl", "-o", f"{url}/out", "--scratch", "mine", "--ray"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert {str(scratch) for scratch in given} == {str(tmp_path / "mine")}
    assert list((tmp_path / "node").iterdir()) == []


def test_nodes_of_another_release_or_without_the_folder_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from streampack.cli.parts import on_ray

    here = Path.cwd()
    driver = on_ray._Driver("9.9", None, ())
    with pytest.raises(ConfigError, match=f"node {os.uname().nodename} has streampack .*, and this machine 9.9"):
        on_ray._do((pickle.dumps(Doubling()), driver), ITEMS[0])
    driver = on_ray._Driver(on_ray.streampack.__version__, str(tmp_path / "nowhere"), ())
    with pytest.raises(ConfigError, match=f"has no folder {tmp_path}/nowhere, and there are files"):
        on_ray._do((pickle.dumps(Doubling()), driver), ITEMS[0])
    assert Path.cwd() == here
