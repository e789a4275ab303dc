"""Parts of a command's work as tasks of a Ray cluster.

In:  what is done for a part; the parts that are left; where the cluster is.
Out: what each part has found, as plain values, in the order in which they are done.
Invariants: a part whose process or node dies is done again, elsewhere; an error of the work itself ends all of it.
Nothing is left running.
"""

import contextlib
import functools
import os
import pickle
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import streampack
from streampack.cli.console import print_warning
from streampack.errors import ConfigError, LoaderError, StreampackError

_Item = TypeVar("_Item")
_MOST_TRIES = 20
"""Of a part, before its data are taken to be what kills its processes, and not the cluster."""
_CONNECT_S = 20
_PENDING = 2
"""Parts that are submitted for each core of the cluster, so that a core that is done finds the next one waiting."""


class _Driver(NamedTuple):
    """What the machine of this command has; the tasks must find the same on their nodes."""

    release: str
    folder: str | None
    """The working directory, where there are files; None: all is remote."""
    modules: tuple[str, ...]
    """Folders of modules: a transform is imported by its name."""


def run_tasks(
    task: Callable[[_Item], Any], items: Mapping[int, _Item], *, address: str, at_once: int | None, has_files: bool
) -> Iterator[tuple[int, Any]]:  # Any: JSON
    """The number of each item and what the task gives for it.

    Args:
        task: is pickled once.
        items: what each call of it gets.
        address: as `ray.init` takes it; "auto": the cluster of RAY_ADDRESS, or of this machine.
        at_once: tasks that the cluster has at most; None: as many as it has cores, and some that wait.
        has_files: whether files are read or written, which all nodes must reach.

    Raises:
        ConfigError: Ray is not installed, there is no cluster, or its nodes lack what the work needs.
        LoaderError: the processes of one item die again and again.
    """
    if not items:
        return
    with _connected(address) as ray:
        folder = str(Path.cwd())
        modules = tuple(each or folder for each in sys.path)
        driver = _Driver(streampack.__version__, folder if has_files else None, modules)
        remote = ray.remote(num_cpus=1, max_retries=0)(_do)  # tried again below, so that there is an end to it
        shared = ray.put((ray.cloudpickle.dumps(task), driver))
        left, deaths = list(items)[::-1], Counter[int]()
        running: dict[Any, int] = {}
        is_told = False
        while left or running:
            cores = int(ray.cluster_resources().get("CPU", 0))
            if not cores and not is_told:
                print_warning("the Ray cluster has no cores now; waiting for nodes")
                is_told = True
            most = at_once or _PENDING * max(cores, 1)
            while left and len(running) < most:
                index = left.pop()
                running[remote.remote(shared, items[index])] = index
            done, _ = ray.wait(list(running), timeout=1.0)
            for reference in done:
                index = running.pop(reference)
                try:
                    found = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise _error_of(error) from error
                except ray.exceptions.RayError as error:
                    deaths[index] += 1
                    if deaths[index] >= _MOST_TRIES:
                        raise LoaderError(
                            f"a part ended {_MOST_TRIES} times without a result, as its process or its node died: "
                            f"{_first_line(error)}"
                        ) from error
                    left.append(index)
                else:
                    yield index, found


def _do(shared: tuple[bytes, _Driver], item: Any) -> Any:  # Any: what the task takes, and JSON
    """In a process of the cluster: do one part."""
    pickled, driver = shared
    node = socket.gethostname()
    if streampack.__version__ != driver.release:
        raise ConfigError(
            f"node {node} has streampack {streampack.__version__}, and this machine {driver.release}: install one "
            "release everywhere"
        )
    if driver.folder is not None:
        try:
            os.chdir(driver.folder)
        except OSError:
            raise ConfigError(
                f"node {node} has no folder {driver.folder}, and there are files to read or write: put them where all "
                "nodes reach them, or give URLs"
            ) from None
    sys.path += [each for each in driver.modules if each not in sys.path]
    return _loaded(pickled)(item)


@functools.lru_cache(maxsize=1)
def _loaded(pickled: bytes) -> Callable[[Any], Any]:
    """The task, made once in a process: a tokenizer may take a second."""
    found: Callable[[Any], Any] = pickle.loads(pickled)  # noqa: S301 - the driver's own
    return found


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:  # Any: the module has no types that hold from release to release
    """Ray, connected to the cluster within the block; what it prints of processes that die goes to stderr."""
    try:
        import ray
    except ImportError:
        raise ConfigError("--ray needs Ray: pip install 'streampack[ray]', here and on all nodes") from None
    was_connected = ray.is_initialized()
    if not was_connected:
        try:
            _check_address(os.environ.get("RAY_ADDRESS", "") if address == "auto" else address)
            ray.init(address=address, log_to_driver=False, logging_level="warning")
        except (OSError, ValueError, RuntimeError) as error:
            what = _first_line(error).rstrip(".")
            raise ConfigError(
                f"--ray {address}: {what}. Start a cluster (ray start --head), or give its address"
            ) from error
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield ray
    finally:
        if not was_connected:
            ray.shutdown()  # ends the tasks that still run


def _check_address(address: str) -> None:
    """Raise `OSError` where nobody listens: Ray would try for many minutes."""
    host, separator, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if separator and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()


def _error_of(error: Any) -> StreampackError:  # Any: ray's
    """The error that a task has raised, as it would be raised in this process."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, StreampackError):
        return type(cause)(str(cause))
    if isinstance(cause, ModuleNotFoundError) or "No module named" in str(error):
        return ConfigError(
            f"a node cannot import what the work needs: {_first_line(cause or error)}; install streampack, and the "
            "modules of your own that the config names, on all nodes"
        )
    return LoaderError(f"a part failed on the cluster: {error}")


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0]
