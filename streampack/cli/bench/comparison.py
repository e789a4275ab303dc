"""The whole pipeline and each of its stages against the tokenizer alone, interleaved, by CPU time.

In:  a function that makes the dataset of some shards, and `Slice`s to read.
Out: frozen records of plain numbers; nothing is printed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from streampack.cli.bench.slices import Slice
from streampack.cli.bench.stages import MakeDataset, SliceStages, whole_pipeline
from streampack.cli.bench.stopwatch import Spread, Variant, Work, cpu_ratio, interleave
from streampack.records import Tokenizer
from streampack.tar.codecs import is_compressed

WITHOUT_TOKENIZER = "pipeline without its tokenizer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One of the pipelines compared, and its ratio to the first."""

    name: str
    tokens_per_s: Spread
    """For each second of CPU time."""
    ratio: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage by itself, its input in memory."""

    name: str
    document_us: float
    """Microseconds of CPU time for each document."""
    pack_us: float
    share: float
    """Of the whole pipeline's CPU time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The whole pipeline and its stages against the tokenizer alone."""

    documents: int
    """Of all rounds that count."""
    tokens: int
    contenders: list[Contender]
    stages: list[Stage]


def compare(
    make: MakeDataset,
    slices: Sequence[Slice],
    *,
    plain: Tokenizer | None,
    engines: dict[str, Tokenizer | None],
    advance: Callable[[str], None] = lambda name: None,
) -> Comparison:
    """The pipeline with each engine, and the stages with the first one, against `plain.encode`; a slice a round.

    Without a plain tokenizer (the documents are token ids already) the first pipeline is what all are compared with.
    """
    rounds = [SliceStages(make, part, plain) for part in slices]
    variants = [Variant("tokenizer alone", lambda number: rounds[number].plain())] if plain is not None else []
    for name, tokenizer in engines.items():
        variants.append(Variant(f"pipeline, {name}", partial(_pipeline, rounds, tokenizer)))
    first = next(iter(engines.values()))
    if first is not None:
        variants.append(Variant(WITHOUT_TOKENIZER, lambda number: rounds[number].pipeline_of_known_ids()))
    stages = {
        "storage": lambda number: rounds[number].storage(),
        "decompress": lambda number: rounds[number].decompress(),
        "tar": lambda number: rounds[number].tar(),
        "documents": lambda number: rounds[number].documents(),
        "tokenizer": lambda number: rounds[number].tokenizer(first),
        "packing": lambda number: rounds[number].packing(),
        "batches": lambda number: rounds[number].batches(),
    }
    if first is None:
        del stages["tokenizer"]
    if not any(is_compressed(path) for part in slices for path in part.shards):
        del stages["decompress"]
    variants += [Variant(name, prepare) for name, prepare in stages.items()]
    readings = interleave(variants, len(slices), advance=advance)
    base = readings[variants[0].name]
    counted = rounds[1:] or rounds
    num_documents = sum(each.num_documents for each in counted)
    num_packs = sum(each.num_packs for each in counted)

    def total(name: str) -> float:
        return sum(reading.cpu_s for reading in readings[name])

    whole = total(f"pipeline, {next(iter(engines))}")
    spent = {name: total(name) for name in stages}
    bare = whole if first is None else total(WITHOUT_TOKENIZER)
    spent["lanes, cursors, digests"] = bare - sum(s for name, s in spent.items() if name != "tokenizer")
    # A stage that runs by itself finds its code and data in the nearest processor caches; in turn with others, less.
    spent["all of these in turn, not alone"] = whole - sum(spent.values())
    return Comparison(
        documents=num_documents,
        tokens=sum(reading.units for reading in base),
        contenders=[
            Contender(
                name=variant.name,
                tokens_per_s=Spread.of([reading.per_cpu_s for reading in readings[variant.name]]),
                ratio=cpu_ratio(readings[variant.name], base),
            )
            for variant in variants
            if variant.name not in stages
        ],
        stages=[
            Stage(
                name=name,
                document_us=seconds / num_documents * 1e6,
                pack_us=seconds / num_packs * 1e6,
                share=seconds / whole,
            )
            for name, seconds in spent.items()
        ],
    )


def _pipeline(rounds: Sequence[SliceStages], tokenizer: Tokenizer | None, number: int) -> Work:
    return whole_pipeline(rounds[number].dataset(tokenizer))
