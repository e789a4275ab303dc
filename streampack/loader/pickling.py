"""The trainer's objects as bytes, for a process that imports neither its script nor its notebook.

In:    an object that the user has given, such as a transform.
Out:   its pickle. What the other process can import is in it by name, all else by value (cloudpickle); besides:

    functools    caches, single dispatch and cached properties, around what the script defines
    contextvars  a variable, with the value that it has now
    numpy        an array that is a file's memory (np.memmap), as the file's name and a place in it

Never: a tensor on a GPU, which torch would pickle; a name that only the script has.
"""

import contextvars
import functools
import mmap
import pickle
import sys
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np

from streampack.storage.libraries import fsspec

_Reduced = tuple[Any, ...]
_SCRIPTS = frozenset({"__main__", "__mp_main__"})
"""Modules of the program itself; the second one in processes that multiprocessing has spawned."""
_CACHE = type(functools.lru_cache(len))
_DISPATCH = functools.singledispatch(len).__code__  # type: ignore[attr-defined]  # of the function that it returns


class RecipePickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Pickles what the workers need of the trainer's objects; an error is that of the object that cannot be pickled."""

    def reducer_override(self, value: Any) -> Any:
        torch = sys.modules.get("torch")
        tensor = getattr(torch, "Tensor", None)
        if tensor is not None and isinstance(value, tensor) and value.device.type not in ("cpu", "meta"):
            raise pickle.PicklingError(f"a tensor on {value.device}")
        reduced = reduced_by_value(value)
        if reduced is None and type(value) not in self.dispatch_table:
            reduced = _reduced_by_itself(value)
        if reduced is not None:
            return reduced
        if isinstance(value, (type, types.FunctionType, types.ModuleType)):
            _send_by_value(value)
        reduced = super().reducer_override(value)
        if isinstance(value, type) and isinstance(reduced, tuple) and len(reduced) > 3:
            make, arguments, (attributes, slots), *more = reduced
            return make, arguments, (fsspec.own_attributes(value, attributes), slots), *more
        return reduced


def reduced_by_value(value: Any) -> _Reduced | None:
    """What an object is made of in the other process, as `__reduce__` gives it; None: as pickle would do it."""
    if isinstance(value, _CACHE):
        return None if _is_found(value) else (_cached, (value.__wrapped__, value.cache_parameters()), vars(value))
    if isinstance(value, types.FunctionType):
        if value.__code__ is not _DISPATCH or _is_found(value):
            return None
        registered = value.registry  # type: ignore[attr-defined]  # singledispatch's
        others = tuple((kind, function) for kind, function in registered.items() if kind is not object)
        return _dispatching, (registered[object], others)
    if type(value) is functools.cached_property:  # up to Python 3.11 it holds a lock
        state = {name: each for name, each in vars(value).items() if name not in ("func", "lock")}
        return functools.cached_property, (value.func,), state
    if type(value) is functools.singledispatchmethod:  # from Python 3.13 on it holds a cache that cannot be pickled
        state = {name: each for name, each in vars(value).items() if name not in ("func", "_method_cache")}
        return functools.singledispatchmethod, (value.func,), state
    if isinstance(value, contextvars.ContextVar):
        try:
            return _context_variable, (value.name, value.get())
        except LookupError:
            return _context_variable, (value.name,)
    if isinstance(value, typing.NewType) and not _is_found(value):
        return typing.NewType, (value.__name__, value.__supertype__), {"__module__": value.__module__}
    return _reduced_map(value) if type(value) in (np.memmap, np.ndarray) else None


# -- objects of functools and contextvars, in the other process --------------------------------------------------------


def _cached(function: Callable[..., Any], parameters: Mapping[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _dispatching(function: Callable[..., Any], others: tuple[tuple[type, Callable[..., Any]], ...]) -> Any:
    dispatch = functools.singledispatch(function)
    for kind, each in others:
        dispatch.register(kind, each)
    return dispatch


def _context_variable(name: str, *value: Any) -> contextvars.ContextVar[Any]:
    return contextvars.ContextVar(name, default=value[0]) if value else contextvars.ContextVar(name)


# -- arrays in files ---------------------------------------------------------------------------------------------------


def _reduced_map(value: "np.ndarray[Any, Any]") -> _Reduced | None:
    """An array whose elements are a stretch of a mapped file, as a place in the file; None: it is another one.

    Mode "c" is another one, too: what was written to it is in no file.
    """
    root: Any = value
    while type(root) is np.ndarray or isinstance(root, memoryview):
        root = root.base if isinstance(root, np.ndarray) else root.obj
    mapped = getattr(root, "_mmap", None)
    if not isinstance(root, np.memmap) or not isinstance(mapped, mmap.mmap) or root.filename is None or not value.size:
        return None
    order = "C" if value.flags.c_contiguous else "F" if value.flags.f_contiguous else None
    if order is None or root.mode == "c" or value.dtype.hasobject:
        return None
    begin = np.frombuffer(mapped, np.uint8).ctypes.data
    offset = root.offset - root.offset % mmap.ALLOCATIONGRANULARITY + value.ctypes.data - begin
    path = Path(root.filename)
    if not path.is_file() or path.stat().st_size < offset + value.nbytes:  # removed while it is mapped
        return None
    mode = "r" if root.mode == "r" else "r+"  # "w+" would empty the file
    return _mapped, (str(path), value.dtype, mode, offset, value.shape, order, type(value))


def _mapped(
    path: str, dtype: "np.dtype[Any]", mode: Any, offset: int, shape: tuple[int, ...], order: Any, kind: Any
) -> Any:
    return np.memmap(path, dtype, mode, offset, shape, order).view(kind)


# -- what the other process can import ---------------------------------------------------------------------------------


def _reduced_by_itself(value: Any) -> _Reduced | None:
    """What an object of the script says it is made of, if it says it; a PicklingError where that is a name."""
    if isinstance(value, (type, types.FunctionType, types.ModuleType)):
        return None
    kind, module = type(value), getattr(value, "__module__", None)
    plain = all(getattr(kind, name) is getattr(object, name) for name in ("__reduce__", "__reduce_ex__"))
    if plain or not isinstance(module, str) or _is_importable(module):
        return None
    reduced = value.__reduce_ex__(5)
    if isinstance(reduced, str):
        raise pickle.PicklingError(
            f"it is pickled as a name, `{reduced}` of {module}, which the workers do not import; give its class a "
            "__reduce__ that makes it, or define it in a module"
        )
    return typing.cast("_Reduced", reduced)


def _send_by_value(value: Any) -> None:
    """Have cloudpickle take a function, a class or a module by value where its module cannot be imported."""
    if isinstance(value, types.ModuleType) and value.__name__ in _SCRIPTS:
        raise pickle.PicklingError("the program's own module, which is not sent whole: use its names without it")
    name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    if not isinstance(name, str) or _is_importable(name):
        return
    module = sys.modules.get(name)
    if name != "__main__" and module is not None and getattr(module, "__name__", None) in sys.modules:
        cloudpickle.register_pickle_by_value(module)


def _is_found(value: Any) -> bool:
    """Whether the other process can import this very object by its name."""
    module = getattr(value, "__module__", None)
    if not isinstance(module, str) or not _is_importable(module):
        return False
    found: Any = sys.modules.get(module)
    for name in getattr(value, "__qualname__", "").split("."):
        found = getattr(found, name, None)
    return found is value


def _is_importable(module: str) -> bool:
    """Whether a module with this name can be imported in a process that has only this one's `sys.path`."""
    top = module.partition(".")[0]  # what is inside a package, the package may make as it is imported
    if top in _SCRIPTS:
        return False
    return top in sys.stdlib_module_names or _has_spec(top, tuple(sys.path))


@functools.lru_cache(maxsize=1024)
def _has_spec(name: str, path: tuple[str, ...]) -> bool:
    finders = (finder for finder in sys.meta_path if hasattr(finder, "find_spec"))
    return any(finder.find_spec(name, None) is not None for finder in finders)
