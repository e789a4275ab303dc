"""The figures of a plan in words: what the terminal and the page show of a corpus, its sample, lanes, ranks and memory.

In:  a `Plan`. Out: blocks of facts, each a number with its unit, a remark, and where the number comes from.
Invariants: pure; nothing is computed here that the plan does not hold.
"""

from enum import StrEnum
from typing import NamedTuple

from streampack.cli.console import format_bytes, plural
from streampack.cli.plan.estimates import CorpusPlan, LanePlan, Plan, RankPlan
from streampack.cli.plan.measured import SamplePlan
from streampack.cli.plan.position import RunPosition
from streampack.cli.plan.validation import ValidationPlan


class Basis(StrEnum):
    """Where a number comes from."""

    EXACT = "exact"
    """It is computed from what is known: sizes, the configuration, the functions of the run."""
    SAMPLED = "sampled"
    """It is measured on the sample, or estimated from that."""
    ASSUMED = "assumed"
    """It follows from an assumed number of bytes for each token, or from an assumed speed."""


class Fact(NamedTuple):
    """A line."""

    name: str
    value: str
    """With its unit where `unit` is empty."""
    unit: str = ""
    note: str = ""
    """Follows the unit as it is, with its comma or space."""
    basis: Basis = Basis.EXACT
    counts: str = ""
    """What the number counts, where the name says so and `unit` is empty: `shards 9`."""

    @property
    def remark(self) -> str:
        """What stands after the value on the terminal."""
        return f"{self.unit}{self.note}".strip() if self.unit else self.note


class Block(NamedTuple):
    """Facts under one heading."""

    title: str
    facts: list[Fact]


def estimated(plan: Plan) -> Basis:
    """Where the tokens of the plan come from."""
    samples = [source.sample for source in plan.sources.values()]
    return Basis.ASSUMED if all(sample is None for sample in samples) else Basis.SAMPLED


def corpus_block(plan: Plan, name: str, corpus: CorpusPlan, bytes_per_token: float) -> Block:
    """What the shards of a source, or of the run, are."""
    whole = "of unknown size, or marked in the manifest"
    if corpus.num_compressed:
        whole = "compressed" if corpus.num_compressed == corpus.num_whole else f"{corpus.num_compressed:,} compressed"
    basis = estimated(plan)
    assumed = " (assumed)" if basis is Basis.ASSUMED else ""
    epochs = "endless" if plan.epochs is None else plural(plan.epochs, "epoch")
    of_whole = f"{format_bytes(corpus.whole_bytes)}, each by one lane: {whole}" if corpus.num_whole else ""
    return Block(
        f"Corpus of {name}",
        [
            Fact("shards", f"{corpus.num_shards:,}", note=format_bytes(corpus.total_bytes), counts="shards"),
            Fact(
                "divided",
                f"{corpus.num_cut:,}",
                note=f"{format_bytes(corpus.cut_bytes)}, each among several lanes",
                counts="shards",
            ),
            Fact("read whole", f"{corpus.num_whole:,}", note=of_whole, counts="shards"),
            Fact(
                "tokens",
                f"~{short(corpus.estimated_tokens)}",
                note=f"in an epoch, with {bytes_per_token:.3g} bytes a token{assumed}; {epochs}",
                basis=basis,
                counts="tokens",
            ),
        ],
    )


def sample_block(plan: Plan, sample: SamplePlan) -> Block:
    """What the sample says."""
    all_of_it = ": all of the corpus" if sample.is_complete else ""
    facts = [
        Fact("read", format_bytes(sample.bytes), note=f"{plural(sample.documents, 'document')}{all_of_it}"),
        Fact(
            "bytes a token",
            f"{sample.bytes_per_token:.2f}",
            note=f"of shards, headers included; differs by {sample.spread:.1%} from place to place",
            basis=Basis.SAMPLED,
            counts="bytes a token",
        ),
        Fact(
            "document",
            f"{sample.mean_tokens:,.0f}",
            "tokens",
            f"; median {sample.median_tokens:,}, 99 % up to {sample.p99_tokens:,}, longest {sample.max_tokens:,}",
            Basis.SAMPLED,
        ),
    ]
    if sample.cut_documents:
        what = f"of the tokens, which `overflow` takes from {plural(sample.cut_documents, 'document')}"
        facts.append(Fact("left out", f"{sample.cut_share:.1%}", note=what, basis=Basis.SAMPLED))
    if sample.samples_per_block:
        size = format_bytes(sample.block_bytes)
        fill = f"{sample.documents_per_block:.3g}"
        note = f" begin in each {size} of a shard"
        facts.append(Fact("block fill", fill, "documents", note, Basis.SAMPLED))
    if sample.pack_fill < 1:
        note = f"of the rows of a pack of {plan.seq_len:,}"
        facts.append(Fact("pack fill", f"{sample.pack_fill:.1%}", note=note, basis=Basis.SAMPLED))
    return Block("Sample", facts)


def validation_block(plan: Plan, validation: ValidationPlan) -> Block:
    """What an iteration over a validation set gives."""
    bounded = f", of ~{validation.packs_of_set:,} in the set" if validation.packs < validation.packs_of_set else ""
    each, basis = plural(validation.batch_size, "pack"), estimated(plan)
    sources = [
        Fact(f"  of {name}", f"~{packs:,}", basis=basis, counts="packs")
        for name, packs in validation.packs_of_sources.items()
    ]
    same = f"in each iteration{bounded}; the same ones on any number of ranks"
    on_each = f"in each iteration, on each rank; {each} each"
    return Block(
        f"Validation on {plural(validation.ranks, 'rank')}",
        [
            Fact("packs", f"~{validation.packs:,}", note=same, basis=basis, counts="packs"),
            *(sources if len(sources) > 1 else []),
            Fact("batches", f"~{validation.batches:,}", note=on_each, basis=basis, counts="batches"),
        ],
    )


def position_block(plan: Plan, position: RunPosition) -> Block:
    """Where the run is."""
    of_budget = "" if position.share is None else f"{position.share:.1%} of the budget; "
    stage = f"stage {position.stage}; " if len(plan.stages) > 1 else ""
    several = len(position.epochs) > 1
    epochs = [
        Fact(
            f"  of {name}" if several else "epochs",
            f"{each:.2f}",
            "epochs",
            ", by the tokens handed out and those of an epoch",
            estimated(plan),
        )
        for name, each in position.epochs.items()
    ]
    step = f"; step {position.step:,} comes next, if the global batch was the same" if plan.rank else ""
    return Block(
        "Where the run is",
        [
            Fact("handed out", f"{position.packs:,}", "packs", step),
            Fact("tokens", short(position.tokens), note=f"{of_budget}{stage}packs times seq_len", counts="tokens"),
            *epochs,
        ],
    )


def lane_block(plan: Plan) -> Block:
    """The lanes; which ranks fit is shown beside it."""
    lanes = plan.lanes
    auto = "from the bytes of the data (auto)" if lanes.auto else "as configured"
    return Block(
        "Lanes",
        [
            Fact("lanes", f"{lanes.num_lanes:,}", note=auto, counts="lanes"),
            *(_of_source(plan, lanes) if len(plan.sources) == 1 else []),
            Fact("state", format_bytes(lanes.state_bytes), note="in a checkpoint, for all lanes"),
            *ends(plan, lanes),
        ],
    )


def _of_source(plan: Plan, lanes: LanePlan) -> list[Fact]:
    least, mean, most = (format_bytes(size) for size in (lanes.min_bytes, lanes.mean_bytes, lanes.max_bytes))
    note = "in epoch 0, the same for all" if least == most else f"mean in epoch 0; lowest {least}, highest {most}"
    if lanes.num_empty:
        note += f"; {lanes.num_empty:,} have none"
    most_of = max(lanes.mean_tokens, 1)
    blocks: list[Fact] = []
    if lanes.block_bytes:
        each = f"{lanes.mean_bytes / lanes.block_bytes:,.0f}"
        windows = f"of {format_bytes(lanes.block_bytes)}, of which {lanes.window} at a time are mixed"
        blocks.append(Fact("blocks per lane", each, note=windows, counts="blocks"))
    lowest, highest = lanes.min_tokens / most_of, lanes.max_tokens / most_of
    return [
        Fact("bytes per lane", mean, note=note),
        *blocks,
        Fact(
            "tokens per lane",
            f"~{short(lanes.mean_tokens)}",
            note=f"mean in epoch 0; lowest {lowest:.1%}, highest {highest:.1%} of it",
            basis=estimated(plan),
            counts="tokens",
        ),
    ]


def ends(plan: Plan, lanes: LanePlan) -> list[Fact]:
    """What a finite run has of fillers, or leaves unread."""
    facts, basis = [], estimated(plan)
    if lanes.filler_share is not None:
        note = "of all packs, estimated from the lanes' tokens"
        facts.append(Fact("fillers", f"{lanes.filler_share:.1%}", note=note, basis=basis))
    if lanes.unread_share is not None:
        note = "of all packs, as the run ends with its shortest lane"
        facts.append(Fact("not read", f"{lanes.unread_share:.1%}", note=note, basis=basis))
    return facts


def rank_block(plan: Plan, rank: RankPlan) -> Block:
    """The work of the ranks."""
    workers = f"{rank.workers} workers" if rank.workers != 1 else "1 worker"
    most = f"at most {rank.lanes_per_worker:,} per worker" if rank.workers else "read in the main process"
    tokens = rank.global_batch * plan.seq_len
    end = "; with fillers" if plan.lanes.filler_share else ""
    end = "; up to the end of the shortest lane" if plan.lanes.unread_share else end
    batches: list[Fact] = []
    if rank.batches_per_epoch is not None:
        of_epoch = f"in an epoch, on each rank{end}"
        count = f"~{rank.batches_per_epoch:,}"
        batches.append(Fact("batches", count, note=of_epoch, basis=estimated(plan), counts="batches"))
    if rank.batches is not None:
        name = "" if batches else "batches"
        batches.append(Fact(name, f"{rank.batches:,}", note="in the run, on each rank", counts="batches"))
    each = rank.requests_per_epoch
    in_epoch = "" if each is None else "in an epoch; "
    at_start = f"{in_epoch}{rank.requests_at_start:,} before the first batches"
    return Block(
        f"On {plural(rank.ranks, 'rank')} with {workers}",
        [
            Fact("lanes per rank", f"{rank.lanes_per_rank:,}", note=most, counts="lanes"),
            Fact(
                "global batch",
                f"{rank.global_batch:,}",
                "packs",
                f" of {plan.seq_len:,}: {short(tokens)} tokens; {plural(rank.batch_size, 'pack')} per rank",
            ),
            *batches,
            Fact(
                "requests",
                f"~{rank.requests_per_s:,.0f}/s" if rank.requests_per_s >= 10 else f"~{rank.requests_per_s:.2g}/s",
                note=f"of {format_bytes(rank.request_bytes)}, over all ranks, at {plan.tokens_per_second:,.0f} "
                "tokens/s a rank",
                basis=Basis.ASSUMED,
            ),
            Fact("", "" if each is None else short(each), note=at_start, counts="requests"),
        ],
    )


def memory_block(plan: Plan, rank: RankPlan) -> Block:
    """What a worker holds."""
    tokens = short(rank.spare_tokens)
    lanes = plural(rank.lanes_per_worker, "lane")
    of_sources = f", each with {rank.sources_at_once} sources at a time" if rank.sources_at_once > 1 else ""
    stage = " in the stage that needs most" if len(plan.stages) > 1 else ""
    needed = f"for {lanes}{of_sources}{stage}; limits.buffer_bytes of at least {rank.needed_bytes:,}"
    facts = [
        Fact("buffer", format_bytes(rank.buffer_bytes), note=needed),
        Fact("share of a lane", format_bytes(rank.share_bytes)),
    ]
    for name, size in (("shuffle", rank.shuffle_window_bytes), ("packing", rank.packing_window_bytes)):
        if size:
            facts.append(Fact(f"{name} window", format_bytes(size), note="of it, held as long as the window lasts"))
    held = "the part of a shard that a lane holds at most besides"
    facts.append(Fact("range", format_bytes(rank.range_bytes), note=held))
    if rank.shuffle_window_bytes:
        facts.append(Fact("parked", "never", note="a lane keeps its window"))
    elif rank.parks_often:
        facts.append(Fact("parked", "often", note=f"a share holds {tokens} tokens, less than two packs"))
    else:
        facts.append(Fact("parked", "rarely", note=f"over {tokens} tokens per lane"))
    prefetched = Fact("prefetched", format_bytes(rank.prefetch_bytes), note="of packs, over all workers of a rank")
    return Block("Memory of a worker" if rank.workers else "Memory of a rank", [*facts, prefetched])


def short(number: float) -> str:
    """The number with a unit: `1.2 M`."""
    for unit in ("", " k", " M", " G"):
        if number < 1000:
            return f"{number:.0f}{unit}" if number >= 100 or not unit else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:,.1f} T"
