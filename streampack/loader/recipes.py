"""What workers need of the trainer's objects, for a process that is no fork of it.

In:    the pipeline and the table of shards, which a server loads once; what is to be done, which names these two.
Out:   parcels, and the same objects in the server and its workers.
Never: a module that must be imported for what was made in a script or a notebook: functions and classes of `__main__`
       and of functions go as they are (cloudpickle). An object that is on a GPU: its worker would take memory there.
"""

import logging
import pickle
import sys
from typing import NamedTuple

from streampack.corpus.table import ShardTable
from streampack.errors import ConfigError
from streampack.lanes.pipeline import Pipeline
from streampack.loader import parcels, pickling, unpicklable
from streampack.loader.messages import Assignment
from streampack.loader.surroundings import Source, check_sources, sources
from streampack.storage.backends.choice import import_libraries
from streampack.storage.libraries import fsspec


class Recipe(NamedTuple):
    """What a server loads once."""

    pipeline: Pipeline
    table: ShardTable
    filesystems: fsspec.Registered
    """What the trainer's process has told fsspec."""
    log_levels: dict[str, int]
    sources: dict[str, Source]
    """The trainer's modules."""


_LOGGERS = ("", "streampack")


def wrap_recipe(pipeline: Pipeline, table: ShardTable) -> int:
    """The parcel for a server.

    Raises:
        ConfigError: something cannot be pickled; it says what, and where it was found.

    What the handler of a signal raises meanwhile passes through.
    """
    levels = {name: logging.getLogger(name or None).level for name in _LOGGERS}
    recipe = Recipe(pipeline, table, fsspec.registered(table.urls.blob), levels, sources())
    try:
        return parcels.wrap(recipe, pickling.RecipePickler)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        if type(unpicklable.failure(recipe)) is not type(error):
            raise  # a signal's handler has raised it, perhaps
        documents = pipeline.documents
        parts = {
            "transform": documents.transform,
            "tokenizer": pipeline.tokenizer,
            "chat": documents.chat,
            "storage": pipeline.storage,
            "fsspec's own filesystems and settings": recipe.filesystems,
            "dataset": pipeline,
        }
        where = unpicklable.find(parts) or str(error)
        raise ConfigError(
            f"workers cannot be given a copy of {where}. Make it in the worker, when it is first used, and leave it "
            'out of what is copied; or, if it is not on a GPU, fork the workers: multiprocessing_context="fork".'
        ) from error


def load_recipe(descriptor: int) -> Recipe:
    """The recipe, in the server, and this process set up for it.

    Raises:
        ConfigError: a module is another one than in the trainer.
    """
    before = set(sys.modules)
    recipe: Recipe = parcels.unwrap(descriptor)
    fsspec.register(recipe.filesystems)
    import_libraries(recipe.table.urls.blob)
    logging.basicConfig(format="%(levelname)s:%(name)s:%(message)s")
    for name, level in recipe.log_levels.items():
        logging.getLogger(name or None).setLevel(level)
    check_sources(recipe.sources, before)
    return recipe


def wrap_assignment(assignment: Assignment) -> int:
    """What the workers are to do, without what their server has."""
    names = {id(assignment.pipeline): "pipeline", id(assignment.corpus.table): "table"}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> str | None:
            return names.get(id(value))

    return parcels.wrap(assignment, Pickler)


def load_assignment(descriptor: int, recipe: Recipe) -> Assignment:
    """What `wrap_assignment` has wrapped."""

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, name: str) -> object:
            return getattr(recipe, name)

    assignment: Assignment = parcels.unwrap(descriptor, Unpickler)
    return assignment
