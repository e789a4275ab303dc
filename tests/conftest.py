"""What tests have in common: hypothesis profiles, an environment without a launcher's variables, a server to cache."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support.caches import DATA
from support.proxy import Proxy

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


def pytest_collection_finish() -> None:
    """Collections need not look at the libraries and at thousands of tests again, nor forked workers copy them."""
    gc.freeze()
    gc.enable()
