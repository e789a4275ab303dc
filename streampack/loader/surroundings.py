"""What a new interpreter is given of the trainer's process, so that modules are the same and do the same there.

In:    the trainer's process, when its workers are first started; later, in the new process, what it has imported.
Out:   a command, an environment, a folder, and values to be set; an error where a module is not the one of the trainer.
Never: '' or another relative name in `sys.path`: it would stand for another folder after `os.chdir`. A random seed of
       hash(): a set of strings has the same order in each worker, and after each restart.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from multiprocessing import spawn
from pathlib import Path
from typing import Any, NamedTuple

from streampack.errors import ConfigError

_log = logging.getLogger(__name__)

_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
"""A library that starts threads when it is imported could not be forked; and there is a worker for each core anyway."""

_PIECE = 2**14
"""Characters. Linux takes 128 KiB in one argument, and a trainer may have got the names of many shards in many."""

_LIBRARY = str(Path(os.__file__).parent)
"""Of Python itself."""


class Surroundings(NamedTuple):
    """How a new interpreter is started."""

    interpreter: list[str]
    """Its path and options."""
    values: list[str]
    """What is set in it, `sys.path` at once and the rest by `take`: pieces of JSON, as an argument has a length."""
    environment: dict[str, str]
    folder: str | None
    """The working directory; None: the trainer's has been removed."""


class Source(NamedTuple):
    """The file of a module."""

    file: str
    size: int
    modified_ns: int


def surroundings() -> Surroundings:
    """Those of this process."""
    try:
        folder = str(Path.cwd())
    except FileNotFoundError:
        folder = None
    # -W, -X, -O and so on, as multiprocessing passes them on
    options = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
    environment = dict(os.environ)
    if sys.flags.ignore_environment:  # -E or -I; the seed of hash() is told by the environment alone
        options = [each for each in options if each not in ("-E", "-I")] + ["-s"] * sys.flags.isolated
        environment = {name: value for name, value in environment.items() if not name.startswith("PYTHON")}
    seed = environment.get("PYTHONHASHSEED", "")
    environment |= {**_ONE_THREAD, "PYTHONHASHSEED": seed if seed.isdigit() else "0"}
    values = {
        "path": _path(folder),
        "argv": [each for each in sys.argv if isinstance(each, str)],
        "recursion_limit": sys.getrecursionlimit(),
    }
    # -P: what is imported before `sys.path` is set comes from no working directory
    text = json.dumps(values)
    pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
    return Surroundings([spawn.get_executable(), *options, "-P"], pieces, environment, folder)


def take(values: Mapping[str, Any]) -> None:
    """In the new process, before anything of the user's is loaded: set what is the trainer's, but for `sys.path`."""
    sys.argv[:] = values["argv"]
    sys.setrecursionlimit(values["recursion_limit"])


def sources() -> dict[str, Source]:
    """The files of this process's modules, by module; not those of Python and of installed packages."""
    found = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__dict__", {}).get("__file__")  # nothing that a module makes when it is asked for it
        if isinstance(file, str) and name not in ("__main__", "__mp_main__") and not _is_installed(file):
            with suppress(OSError):  # within a zip file, or removed
                found[name] = _source(file)
    return found


def check_sources(wanted: Mapping[str, Source], before: Collection[str]) -> None:
    """Compare the modules that this process has imported, but for those that it had `before`, with the trainer's.

    Raises:
        ConfigError: a module of the same name was imported from another file.
    """
    for name, found in sources().items():
        first = wanted.get(name)
        if first is None or name in before or found == first:
            continue
        if found.file != first.file:
            raise ConfigError(
                f"the workers have imported module {name} from {found.file}, and the trainer from {first.file}: in "
                "sys.path, as it is now, another module of that name comes first. Let sys.path begin with the folder "
                "of the trainer's, or give the modules different names"
            )
        _log.warning(
            "%s has changed since this loader's workers were first started: the workers that are started now do what "
            "module %s says now, so their packs may be others than those before",
            found.file,
            name,
        )


def _path(folder: str | None) -> list[str]:
    """`sys.path` with whole paths: relative ones begin at the folder of streampack's import.

    What they stand for after `os.chdir` comes last, where it hides no module of Python or of a package.
    """
    begin = vars(sys.modules["streampack"])["_folder"]  # not imported, as no module inside may import the public names
    found, last = [], []
    for each in sys.path:
        if not isinstance(each, str):
            continue
        if Path(each).is_absolute():
            found.append(each)
            continue
        whole = [Path(base, each) for base in dict.fromkeys((begin, folder)) if base]
        existing = [str(other) for other in whole if other.exists()]
        # one that is in neither may be a name for one of `sys.path_hooks`
        found += existing[:1] or [each] * bool(each)
        last += existing[1:]
    return found + last


def _is_installed(file: str) -> bool:
    return file.startswith(_LIBRARY) or "/site-packages/" in file or "/dist-packages/" in file


def _source(file: str) -> Source:
    path = Path(file).resolve()
    status = path.stat()
    return Source(str(path), status.st_size, status.st_mtime_ns)
