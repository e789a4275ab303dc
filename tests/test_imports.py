"""Which module may import what; and that importing the package does nothing but that."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import streampack

PACKAGE = Path(streampack.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
"""Dotted name without `streampack.`: "packer", "cli.plan"; the package itself is ""."""

FOUNDATION = {"digests", "errors", "hashing", "limits", "progress", "records", "stats"}
STAGES = {"shards", "lanes", "storage", "reader", "documents", "tokenizer", "boundary", "packer", "formats", "chat"}
CHAT_PARTS = {"chattemplates", "chatjinja"}
"""The stage "chat" in several files."""
READER_PARTS = {"decompression", "tarcuts", "tarformat", "tarscan"}
"""The stage "reader" in several files."""
STORAGE_PARTS = {
    *("blockfile", "cache", "cachefolder", "cachenames", "cacherelay"),
    *("checking", "clients", "faults", "listing", "objects", "ranges", "readahead", "retrying", "s3", "web")
}
"""The stage "storage" in several files."""
TRAINERS = {"accelerate", "omegaconf", "pytorch_lightning", "torchtitan", "torchtune", "transformers"}

# Library -> the modules and folders that may import it, anywhere in their code.
USERS = {
    "torch": {
        *("topology", "dataset", "iteration", "loader", "workers", "formats", "consumers", "state"),
        *("cli", "testing", "examples"),
    },
    "fsspec": {"clients", "listing", "shards", "testing"},
    "botocore": {"s3"},
    "urllib3": {"web"},
    "sentencepiece": {"tokenizer", "examples.make_data", "examples.torchtitan_loader"},  # train it, wrap it
    "tokenizers": {"huggingface"},
    "jinja2": {"chatjinja"},
    **{name: {"examples"} for name in TRAINERS},
    "webdataset": {"testing", "examples"},  # it writes shards; reading is our own
    "yaml": {"config", "yamltree"},
    "typer": {"cli"},
    "rich": {"cli", "examples"},
}
# What else a foundation module or a stage may import of the package.
MAY_IMPORT = {
    "digests": {"errors"},
    "errors": set(),
    "hashing": set(),
    "limits": set(),
    "progress": set(),
    "records": {"errors", "stats"},
    "stats": {"errors", "records"},
    **dict.fromkeys(STAGES, FOUNDATION),
    "packer": FOUNDATION | {"boundary", "documentrows"},
    "tokenizer": FOUNDATION | {"huggingface", "modelfiles"},
    "huggingface": FOUNDATION | {"modelfiles"},
    "modelfiles": FOUNDATION,
    "documentrows": FOUNDATION | {"boundary"},
    "documents": FOUNDATION | {"contents"},
    "contents": FOUNDATION,
    "formats": FOUNDATION | {"boundary", "consumers"},
    "consumers": FOUNDATION,
    "chat": FOUNDATION | CHAT_PARTS | {"boundary"},
    **dict.fromkeys(CHAT_PARTS, FOUNDATION | CHAT_PARTS),
    **dict.fromkeys({"reader", *READER_PARTS}, FOUNDATION | READER_PARTS),
    **dict.fromkeys({"storage", *STORAGE_PARTS}, FOUNDATION | STORAGE_PARTS),
}


def imports(name: str) -> set[str]:
    """Absolute dotted names that a module imports anywhere, also inside functions and under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"streampack.{name} line {node.lineno}: imports are absolute here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(name: str) -> set[str]:
    """The modules of the package that a module imports; "" is the package itself."""
    found = set()
    for target in imports(name):
        if target.split(".")[0] == "streampack":
            inner = target.removeprefix("streampack").removeprefix(".")
            while inner not in MODULES:  # the last part is a name in a module
                inner = inner.rpartition(".")[0]
            found.add(inner)
    return found


def is_one_of(name: str, homes: set[str]) -> bool:
    return name in homes or any(name.startswith(f"{home}.") for home in homes)


def test_each_stage_that_the_layout_names_is_there() -> None:
    assert (FOUNDATION | STAGES) - set(MODULES) == set()


@pytest.mark.parametrize("library", sorted(USERS))
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    found = {name for name in MODULES if library in {target.split(".")[0] for target in imports(name)}}
    assert {name for name in found if not is_one_of(name, USERS[library])} == set()


@pytest.mark.parametrize("name", sorted(MAY_IMPORT))
def test_a_stage_imports_no_other_stage(name: str) -> None:
    assert own_imports(name) - MAY_IMPORT[name] == set()


def test_imports_run_in_one_direction_only() -> None:
    """The public names in `__init__` come last, so a module below takes a name from where it is made."""
    order = graphlib.TopologicalSorter({name: own_imports(name) for name in MODULES})
    order.prepare()  # raises CycleError, which names the cycle


def test_the_public_names_are_sorted_and_all_that_is_public() -> None:
    assert streampack.__all__ == sorted(streampack.__all__)
    importable = {
        name
        for name in dir(streampack)
        if not name.startswith("_") and not isinstance(getattr(streampack, name), ModuleType)
    }
    assert set(streampack.__all__) - {"__version__"} == importable


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_asks_no_network_and_joins_no_group() -> None:
    output = run(
        "import sys, threading\n"
        "asked = []\n"
        "sys.addaudithook(lambda event, _: event.startswith('socket.') and event != 'socket.gethostname'"
        " and asked.append(event))\n"
        "import streampack\n"
        "import torch.distributed\n"
        "print(asked, torch.distributed.is_initialized(), threading.active_count())\n"
    )
    assert output == "[] False 1\n"


def test_importing_the_package_loads_no_storage_backend_and_nothing_heavy() -> None:
    heavy = {
        "s3fs",
        "gcsfs",
        "adlfs",
        "aiohttp",
        "botocore",
        "tokenizers",
        "webdataset",
        "typer",
        "rich",
        "hypothesis",
    }
    output = run(f"import streampack, sys; print(sorted({heavy!r} & set(sys.modules)))")
    assert output == "[]\n"


def test_the_core_packs_without_torch() -> None:
    """`packer` needs NumPy only: the package's `__init__` aside, nothing of torch comes along."""
    output = run(
        "import importlib.util, sys, types\n"
        f"package = types.ModuleType('streampack'); package.__path__ = [{str(PACKAGE)!r}]\n"
        "sys.modules['streampack'] = package\n"
        "import streampack.packer\n"
        "print('torch' in sys.modules, 'fsspec' in sys.modules)\n"
    )
    assert output == "False False\n"
