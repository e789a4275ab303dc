"""The machine that something is measured on.

In:  names of packages.
Out: plain values for a file of results.
"""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine_of(*packages: str) -> dict[str, Any]:
    """The processor, its cores, how busy they are now, and the versions of Python and of packages."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def _processor() -> str:
    """What /proc/cpuinfo calls it; "" elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
