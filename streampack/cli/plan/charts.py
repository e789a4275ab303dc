"""The pictures of a plan's page: which numbers each shows, and how it is explained.

In:  a `Plan`. Out: charts, each with its title, unit, key and words.
Invariants: pure; nothing is computed here that the plan does not hold.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from markupsafe import Markup

from streampack.cli.console import common_folder, format_bytes, plural, printable
from streampack.cli.plan.estimates import Plan, RankPlan, SourcePlan
from streampack.cli.plan.facts import Basis, estimated, short
from streampack.cli.plan.mixing import MixingPlan
from streampack.cli.plan.pictures import Part, columns, dots, row, stack
from streampack.corpus.shares import DEFAULT

_LEAST_SCALE = 2.0
"""Times the variance of independent documents, where bars of variances end at least."""
_MOST_SIDE_BY_SIDE = 3
"""Sources whose columns stand side by side in a group; more would be too narrow on a phone."""
_ENDLESS = 3
"""Epochs of the last stage that are drawn where it has no end."""


class Row(NamedTuple):
    """A bar with its name and number."""

    name: str
    bar: Markup
    value: str
    """With its unit."""
    note: str = ""


class Chart(NamedTuple):
    """A picture, or rows of bars."""

    title: str
    unit: str
    """Of its numbers, in words."""
    basis: Basis
    words: str
    """What it shows."""
    picture: Markup | None = None
    rows: Sequence[Row] = ()
    key: Sequence[tuple[str, str]] = ()
    """(class of the style, name) of each colour."""


def colour_of(plan: Plan, source: str) -> str:
    """The class of a source's colour; the page's style has one for each source."""
    return f"c{list(plan.sources).index(source)}"


def name_of(source: str) -> str:
    """The name of a source as it is shown."""
    return "all shards" if source == DEFAULT else printable(source)


def run_chart(plan: Plan) -> Chart:
    """The shares of the sources over the run, and where it is."""
    first = [stage.first_tokens for stage in plan.stages]
    last = plan.stages[-1]
    epoch = sum(
        plan.sources[name].corpus.estimated_tokens for name, given in last.sources.items() if given.share > 0
    )
    drawn = last.tokens
    if drawn is None:
        drawn = max((plan.epochs or _ENDLESS) * epoch, last.first_tokens // 3, 1)
    at = None if plan.position is None else plan.position.tokens
    total = max(last.first_tokens + drawn, 1 if at is None else round(1.1 * at) if last.tokens is None else at)
    ends = [*first[1:], total]
    columns_ = []
    for number, (stage, first_tokens, end) in enumerate(zip(plan.stages, first, ends, strict=True)):
        begins = [0.0, *accumulate(given.share for given in stage.sources.values())]
        parts = [
            Part(
                bottom,
                given.share,
                colour_of(plan, name),
                f"stage {number}, {name_of(name)}: {given.share:.2%} of the packs"
                + ("" if given.epochs is None else f", {given.epochs:.2f} epochs"),
            )
            for bottom, (name, given) in zip(begins, stage.sources.items(), strict=False)
        ]
        columns_.append((first_tokens / total, max(end - first_tokens, 0) / total, parts))
    endless = last.tokens is None and plan.epochs is None
    axis = [(step / 4, short(total * step / 4)) for step in range(5)]
    axis[-1] = (1.0, f"{short(total)} …" if endless else f"{short(total)}")
    heads = [(min(begin + 0.02, 1), f"{number}") for number, (begin, *_) in enumerate(columns_)]
    stages = plural(len(plan.stages), "stage")
    until = "it has no end: the picture shows some epochs" if endless else f"it ends after {short(total)} tokens"
    is_cut = len(plan.stages) > 1
    cuts = f"; {stages}, each with its number to the right of the line where it begins" if is_cut else ""
    here = "" if plan.position is None else " The state that was given is where the marked line stands."
    epochs_only = last.tokens is None and plan.epochs is not None
    return Chart(
        title="Sources over the run",
        unit="share of the packs, by tokens of the run (packs × seq_len)",
        basis=estimated(plan) if epochs_only or endless else Basis.EXACT,
        words=f"What the packs are of, from the run's first token on; {until}{cuts}.{here}",
        picture=stack(
            f"Shares of {plural(len(plan.sources), 'source')} in {stages}",
            columns_,
            axis,
            heads if is_cut else (),
            mark=None if at is None else min(at / total, 1),
            mark_name="" if plan.position is None else f"here: {short(plan.position.tokens)}",
            height=220 if len(plan.sources) > 1 else 110,
        ),
        key=[(colour_of(plan, name), name_of(name)) for name in plan.sources],
    )


def length_chart(plan: Plan, source: str) -> Chart:
    """How long documents are."""
    sample = plan.sources[source].sample
    assert sample is not None, "asked for only where there is one"
    bins = sample.lengths
    of_all = max(sum(each.documents for each in bins), 1), max(sum(each.tokens for each in bins), 1)
    place = next(
        (
            index + (plan.seq_len - each.first) / (each.last + 1 - each.first)
            for index, each in enumerate(bins)
            if each.first <= plan.seq_len <= each.last
        ),
        None,
    )
    return Chart(
        title=_titled("Document lengths", source),
        unit="% of the documents and of the tokens, by tokens of a document",
        basis=Basis.SAMPLED,
        words=f"{plural(sample.documents, 'document')} of the sample, in powers of two. Half of them have up to "
        f"{sample.median_tokens:,} tokens, 99 % up to {sample.p99_tokens:,}, the longest {sample.max_tokens:,}.",
        picture=columns(
            "Shares of documents and tokens by length",
            [
                ("documents", [100 * each.documents / of_all[0] for each in bins]),
                ("tokens", [100 * each.tokens / of_all[1] for each in bins]),
            ],
            [short(each.first) for each in bins],
            unit=" %",
            mark=place,
            mark_name=f"a pack: {plan.seq_len:,}",
        ),
        key=[("documents", "of the documents"), ("tokens", "of the tokens")],
    )


def shard_chart(plan: Plan, source: str) -> Chart:
    """Tokens for each byte of the shards that were sampled."""
    sample = plan.sources[source].sample
    assert sample is not None, "asked for only where there is one"
    folder = common_folder(each.url for each in sample.shards)
    values = [(each.tokens / each.bytes, printable(each.url[len(folder) :])) for each in sample.shards]
    fewest, most = values[0], values[-1]
    return Chart(
        title=_titled("Tokens per byte of each shard", source),
        unit="tokens per byte of the shard, headers included",
        basis=Basis.SAMPLED,
        words=f"{plural(len(values), 'shard')} of the sample, in this order. Fewest: {fewest[1]} with {fewest[0]:.3g}; "
        f"most: {most[1]} with {most[0]:.3g}. A shard far from the others has another language or content, or "
        "compresses otherwise.",
        picture=dots(
            "Tokens per byte of each sampled shard",
            values,
            unit="tok/B",
            mean=sum(each.tokens for each in sample.shards) / sum(each.bytes for each in sample.shards),
        ),
    )


def fill_chart(plan: Plan) -> Chart:
    """How full the packs of each packing are."""
    rows = []
    for name, source in plan.sources.items():
        if source.sample is None:
            continue
        for kind, found in source.sample.packings.items():
            chosen = kind == plan.packing
            documents = source.sample.documents
            cut = f"{found.cut_documents / max(documents, 1):.1%} of the documents are in several packs"
            bar = row(f"{kind}: {found.fill:.2%}", [Part(0, found.fill, "chosen" if chosen else "other")])
            of_source = "" if name == DEFAULT else f"{name_of(name)}, "
            rows.append(Row(f"{of_source}{kind}{' (configured)' if chosen else ''}", bar, f"{found.fill:.2%}", cut))
    return Chart(
        title="Fill of each packing",
        unit="% of the rows of packs that hold a token",
        basis=Basis.SAMPLED,
        words=f"The sample's documents of each source packed into packs of {plan.seq_len:,} tokens in each way"
        f"{_of_first(plan)}; the rest is padding. Documents longer than a pack are split.",
        rows=rows,
    )


def lane_chart(plan: Plan) -> Chart:
    """How even the lanes are."""
    active = [
        (name, source)
        for name, source in plan.sources.items()
        if any(name in stage.sources for stage in plan.stages)
    ]
    series = [
        (colour_of(plan, name), [100 * each / max(lanes.mean_tokens, 1) for each in lanes.tokens_of_lanes])
        for name, lanes in ((name, source.lanes) for name, source in active)
    ]
    if len(active) > _MOST_SIDE_BY_SIDE:
        return _lane_rows(plan, [name for name, _ in active], series)
    of_means = " ".join(
        f"{'' if name == DEFAULT else name_of(name) + ': '}{short(source.lanes.mean_tokens)} tokens in the mean lane."
        for name, source in active
    )
    return Chart(
        title="Tokens of the lanes",
        unit="% of the mean lane's tokens in epoch 0; along: smallest lane to largest",
        basis=estimated(plan),
        words=f"From the smallest lane (0 %) over the median (50 %) to the largest (100 %). {of_means} "
        "Where lanes differ, a finite run ends with fillers, and in an endless one lanes drift apart.",
        picture=columns(
            "Tokens of lanes, from the smallest to the largest",
            series,
            [f"{10 * tenth} %" for tenth in range(11)],
            unit=" %",
            height=170,
        ),
        key=[(colour_of(plan, name), name_of(name)) for name, _ in active] if len(active) > 1 else (),
    )


def _lane_rows(plan: Plan, names: Sequence[str], series: Sequence[tuple[str, Sequence[float]]]) -> Chart:
    """The same of many sources: a bar for each, from its smallest lane to its largest."""
    highest, rows = max(100.0, *(values[-1] for _, values in series)), []
    for name, (kind, (least, tenth, *_, ninth, most)) in zip(names, series, strict=True):
        parts = [
            Part(begin / highest, (end - begin) / highest, of, f"{begin:.0f} to {end:.0f} %")
            for begin, end, of in ((least, most, f"{kind} faint"), (tenth, ninth, kind))
        ]
        bar = row(f"{least:.0f} to {most:.0f} %", parts, mark=100 / highest)
        mean = f"{short(plan.sources[name].lanes.mean_tokens)} tokens in the mean lane"
        rows.append(Row(name_of(name), bar, f"{least:.0f} to {most:.0f} %", mean))
    return Chart(
        title="Tokens of the lanes",
        unit=f"% of the mean lane's tokens in epoch 0; bars end at {highest:.0f} %",
        basis=estimated(plan),
        words="From the smallest lane to the largest, paler the smallest and the largest tenth; the line is the mean. "
        "Where lanes differ, a finite run ends with fillers, and in an endless one lanes drift apart.",
        rows=rows,
    )


def memory_chart(rank: RankPlan) -> Chart:
    """What the buffer of a worker is for."""
    lanes, total = rank.lanes_per_worker, max(rank.buffer_bytes, 1)
    named = [
        ("c0", "shuffle windows", lanes * rank.shuffle_window_bytes),
        ("c1", "packing windows", lanes * rank.packing_window_bytes),
        ("c2", "ranges of shards being read", lanes * rank.range_bytes),
    ]
    held = [each for each in named if each[2]]
    begins = [0, *accumulate(size for *_, size in held)]
    parts = [
        Part(begin / total, size / total, kind, f"{name}: {format_bytes(size)}")
        for begin, (kind, name, size) in zip(begins, held, strict=False)
    ]
    free = max(total - begins[-1], 0)
    whose = "worker" if rank.workers else "rank"
    return Chart(
        title=f"Buffer of a {whose}",
        unit=f"bytes, of {format_bytes(total)} for {plural(lanes, 'lane')}",
        basis=Basis.EXACT,
        words="The most that lanes hold at once, in any stage; what is free keeps lanes from being parked.",
        rows=[
            Row(
                "buffer",
                row("The buffer", parts, height=26),
                format_bytes(total),
                "",
            )
        ],
        key=[
            *((kind, f"{name} {format_bytes(size)}") for kind, name, size in held),
            ("ground", f"free {format_bytes(free)}"),
        ],
    )


def mixing_chart(plan: Plan) -> Chart:
    """How well the order mixes."""
    rows, is_mix = list[Row](), len(plan.sources) > 1
    shown = {name: source for name, source in plan.sources.items() if name in plan.stages[0].sources}
    highest = max(_LEAST_SCALE, *(source.mixing.variance or 0 for source in shown.values()))
    for name, source in shown.items():
        how = f"; {_window(source.mixing)}" if is_mix else ""
        rows += _mixing_rows(source, "" if name == DEFAULT else f"{name_of(name)}: ", how, highest)
    how = "of each source in the first stage" if is_mix else _window(next(iter(plan.sources.values())).mixing)
    return Chart(
        title="Order quality",
        unit="chances in %, and times (×) the variance of independent documents",
        basis=estimated(plan),
        words=f"How much the documents of a pack have in common, in the first windows of the run: {how}. The bar is "
        f"this run, the line a full shuffle of all documents. Bars of chances end at 100 %, those of variances at "
        f"{highest:.3g} ×.",
        rows=rows,
    )


def _window(mixing: MixingPlan) -> str:
    """What a lane mixes at a time."""
    if not mixing.window:
        return "documents come in the order of their shard, and nothing is mixed"
    shards = f"{mixing.shards_per_window:.3g}"
    size = f"{format_bytes(mixing.window_bytes)} from {shards} {'shard' if shards == '1' else 'shards'}"
    return f"a lane mixes the documents of {mixing.window} blocks at a time, {size}"


def _of_first(plan: Plan) -> str:
    """Says that the packs are those of the first stage, where others have packs of another size."""
    others = [number for number, stage in enumerate(plan.stages) if stage.seq_len != plan.seq_len]
    if not others:
        return ""
    named = ", ".join(f"{number} ({plan.stages[number].seq_len:,})" for number in others)
    return f", as in stage 0; other sizes, in {'stage' if len(others) == 1 else 'stages'} {named}, are not shown"


def _mixing_rows(source: SourcePlan, prefix: str, how: str, highest: float) -> list[Row]:
    mixing, rows = source.mixing, list[Row]()
    if mixing.same_block is not None and not prefix:
        bar = row(f"{mixing.same_block:.1%}", [Part(0, mixing.same_block, "chosen")], mark=0)
        note = "of two documents of a pack; a full shuffle: about 0 %"
        rows.append(Row(f"{prefix}from the same block", bar, f"{mixing.same_block:.1%}", note))
    shuffled = mixing.same_shard_shuffled
    bar = row(f"{mixing.same_shard:.1%}", [Part(0, mixing.same_shard, "chosen")], mark=shuffled)
    note = f"of two documents of a pack; a full shuffle: {shuffled:.1%}{how}"
    rows.append(Row(f"{prefix}from the same shard", bar, f"{mixing.same_shard:.1%}", note))
    if mixing.variance is not None and mixing.documents_per_pack is not None:
        bar = row(f"{mixing.variance:.2f} times", [Part(0, mixing.variance / highest, "chosen")], mark=1 / highest)
        note = (
            f"of a shard's part in a global batch, with {mixing.documents_per_pack:.3g} documents in a pack (sampled); "
            "a full shuffle: 1 ×"
        )
        rows.append(Row(f"{prefix}variance", bar, f"{mixing.variance:.2f} ×", note))
    return rows


def _titled(title: str, source: str) -> str:
    return title if source == DEFAULT else f"{title}: {name_of(source)}"
