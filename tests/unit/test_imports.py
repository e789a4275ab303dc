"""Which package may import which, and that importing streampack does nothing but that."""

import ast
import functools
import graphlib
import importlib
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import streampack
from streampack import errors

PACKAGE = Path(streampack.__file__).parent
INTERNALS = Path(__file__).parents[2] / "docs" / "internals.md"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
"""Dotted name without `streampack.`: "packing.packer", "cli.plan"; the package itself is ""."""
PACKAGES = sorted(name for name, path in MODULES.items() if path.name == "__init__.py" and name)
PUBLIC = ("formats", "integrations", "metrics", "testing", "tokenizers")
"""Packages that users import from; `__all__` of every other one names its modules."""

# Library -> the packages and modules that may import it, anywhere in their code.
USERS = {
    "torch": {"ranks", "state", "dataset", "loader", "formats", "integrations", "testing", "cli", "examples"},
    "cloudpickle": {"loader"},
    "fsspec": {"storage", "corpus", "testing"},
    "botocore": {"storage.backends.s3"},
    "urllib3": {"storage.backends.connections"},
    "sentencepiece": {"tokenizers", "examples"},  # examples train it, wrap it
    "tokenizers": {"tokenizers.huggingface", "tokenizers.characters"},
    "gigatoken": {"tokenizers.gigatoken"},
    "jinja2": {"chat.jinja", "cli.plan.page"},
    "prometheus_client": {"metrics.exporting"},
    **{name: {"examples"} for name in ("accelerate", "omegaconf", "pytorch_lightning", "torchtitan", "torchtune")},
    "transformers": {"integrations", "examples"},
    **{name: {"corpus.writing.rows"} for name in ("datasets", "pyarrow")},
    "webdataset": {"testing", "examples"},  # it writes shards; reading is our own
    "yaml": {"config"},
    "typer": {"cli"},
    "rich": {"cli", "examples"},
    "ray": {"cli.parts.on_ray"},
}


def directions() -> list[set[str]]:
    """The rows of the table in docs/internals.md, the ground first."""
    block = re.search(r"<!-- directions -->\n```text\n(.*?)```", INTERNALS.read_text("utf-8"), re.DOTALL)
    assert block is not None
    rows = [re.split(r"\s{2,}", line)[0] for line in block[1].splitlines()]
    return [set(row.split(", ")) for row in rows]


ROWS = directions()


@functools.cache
def imports(name: str) -> frozenset[str]:
    """Absolute dotted names that a module imports anywhere, also inside functions and under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"streampack.{name} line {node.lineno}: imports are absolute here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


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


def test_the_table_has_every_package_and_module_of_the_top_once() -> None:
    entries = sorted(path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists())
    assert sorted(name for row in ROWS for name in row) == [name for name in entries if name != "__init__"]


def forbidden(name: str) -> set[str]:
    """The packages that a module imports and may not."""
    home, *_ = name.split(".")
    row = next(number for number, names in enumerate(ROWS) if home in names)
    allowed = {home}.union(*ROWS[:row], *(ROWS[:1] if row == 0 else []))
    if home in {"examples", "cli"}:
        allowed.add("")  # they use the public names
    return {target.split(".")[0] for target in own_imports(name)} - allowed


def test_a_module_imports_only_what_the_table_allows() -> None:
    found = {name: forbidden(name) for name in MODULES if name}
    assert {name: packages for name, packages in found.items() if packages} == {}


@pytest.mark.parametrize("library", sorted(USERS))
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    found = {name for name in MODULES if library in {target.split(".")[0] for target in imports(name)}}
    assert {name for name in found if not is_one_of(name, USERS[library])} == set()


def test_modules_import_each_other_in_one_direction_only() -> None:
    """The public names in `__init__` come last, so a module below takes a name from where it is made."""
    order = graphlib.TopologicalSorter({name: own_imports(name) for name in MODULES})
    order.prepare()  # raises CycleError, which names the cycle


INTERNAL = [name for name in PACKAGES if name.partition(".")[0] not in {*PUBLIC, "cli", "examples"}]


@pytest.mark.parametrize("name", INTERNAL)
def test_an_internal_package_names_its_modules(name: str) -> None:
    inside = {other.removeprefix(f"{name}.") for other in MODULES if other.startswith(f"{name}.")}
    module = importlib.import_module(f"streampack.{name}")
    assert module.__all__ == sorted(other for other in inside if "." not in other)


@pytest.mark.parametrize("name", ["", *(name for name in PUBLIC if name in PACKAGES)])
def test_public_names_are_sorted_and_all_that_is_public(name: str) -> None:
    package = importlib.import_module(f"streampack.{name}".rstrip("."))
    importable = {
        other
        for other in dir(package)
        if not other.startswith("_") and not isinstance(getattr(package, other), ModuleType)
    }
    assert package.__all__ == sorted(package.__all__)
    assert set(package.__all__) - {"__version__"} == importable


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
    heavy = {"s3fs", "gcsfs", "adlfs", "aiohttp", "botocore", "tokenizers", "webdataset", "typer", "rich", "hypothesis"}
    output = run(f"import streampack, sys; print(sorted({heavy!r} & set(sys.modules)))")
    assert output == "[]\n"


def test_the_version_is_that_of_the_distribution() -> None:
    assert streampack.__version__ == importlib.metadata.version("streampack")


def test_every_error_can_be_caught_by_a_public_name() -> None:
    kinds = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert kinds <= set(streampack.__all__)


def test_the_core_packs_without_torch() -> None:
    output = run(
        "import sys\n"
        "import streampack\n"
        "list(streampack.pack([[1, 2, 3]], seq_len=2))\n"
        "print('torch' in sys.modules, 'fsspec' in sys.modules)\n"
    )
    assert output == "False False\n"


def test_what_workers_come_from_imports_neither_torch_nor_a_storage_that_is_not_read() -> None:
    heavy = {"torch", "s3fs", "gcsfs", "aiohttp", "botocore", "jinja2", "typer", "rich", "tokenizers", "sentencepiece"}
    output = run(
        "import sys, threading\n"
        "import streampack.loader.server\n"
        "from streampack.storage.backends.choice import import_libraries\n"
        f"heavy = {heavy!r}\n"
        "import_libraries(b'/data/a.tar')\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "import_libraries(b's3://bucket/a.tar')\n"
        "print(sorted(heavy & set(sys.modules)), threading.active_count())\n"
    )
    assert output == "[]\n['botocore'] 1\n"
