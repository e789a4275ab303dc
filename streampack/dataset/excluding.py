"""What the stages of a run leave out: their files, read once, as what each source leaves out in each stage.

In:    the stages, and what reads a file.
Out:   the pipelines of each source with what they leave out; the same object where nothing changes.
Never: a line that is about nothing: a source that is not there is an error at once, a shard when the shards are listed.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

from streampack.corpus.table import ShardTable
from streampack.dataset.stages import Stage
from streampack.documents.excluded import Excluded, ExcludedLine, excluded_lines
from streampack.documents.fields import Field
from streampack.errors import ConfigError, ShardError, ShardNotFoundError
from streampack.lanes.pipeline import Pipeline

Pipelines = Mapping[str, tuple[Pipeline, ...]]


class Exclusions:
    """The lines of all files."""

    def __init__(self, stages: Sequence[Stage], read: Callable[[str], bytes]) -> None:
        """`read`: gives the bytes of a file by its path or URL."""
        self._files: list[tuple[str, dict[str, list[ExcludedLine]]] | None] = []
        """Of each stage the name of its file, and the lines by source."""
        for index, stage in enumerate(stages):
            url = None if stage.exclude is None else os.fspath(stage.exclude)
            self._files.append(None if url is None else (url, _lines(url, index, read)))

    def applied(self, pipelines: Pipelines) -> dict[str, tuple[Pipeline, ...]]:
        """The pipelines of each source, one for each stage, with what is left out there.

        Raises:
            ConfigError: a line of no source, or of one record of a member that is one record; names file and line.
        """
        for file in filter(None, self._files):
            url, by_source = file
            for name, [line, *_] in by_source.items():
                if name not in pipelines:
                    known = ", ".join(map(repr, pipelines))
                    raise ConfigError(
                        f"line {line.number}: source {name!r} is not in this run: {known}. If it was left out of the "
                        "data since, remove its lines from the file, too: a state compares those of each source alone",
                        url=url,
                    )
        return {name: self._of_source(name, stages) for name, stages in pipelines.items()}

    def _of_source(self, name: str, pipelines: Sequence[Pipeline]) -> tuple[Pipeline, ...]:
        excluded: Excluded | None = None
        found: list[Pipeline] = []
        made: dict[tuple[int, int], Pipeline] = {}
        for file, pipeline in zip(self._files, pipelines, strict=True):
            if file is not None and (lines := file[1].get(name)):
                field = pipeline.documents.field
                excluded = Excluded.of(lines if field.holds_many else _of_samples(lines, field, file[0]), excluded)
            if excluded is not None:
                key = id(pipeline), id(excluded)
                made.setdefault(key, dataclasses.replace(pipeline, excluded=excluded))
            found.append(pipeline if excluded is None else made[key])
        return tuple(found)

    def check_shards(self, name: str, table: ShardTable) -> None:
        """Refuse lines of shards that a source does not have.

        Raises:
            ConfigError: it names the file and the line.
        """
        for file in filter(None, self._files):
            url, by_source = file
            lines = {line.shard: line.number for line in reversed(by_source.get(name, ()))}
            if not lines:
                continue
            names = {table.names[index] for index in range(len(table))}
            if missing := lines.keys() - names:
                shard = min(missing, key=lines.__getitem__)
                near = [each for each in names if shard.endswith(f"/{each}")] or get_close_matches(shard, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"its shards are such as {min(names)!r}"
                raise ConfigError(f"line {lines[shard]}: source {name!r} has no shard {shard!r}; {hint}", url=url)


def _of_samples(lines: Sequence[ExcludedLine], field: Field, url: str) -> list[ExcludedLine]:
    """The same lines of a source whose samples are one record each: with record 0 or without, they say the same."""
    for line in lines:
        if line.record:
            raise ConfigError(
                f"line {line.number}: record {line.record} of sample {line.key!r}, and with field={str(field)!r} each "
                f"sample of source {line.source!r} is one record: leave record out",
                url=url,
            )
    return [line._replace(record=None) for line in lines]


def _lines(file: str, stage: int, read: Callable[[str], bytes]) -> dict[str, list[ExcludedLine]]:
    """The lines of a file, by source."""
    try:
        data = read(file)
    except ShardError as error:
        reason = "there is no such file" if isinstance(error, ShardNotFoundError) else error.message
        raise ConfigError(f"exclude of stages[{stage}] cannot be read: {reason}", url=file) from error
    found: dict[str, list[ExcludedLine]] = {}
    for line in excluded_lines(data, url=file):
        found.setdefault(line.source, []).append(line)
    return found
