"""Runs and starts for tests of lanes without a loader."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from streampack.corpus.epochs import Corpus
from streampack.corpus.schedule import Schedule, StageOfRun
from streampack.corpus.shares import DEFAULT, Shares
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.position import LanePosition
from streampack.lanes.run import LaneStart, Run, RunSource


def stage(first_pack: int, weights: Sequence[float], *, seq_len: int = 0, first_tokens: int = 0) -> StageOfRun:
    return StageOfRun(first_pack, first_tokens, seq_len, Shares.of(weights), {})


def one_source(pipeline: Pipeline, corpus: Corpus, *, end_epoch: int | None = None) -> Run:
    """A run of one source that never changes."""
    schedule = Schedule(num_lanes=corpus.num_lanes, stages=(stage(0, [1], seq_len=getattr(pipeline, "seq_len", 8)),))
    return Run((RunSource(DEFAULT, corpus, (pipeline,), end_epoch),), schedule)


def begun(lanes: Iterable[int], num_sources: int = 1) -> Mapping[int, LaneStart]:
    """Lanes at the start of a run."""
    return {lane: LaneStart(0, (LanePosition(),) * num_sources) for lane in lanes}


def with_pipelines(run: Run, **changes: Any) -> Run:
    """The run with other fields of its pipelines."""
    sources = (
        each._replace(pipelines=tuple(dataclasses.replace(pipeline, **changes) for pipeline in each.pipelines))
        for each in run.sources
    )
    return run._replace(sources=tuple(sources))
