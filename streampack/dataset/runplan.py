"""What the arguments of a dataset make of a run: its sources, its stages, its lanes, and the fingerprint of it all.

In:    `DatasetArguments`; later the shards of each source, listed here or by another rank.
Out:   a `Run`, for so many lanes and the stages that have begun.
Never: a rank, a worker or a position.

    arguments --assembly--> a pipeline of each source in each stage   |
    sources ---shardlist--> a table of each source                    |  --resolution--> a `Run`
    stages, budget                                                    |
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from streampack.corpus.epochs import Corpus
from streampack.corpus.partition import AUTO_LANES, auto_num_lanes
from streampack.corpus.schedule import Schedule
from streampack.corpus.shares import DEFAULT
from streampack.corpus.table import ShardTable
from streampack.dataset.arguments import DatasetArguments
from streampack.dataset.assembly import fingerprint, fingerprint_of_source, make_pipelines
from streampack.dataset.cutting import cuts_as_json
from streampack.dataset.excluding import Exclusions
from streampack.dataset.resolution import PlannedStage, resolve
from streampack.dataset.shardlist import ShardLists, check_corpus, most_lanes
from streampack.dataset.sources import errors_of, source_seed
from streampack.lanes.budget import LaneNeeds, check_budget, packing_bytes, worker_bytes
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.run import FRESH, Continued, Run, RunSource
from streampack.storage.access import StorageReader


class _Asked(NamedTuple):
    num_lanes: int
    continued: Continued


class RunPlan:
    """The runs that a dataset stands for: one for each number of lanes."""

    def __init__(self, arguments: DatasetArguments) -> None:
        self.arguments = arguments
        readers = {"": StorageReader.of(arguments.storage)}
        for name, source in arguments.sources.items():
            own = arguments.reading(source).storage
            readers[name] = readers[""] if own == arguments.storage else StorageReader.of(own)
        self._exclusions = Exclusions(arguments.stages, readers[""].read)
        self.pipelines = self._exclusions.applied(make_pipelines(arguments, readers))
        """Of each source, one for each stage."""
        self.shards = ShardLists(arguments.sources, {name: readers[name] for name in arguments.sources})
        self._is_checked = False
        """Whether the shards fit together, and the stages into the lanes."""
        self._run: tuple[_Asked, Run] | None = None
        """The one that was asked for last."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_run": None}

    def without_lookahead(self) -> "RunPlan":
        """The same with `lookahead=False`, where documents are cut anywhere."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _run=None)
        changed = {}  # stages that share a pipeline go on doing so
        for stages in self.pipelines.values():
            for pipeline in stages:
                packing = pipeline.packing
                if packing.lookahead and not packing.keeps_documents_whole:
                    packing = packing.without_lookahead()
                    changed[id(pipeline)] = dataclasses.replace(pipeline, packing=packing)
        other.pipelines = {
            name: tuple(changed.get(id(pipeline), pipeline) for pipeline in stages)
            for name, stages in self.pipelines.items()
        }
        return other

    def describe(self) -> str:
        """What a dataset's repr tells: its shards, how they are cut, its lanes, its stages."""
        given, pipeline = self.arguments, next(iter(self.pipelines.values()))[0]
        known = self.shards.is_listed or not isinstance(given.num_lanes, str)
        stages = f", {len(given.stages)} stages" if len(given.stages) > 1 else ""
        return (
            f"{self.shards.describe()}; seq_len={pipeline.seq_len}, packing={pipeline.packing.kind}, "
            f"boundary={pipeline.boundary}; num_lanes={self.num_lanes if known else given.num_lanes!r}{stages}"
        )

    # -- the shards ------------------------------------------------------------------------------------------------

    def list_shards(self) -> tuple[ShardTable, ...]:
        """The shards of each source; the first call lists them."""
        if not self._is_checked:
            self.shards.check_disjoint([_active(weights) for weights in self.arguments.weights])
            for name in self.arguments.sources:
                with errors_of(name):
                    check_corpus(self.corpus(name))
                self._exclusions.check_shards(name, self.shards.table(name))
            self._schedule(self.num_lanes)  # refuses stages that begin with one round
            self._is_checked = True
        return self.shards.tables()

    def adopt(self, tables: Sequence[ShardTable]) -> None:
        """Take the shards of each source as another rank has listed them."""
        self.shards.adopt(tables)
        self._is_checked, self._run = True, None

    @property
    def num_lanes(self) -> int:
        """Lanes of the run; "auto" is decided by the bytes of the sources that it begins with."""
        if not isinstance(self.arguments.num_lanes, str):
            return self.arguments.num_lanes
        tables = dict(zip(self.arguments.sources, self.shards.tables(), strict=True))
        weights = self.arguments.weights[0]
        if len(self.arguments.first_sources) == 1:
            return auto_num_lanes(sum(tables[name].total_bytes for name in self.arguments.first_sources))
        first = [tables[name] for name in self.arguments.first_sources if weights[name]]
        lanes = auto_num_lanes(sum(table.total_bytes for table in first))
        most = min(lanes, *map(most_lanes, first))
        return max((fitting for fitting in AUTO_LANES if fitting <= most), default=1)

    def corpus(self, name: str, num_lanes: int | None = None) -> Corpus:
        """Which bytes of a source come when, in `num_lanes` lanes (None: as asked for)."""
        return Corpus(
            table=self.shards.table(name),
            num_lanes=self.num_lanes if num_lanes is None else num_lanes,
            seed=source_seed(self.arguments.seed, name),
            shuffle=self.arguments.order,
            one_epoch=self.arguments.is_validation,
            hold_out=self.arguments.held_out_cells,
        )

    def check_budget(self, *, num_ranks: int, num_workers: int) -> None:
        """Refuse workers with too little memory for their lanes, if the number of lanes is known by now."""
        if self.arguments.is_validation:  # its loader has lanes of its own
            return
        is_listed, asked = self.shards.is_listed, self.arguments.limits.buffer_bytes
        if not is_listed and isinstance(self.arguments.num_lanes, str):
            return
        lanes = -(-self.num_lanes // num_ranks)
        if is_listed:
            worker_bytes(asked, self.run(None), num_lanes=lanes, num_workers=num_workers)
        elif asked is not None:  # the size of a block is not known
            for stage, weights in enumerate(self.arguments.weights):
                read = [packing_bytes(self._read_by(name, stage)) for name in _active(weights)]
                needs = LaneNeeds(packing=sum(read), sources=len(read))
                check_budget(budget_bytes=asked, num_lanes=lanes, num_workers=num_workers, needs=needs)

    def _read_by(self, name: str, last: int) -> list[Pipeline]:
        """The pipelines of a source in the stages up to a last one that read it."""
        weights = self.arguments.weights[: last + 1]
        return [self.pipelines[name][stage] for stage, each in enumerate(weights) if each[name]]

    # -- the run ---------------------------------------------------------------------------------------------------

    def run(self, num_lanes: int | None, continued: Continued = FRESH) -> Run:
        """See `PackedDataset.run`."""
        self.list_shards()
        asked = _Asked(self.num_lanes if num_lanes is None else num_lanes, continued)
        if self._run is None or self._run[0] != asked:
            self._run = asked, self._make_run(asked)
        return self._run[1]

    def _make_run(self, asked: _Asked) -> Run:
        arguments, continued = self.arguments, asked.continued
        epochs = 1 if arguments.is_validation else arguments.epochs
        sources = []
        for name, source in arguments.sources.items():
            end_epoch = source.max_epochs if epochs is None else continued.first_epoch + epochs
            corpus = self.corpus(name, asked.num_lanes)
            if (left := dict(continued.left).get(name)) is not None:
                corpus = corpus.with_left(left, continued.lanes)
            sources.append(RunSource(name, corpus, self.pipelines[name], end_epoch))
        schedule = self._schedule(asked.num_lanes, continued)
        fails_exhausted = epochs is None and arguments.exhausted == "error"
        return Run(tuple(sources), schedule, fails_exhausted)

    def _schedule(self, num_lanes: int, continued: Continued = FRESH) -> Schedule:
        end = {"num_tokens": self.arguments.num_tokens, "num_packs": self.arguments.num_packs}
        return resolve(
            self.planned(),
            num_lanes=num_lanes,
            begun=continued.begun,
            placed=continued.placed,
            since=continued.since,
            **end,
        )

    def known_schedule(self) -> Schedule | None:
        """See `PackedDataset.schedule`."""
        num_lanes = self.arguments.num_lanes
        if not isinstance(num_lanes, str):
            return self._schedule(num_lanes)
        if self.shards.is_listed:
            return self._schedule(self.num_lanes)
        lengths = {stage.seq_len for stage in self.planned()}
        return self._schedule(1) if len(lengths) == 1 else None  # its end is the same for every number of lanes

    def in_step(self) -> dict[str, Any]:
        """See `PackedDataset.in_step`."""
        arguments = self.arguments
        return {
            "epochs": 1 if arguments.is_validation else arguments.epochs,
            "epoch_end": arguments.epoch_end,
            "num_tokens": arguments.num_tokens,
            "num_packs": arguments.num_packs,
            "exhausted": arguments.exhausted,
            "max_epochs": {name: source.max_epochs for name, source in arguments.sources.items()},
        }

    def planned(self) -> list[PlannedStage]:
        """The stages before it is known where they begin."""
        found = []
        for index, (stage, weights) in enumerate(zip(self.arguments.stages, self.arguments.weights, strict=True)):
            pipelines = {name: stages[index] for name, stages in self.pipelines.items() if weights[name]}
            cut = cuts_as_json(pipelines)
            found.append(PlannedStage(stage.begin, weights, cut.pop("seq_len"), cut))
        return found

    def fingerprint(self, num_lanes: int | None) -> dict[str, Any]:
        """See `PackedDataset.fingerprint`."""
        self.list_shards()
        cut = cuts_as_json({name: pipelines[0] for name, pipelines in self.pipelines.items()})
        cut_otherwise = cut.pop("sources", {})
        sources = {}
        for name, pipelines in self.pipelines.items():
            order = {"shuffle": self.corpus(name, num_lanes).order_as_json()}
            own = fingerprint_of_source(self.arguments, name, pipelines[0])
            shards = {"shards": self.shards.fingerprint(name)}
            sources[name] = {**order, **own, **cut_otherwise.get(name, {}), **shards}
        lanes = self.num_lanes if num_lanes is None else num_lanes
        first = next(iter(self.pipelines.values()))[0]
        return {"num_lanes": lanes, **fingerprint(self.arguments, first), **cut, **_flat(sources)}


def _active(weights: Mapping[str, float]) -> set[str]:
    return {name for name, weight in weights.items() if weight}


def _flat(sources: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The part of a fingerprint that is of the sources; of a dataset without names it has no level of its own."""
    return dict(sources[DEFAULT]) if list(sources) == [DEFAULT] else {"sources": dict(sources)}
