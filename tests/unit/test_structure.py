"""How the tests lie: folders mirror the packages, no test file imports from another, none waits without a reason."""

import ast
import functools
from pathlib import Path

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "streampack"
FOLDERS = ["benchmarks", "component", "fuzz", "integrations", "nightly", "process", "support", "unit"]
FILES = sorted(path.relative_to(TESTS).as_posix() for path in TESTS.rglob("*.py"))
TEST_FILES = [name for name in FILES if Path(name).name.startswith("test_")]

SLEEPS = {
    # File -> why it waits for a time and not for a condition alone.
    "nightly/test_ray.py": "polls for the parts that are done",
    "process/test_clean_workers.py": "polls for the end of processes",
    "process/test_demo.py": "polls for the first log",
    "process/test_killed_jobs.py": "kills at a random moment; polls for the end of processes",
    "process/test_killed_server.py": "a training step; polls for the end of processes",
    "process/test_worker_restarts.py": "workers that are slow or hang",
    "unit/ranks/test_groups.py": "lets other threads ask meanwhile",
    "unit/storage/test_cache.py": "shows that nothing is asked for meanwhile; polls for a lock",
    "unit/storage/test_cache_disk.py": "longer than a patience that is a constant; polls for sizes",
    "unit/storage/test_storage.py": "a consumer that pauses for longer than the budget",
    "unit/storage/test_storage_ahead.py": "shows that nothing is asked for meanwhile; a slow consumer",
}
"""`support/` and `benchmarks/` are not asked: what polls for a condition, throttles or trains stands there."""

ELSEWHERE = {
    # Package without a folder in `unit/` -> where and why it is tested.
    "examples": "integrations/test_examples.py, component/test_demo_data.py: they need the trainers' libraries",
    "integrations": "integrations/: each needs its trainer's library",
}


@functools.cache
def named(name: str) -> tuple[frozenset[str], frozenset[str]]:
    """What a test file imports, modules and names of modules (`from a import b` gives a and a.b); its attributes."""
    imported, attributes = set(), set()
    for node in ast.walk(ast.parse((TESTS / name).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            imported |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute):
            attributes.add(node.attr)
    return frozenset(imported), frozenset(attributes)


def sleeps(name: str) -> bool:
    """Whether it names `sleep` of a module, or imports it by its name."""
    if "sleep" not in (TESTS / name).read_text("utf-8"):
        return False
    imported, attributes = named(name)
    return "sleep" in attributes or any(module.endswith(".sleep") for module in imported)


def test_every_file_has_its_folder() -> None:
    assert sorted({name.split("/")[0] for name in FILES} - {"conftest.py"}) == FOLDERS


def test_a_folder_of_unit_tests_is_a_package() -> None:
    folders = {path.name for path in (TESTS / "unit").iterdir() if path.is_dir() and any(path.glob("test_*.py"))}
    assert sorted(name for name in folders if not (PACKAGE / name / "__init__.py").exists()) == []


def test_each_package_has_its_folder_of_unit_tests_or_a_reason() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert sorted(name for name in packages if not any((TESTS / "unit" / name).glob("test_*.py"))) == sorted(ELSEWHERE)


def test_no_test_file_imports_from_another() -> None:
    assert [
        (name, module)
        for name in TEST_FILES
        for module in named(name)[0]
        if module.rpartition(".")[2].startswith(("test_", "conftest"))
    ] == []


def test_only_those_tests_sleep_that_say_why() -> None:
    assert sorted(name for name in TEST_FILES if sleeps(name)) == sorted(SLEEPS)
