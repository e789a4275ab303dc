"""What workers need of the trainer's objects, for a process that is no fork of it.

In:    the pipelines and the tables of shards, which a server loads once; what is to be done, which names these.
Out:   parcels, and the same objects in the server and its workers.
Never: a module that must be imported for what was made in a script or a notebook: functions and classes of `__main__`
       and of functions go as they are (cloudpickle). An object that is on a GPU: its worker would take memory there.
"""

import logging
import pickle
import sys
from collections.abc import Sequence
from typing import NamedTuple

from streampack.corpus.table import ShardTable
from streampack.errors import ConfigError
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.run import Run
from streampack.loader import parcels, pickling, unpicklable
from streampack.loader.messages import Work
from streampack.loader.surroundings import Source, check_sources, sources
from streampack.storage.backends.choice import import_libraries
from streampack.storage.libraries import fsspec


class Parts(NamedTuple):
    """The large objects of a run, each of them once: they stay the same while the run goes on."""

    pipelines: Sequence[Pipeline]
    tables: Sequence[ShardTable]

    @classmethod
    def of(cls, run: Run) -> "Parts":
        return cls(run.pipelines, run.tables)

    def are(self, other: "Parts") -> bool:
        """Whether both are the same objects."""
        return [*map(id, self.pipelines), *map(id, self.tables)] == [*map(id, other.pipelines), *map(id, other.tables)]


class Recipe(NamedTuple):
    """What a server loads once."""

    parts: "Parts"
    filesystems: fsspec.Registered
    """What the trainer's process has told fsspec."""
    log_levels: dict[str, int]
    sources: dict[str, Source]
    """The trainer's modules."""


_LOGGERS = ("", "streampack")


def wrap_recipe(parts: Parts) -> int:
    """The parcel for a server.

    Raises:
        ConfigError: something cannot be pickled; it says what, and where it was found.

    What the handler of a signal raises meanwhile passes through.
    """
    levels = {name: logging.getLogger(name or None).level for name in _LOGGERS}
    recipe = Recipe(parts, fsspec.registered(_urls(parts)), levels, sources())
    try:
        return parcels.wrap(recipe, pickling.RecipePickler)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # an object's own code is pickled with it and may raise anything
        if type(unpicklable.failure(recipe)) is not type(error):
            raise  # a signal's handler has raised it, perhaps
        candidates = [*map(_by_name, parts.pipelines)]
        candidates.append({"fsspec's own filesystems and settings": recipe.filesystems})
        candidates += [{"dataset": pipeline} for pipeline in parts.pipelines]
        where = next((where for each in candidates if (where := unpicklable.find(each))), str(error))
        raise ConfigError(
            f"workers cannot be given a copy of {where}. Make it in the worker, when it is first used, and leave it "
            'out of what is copied; or, if it is not on a GPU, fork the workers: multiprocessing_context="fork".'
        ) from error


def _urls(parts: Parts) -> bytes:
    return b" ".join(table.urls.blob for table in parts.tables)


def _by_name(pipeline: Pipeline) -> dict[str, object]:
    """What of a pipeline is the user's."""
    documents = pipeline.documents
    return {
        "transform": documents.transform,
        "tokenizer": pipeline.tokenizer,
        "chat": documents.chat,
        "storage": pipeline.storage,
    }


def load_recipe(descriptor: int) -> Recipe:
    """The recipe, in the server, and this process set up for it.

    Raises:
        ConfigError: a module is another one than in the trainer.
    """
    before = set(sys.modules)
    recipe: Recipe = parcels.unwrap(descriptor)
    fsspec.register(recipe.filesystems)
    import_libraries(_urls(recipe.parts))
    logging.basicConfig(format="%(levelname)s:%(name)s:%(message)s")
    for name, level in recipe.log_levels.items():
        logging.getLogger(name or None).setLevel(level)
    check_sources(recipe.sources, before)
    return recipe


def wrap_assignment(assignment: Work) -> int:
    """What the workers are to do, without what their server has."""
    parts = Parts.of(assignment.run)
    numbers = {id(part): number for number, part in enumerate([*parts.pipelines, *parts.tables])}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> int | None:
            return numbers.get(id(value))

    return parcels.wrap(assignment, Pickler)


def load_assignment(descriptor: int, recipe: Recipe) -> Work:
    """What `wrap_assignment` has wrapped."""
    parts = [*recipe.parts.pipelines, *recipe.parts.tables]

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, number: int) -> object:
            return parts[number]

    assignment: Work = parcels.unwrap(descriptor, Unpickler)
    return assignment
