"""What a script defines arrives in a process that cannot import the script."""

import contextvars
import functools
import io
import os
import pickle
import subprocess
import sys
import types
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streampack.loader import pickling

NEEDED = Path(pickling.__file__).parents[2]


def pickled(value: object, buffers: list[Any] | None = None) -> bytes:
    file = io.BytesIO()
    callback = None if buffers is None else buffers.append
    pickling.RecipePickler(file, protocol=5, buffer_callback=callback).dump(value)
    return file.getvalue()


SCRIPT = """
import contextvars, functools, io, sys, types, typing
from streampack.loader import pickling

@functools.lru_cache(maxsize=3)
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

@functools.cache
def table():
    return {"a": "A"}

class Lazy:
    @functools.cached_property
    def up(self):
        return str.upper
    @functools.lru_cache
    def twice(self, x):
        return 2 * x
    @functools.singledispatchmethod
    def kind(self, x):
        return "other"
    @kind.register
    def _(self, x: int):
        return "int"

@functools.singledispatch
def shown(x):
    return "other"
@shown.register
def _(x: list):
    return "[" + ",".join(map(shown, x)) + "]"
@shown.register
def _(x: Lazy):
    return "lazy"

variable = contextvars.ContextVar("variable", default=1)
variable.set(5)
empty = contextvars.ContextVar("empty")
Id = typing.NewType("Id", int)

by_hand = types.ModuleType("by_hand")
sys.modules["by_hand"] = by_hand
exec("K = 6\\ndef hand(): return K\\nclass Hand:\\n  def k(self): return K", by_hand.__dict__)

def all_of_it(itself=functools.lru_cache(lambda x: x + 1)):
    lazy = Lazy()
    return [
        fibonacci(20), fibonacci.cache_parameters()["maxsize"], fibonacci.__name__, table()["a"], lazy.up("b"),
        lazy.twice(4), lazy.kind(1), lazy.kind(""), shown([lazy, 1]), variable.get(), empty.get("none"), Id(3),
        by_hand.hand(), by_hand.Hand().k(), itself(1),
    ]

def pickled(value):
    file = io.BytesIO()
    pickling.RecipePickler(file, protocol=5).dump(value)
    return file.getvalue().hex()

if __name__ == MAIN:
    open(sys.argv[1], "w").write(pickled(all_of_it))
"""
SPAWNING = """
import multiprocessing
if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=print)
    process.start(); process.join()
"""
LOADING = "import pickle, sys; print(pickle.loads(bytes.fromhex(open(sys.argv[1]).read()))())"


def ran(*arguments: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(NEEDED)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("main", ["__main__", "__mp_main__"], ids=["script", "spawned"])
def test_what_is_around_functions_of_a_script_goes_by_value(tmp_path: Path, main: str) -> None:
    script = SCRIPT.replace("MAIN", repr(main)) + (SPAWNING if main == "__mp_main__" else "")
    (tmp_path / "script.py").write_text(script)
    ran("script.py", "pickled", cwd=tmp_path)
    wanted = [6765, 3, "fibonacci", "A", "B", 8, "int", "other", "[lazy,other]", 5, "none", 3, 6, 6, 2]
    assert ran("-c", LOADING, "pickled", cwd=tmp_path).strip() == str(wanted)


def test_what_can_be_imported_goes_by_name() -> None:
    @functools.lru_cache
    def local(x: int) -> int:
        return x

    assert pickle.loads(pickled(importable)) is importable and pickle.loads(pickled(dispatching)) is dispatching
    assert pickle.loads(pickled(local))(3) == 3
    assert pickle.loads(pickled(UserId)) is UserId


@functools.lru_cache
def importable(x: int) -> int:
    """Of a module."""
    return x


@functools.singledispatch
def dispatching(x: object) -> None:
    """Of a module, too."""


UserId = typing.NewType("UserId", int)


def test_a_name_of_the_script_is_refused() -> None:
    class Mark:
        def __reduce__(self) -> str:
            return "MARK"

    Mark.__module__ = "__main__"
    with pytest.raises(pickle.PicklingError, match="a name, `MARK` of __main__, which the workers do not import"):
        pickled(Mark())
    with pytest.raises(pickle.PicklingError, match="own module, which is not sent whole"):
        pickled(types.ModuleType("__main__"))


def test_a_context_variable_has_the_value_of_now() -> None:
    variable = contextvars.ContextVar("variable", default=1)
    token = variable.set(2)
    sent = pickled(variable)
    variable.reset(token)
    assert pickle.loads(sent).get() == 2


@pytest.fixture
def mapped(tmp_path: Path) -> "np.memmap[Any, Any]":
    path = tmp_path / "array.npy"
    np.save(path, np.arange(60_000, dtype="<i4").reshape(300, 200))
    found: np.memmap[Any, Any] = np.load(path, mmap_mode="r")
    return found


@pytest.mark.parametrize("of_it", [lambda m: m, lambda m: m[7:31], lambda m: m.T, lambda m: m[5, 20:].view("<u2")])
@pytest.mark.parametrize("plain", [False, True], ids=["memmap", "array"])
def test_an_array_in_a_file_is_sent_as_its_place(mapped: Any, of_it: Any, plain: bool) -> None:
    value = np.asarray(of_it(mapped)) if plain else of_it(mapped)
    buffers: list[Any] = []
    sent = pickled(value, buffers)
    assert len(sent) < 1000 and not buffers
    came = pickle.loads(sent)
    assert type(came) is type(value) and came.dtype == value.dtype and np.array_equal(came, value)
    assert came.strides == value.strides and not came.flags.writeable


def test_mapping_again_empties_no_file(tmp_path: Path) -> None:
    value = np.memmap(tmp_path / "file", "u1", "w+", 3, (10,))
    value[:] = 7
    assert pickle.loads(pickled(value)).tolist() == [7] * 10 == value.tolist()


@pytest.mark.parametrize("why", ["copied on write", "strided", "removed", "computed"])
def test_an_array_that_its_file_does_not_hold_is_sent_whole(mapped: Any, why: str) -> None:
    value = mapped
    if why == "copied on write":
        value = np.memmap(mapped.filename, "u1", "c")
        value[-1] = 99
    elif why == "strided":
        value = mapped[::2, ::3]
    elif why == "removed":
        Path(mapped.filename).unlink()
    else:
        value = mapped + 1
    assert np.array_equal(pickle.loads(pickled(value)), value)
