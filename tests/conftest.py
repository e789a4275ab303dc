"""What tests have in common: hypothesis profiles, an environment without a launcher's variables, a server to cache."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from support.caches import DATA
from support.proxy import Proxy
from xdist.scheduler import LoadFileScheduling

# The hundred processes that tests start compile the package once, also where the environment keeps no bytecode.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# What is made from here to the end of the collection stays: looking for garbage in it takes a third of that time.
gc.disable()
# The GCS emulator speaks no gRPC, which gcsfs would try first for 20 s; Lightning imports it before streampack does.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

# "ci": the same examples on every run, so that a red build is red for everyone. HYPOTHESIS_PROFILE names another one:
# "nightly" is what tests/nightly/test_search.py runs, "search" looks further still.
settings.register_profile(
    "ci",
    max_examples=16,
    derandomize=True,
    deadline=None,  # shared machines pause; pytest's time-out finds what hangs
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.register_profile("nightly", parent=settings.get_profile("ci"), max_examples=500, derandomize=False)
settings.register_profile("search", parent=settings.get_profile("ci"), max_examples=2000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

TOGETHER = {
    # What they share -> files.
    "a server of S3 and one of GCS": [
        *(f"component/test_{name}.py" for name in ("blocks", "conformance", "faults", "storage_credentials", "write")),
        "unit/storage/test_cache.py",
    ],
    "the server of jobs, the trainers' libraries": [
        *("integrations/test_accelerate.py", "integrations/test_lightning.py", "process/test_checkpoint.py"),
        *("process/test_killed_jobs.py", "process/test_mesh.py", "process/test_ranks.py"),
        *("process/test_validation_ranks.py", "process/test_verify_every.py"),
    ],
    "the trainers' libraries": [
        *("integrations/test_formats_trainers.py", "integrations/test_wrappers.py", "unit/chat/test_chat_golden.py"),
    ],
}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test takes its rank from the job that happens to run the tests."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A web server with one object, /a.tar (`caches.DATA`), that does as it is told and counts its requests."""
    running = Proxy(objects={"/a.tar": DATA})
    yield running
    running.close()


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    """A folder for a cache, which is to make it."""
    return tmp_path / "cache"


class _ByShared(LoadFileScheduling):
    """Of `-n`: a file's tests come to one worker, and so do all files that share what takes seconds to start."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return next((name for name, files in TOGETHER.items() if file.removeprefix("tests/") in files), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    return _ByShared(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    """Collections need not look at the libraries and at thousands of tests again, nor forked workers copy them."""
    gc.freeze()
    gc.enable()
