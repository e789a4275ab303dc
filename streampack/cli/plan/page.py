"""A plan as one HTML page that needs nothing else: no script, no font, no file.

In:  a `Plan`, and the next packs of the run. Out: the text of the page.
Invariants: the figures are those of the terminal, in the same words; each has its unit, and says where it was sampled
or assumed. Colours follow the reader's theme; the template has all of the style.
"""

from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files

import jinja2
from markupsafe import Markup

from streampack.cli.console import common_folder, format_bytes, plural, printable
from streampack.cli.peek.marks import Looking, stretches
from streampack.cli.peek.pieces import Pieces
from streampack.cli.peek.view import Segment, View
from streampack.cli.plan.charts import (
    Chart,
    fill_chart,
    lane_chart,
    length_chart,
    memory_chart,
    mixing_chart,
    run_chart,
    shard_chart,
)
from streampack.cli.plan.estimates import Plan
from streampack.cli.plan.facts import (
    Basis,
    Block,
    Fact,
    corpus_block,
    estimated,
    lane_block,
    memory_block,
    position_block,
    rank_block,
    sample_block,
    short,
    validation_block,
)
from streampack.cli.plan.pictures import Part, row
from streampack.corpus.shares import DEFAULT

_COLOURS = 8
"""Of the style; more sources have these again, hatched."""
_SHOWN_ROWS = 1_000
"""Of a document in a pack; of a longer one the first ones and the last one hundred."""


def page(plan: Plan, views: Sequence[View], pieces: Pieces, why_no_packs: str) -> str:
    """The page; `views` are the next packs, or `why_no_packs` says why there are none."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"short": short, "bytes": format_bytes}
    template = environment.from_string(files("streampack.cli.plan").joinpath("page.html").read_text("utf-8"))
    folder = common_folder(segment.url for view in views for segment in view.segments)
    return template.render(
        plan=plan,
        is_mix=len(plan.sources) > 1,
        hatched=range(_COLOURS, len(plan.sources)),
        headline=_headline(plan),
        estimate=estimated(plan),
        basis_words=_basis_words(plan),
        sections=_sections(plan),
        stages=plan.stages if len(plan.sources) > 1 or len(plan.stages) > 1 or plan.budget_packs else [],
        packs=[_pack(view, pieces, folder) for view in views],
        folder=printable(folder),
        pieces_known=pieces.known,
        why_no_packs=why_no_packs,
        default=DEFAULT,
    )


def _basis_words(plan: Plan) -> dict[Basis, str]:
    """The word beside a number that is not exact."""
    samples = [source.sample for source in plan.sources.values()]
    whole = all(sample is not None and sample.is_complete for sample in samples)
    return {Basis.EXACT: "", Basis.SAMPLED: "measured on all" if whole else "sampled", Basis.ASSUMED: "assumed"}


def _headline(plan: Plan) -> list[Fact]:
    """What to know first."""
    tokens = sum(source.corpus.estimated_tokens for source in plan.sources.values())
    size = sum(source.corpus.total_bytes for source in plan.sources.values())
    shards = sum(source.corpus.num_shards for source in plan.sources.values())
    facts = [
        Fact("corpus", short(tokens), "tokens", f" in {plural(shards, 'shard')}, {format_bytes(size)}", estimated(plan))
    ]
    if plan.validation is not None:
        of_tokens = f" of {plan.seq_len:,} tokens"
        facts.append(Fact("iteration", f"{plan.validation.packs:,}", "packs", of_tokens, estimated(plan)))
        return facts
    if plan.budget_packs is not None:
        total = plan.stages[-1].first_tokens + (plan.stages[-1].tokens or 0)
        facts.append(Fact("run", short(total), "tokens", f" in {plural(plan.budget_packs, 'pack')}"))
    elif plan.epochs is None:
        facts.append(Fact("run", "endless", "", ""))
    else:
        facts.append(Fact("run", f"{plan.epochs:,}", "epoch" if plan.epochs == 1 else "epochs"))
    facts.append(Fact("pack", f"{plan.seq_len:,}", "tokens", "" if len(plan.stages) == 1 else " in the first stage"))
    facts.append(Fact("lanes", f"{plan.lanes.num_lanes:,}", "lanes", " `streampack relane` changes them"))
    if plan.rank is not None:
        batch = short(plan.rank.global_batch * plan.seq_len)
        unit, workers = "ranks" if plan.rank.ranks > 1 else "rank", plural(plan.rank.workers, "worker")
        facts.append(Fact("ranks", f"{plan.rank.ranks:,}", unit, f" with {workers} each"))
        facts.append(Fact("global batch", batch, "tokens", f" in {plural(plan.rank.global_batch, 'pack')}"))
    if plan.lanes.filler_share is not None:
        facts.append(Fact("fillers", f"{plan.lanes.filler_share:.1%}", "", "of all packs", estimated(plan)))
    if plan.position is not None:
        of = f" of {short(plan.position.tokens)} tokens" if plan.position.share is None else " of the budget"
        share = "" if plan.position.share is None else f"{plan.position.share:.1%}"
        facts.append(Fact("done", share or f"{plan.position.packs:,}", "" if share else "packs", of))
    return facts


def _sections(plan: Plan) -> dict[str, list[Block | Chart]]:
    """Charts and facts by section; a section without any is left out."""
    found: dict[str, list[Block | Chart]] = {}
    if plan.stages:
        found["The run"] = [run_chart(plan)]
        if plan.position is not None:
            found["The run"].append(position_block(plan, plan.position))
    if plan.validation is not None:
        found["The validation set"] = [validation_block(plan, plan.validation)]
    data: list[Block | Chart] = []
    if len(plan.sources) == 1:  # the template has a table of several
        data.append(corpus_block(plan, plan.config, plan.corpus, plan.bytes_per_token))
        if plan.sample is not None:
            data.append(sample_block(plan, plan.sample))
    data += [length_chart(plan, name) for name, source in plan.sources.items() if source.sample is not None]
    data += [shard_chart(plan, name) for name, source in plan.sources.items() if source.sample is not None]
    found["The data"] = data
    if any(source.sample is not None for source in plan.sources.values()):
        found["Packing"] = [fill_chart(plan)]
    if plan.stages:
        found["Order"] = [mixing_chart(plan)]
        found["Lanes and ranks"] = [lane_block(plan)]
        if plan.rank is not None:
            found["Lanes and ranks"].append(rank_block(plan, plan.rank))
        found["Lanes and ranks"].append(lane_chart(plan))
        if plan.rank is not None:
            found["Memory"] = [memory_chart(plan.rank), memory_block(plan, plan.rank)]
    return found


# -- packs ---------------------------------------------------------------------------------------------------------


def _pack(view: View, pieces: Pieces, folder: str) -> dict[str, object]:
    """What the template shows of a pack."""
    return {
        "view": view,
        "strip": _strip(view),
        "documents": [_document(view, segment, pieces, folder) for segment in view.segments],
        "padding": f"{view.num_padding:,} times {pieces.name(view.tokens[-1])}" if view.num_padding else "",
    }


def _strip(view: View) -> Markup:
    """A pack at a glance: its documents side by side."""
    size = len(view.tokens)
    parts = [
        Part(
            each.first_row / size,
            each.num_rows / size,
            f"document{each.document % 2}",
            f"document {each.document}: {plural(each.num_rows, 'row')}, key {printable(each.key)}",
        )
        for each in view.segments
    ]
    return row(f"Pack {view.global_pack:,}: {plural(len(parts), 'document')} in {size:,} rows", parts, height=14)


def _document(view: View, segment: Segment, pieces: Pieces, folder: str) -> dict[str, object]:
    last = segment.first_row + segment.num_rows - 1
    record = f", record {segment.record:,}" if segment.record else ""
    part = f", part {segment.part:,}" if segment.part else ""
    edge = segment.edge
    label = str(edge.label) if edge.masked else edge.label_text
    left_out, segments = 0, [segment]
    if segment.num_rows > _SHOWN_ROWS:
        left_out = segment.num_rows - _SHOWN_ROWS
        segments = _cut_short(segment, _SHOWN_ROWS - 100, 100)
    return {
        "segment": segment,
        "heading": f"rows {segment.first_row:,} to {last:,}",
        "where": f"key {printable(segment.key)}{record}{part}",
        "shard": printable(segment.url[len(folder) :]),
        "texts": [stretches(view, each, pieces, Looking.ROWS) for each in segments],
        "left_out": left_out,
        "edge": f"row {edge.row:,}: input {edge.input_text} → label {label} ({edge.reason})",
    }


def _cut_short(segment: Segment, first: int, last: int) -> list[Segment]:
    """The first and the last rows of a segment, as segments."""
    at_end = replace(segment, first_row=segment.first_row + segment.num_rows - last, num_rows=last)
    return [replace(segment, num_rows=first), at_end]
