"""A pack on the terminal: a block per document in alternating colours, and a line for each row where documents meet.

Everything that colour says is also said by a mark, for terminals and files without it.
"""

import itertools
from collections.abc import Collection

from rich.console import Console
from rich.rule import Rule
from rich.style import Style
from rich.text import Text

from streampack.cli.console import common_folder, plural, printable
from streampack.cli.peek.marks import Looking, stretches
from streampack.cli.peek.pieces import Pieces
from streampack.cli.peek.view import Segment, View
from streampack.corpus.shares import DEFAULT
from streampack.records import IGNORE_INDEX

_COLOURS = ("cyan", "yellow")
_ROLES = {"system": "magenta", "developer": "magenta", "user": "blue", "assistant": "green", "tool": "red"}
_MARKS = {Looking.ROWS: ("⟨", "⟩"), Looking.TARGETS: ("⟦", "⟧")}
_BAR = "┃ "


def draw(console: Console, view: View, pieces: Pieces, looking: Looking) -> None:
    """One pack, with all of its documents."""
    title = f"pack {view.global_pack:,}"
    of_source = "" if view.source == DEFAULT else f", source {view.source}"
    where = f" = pack {view.lane_pack:,} of lane {view.lane}{of_source}"
    console.print(Rule(Text.assemble((title, "bold"), where), align="left"))
    console.print(
        f"{plural(len(view.tokens), 'row')}: {plural(view.num_targets, 'target')}, {view.num_masked:,} masked, "
        f"{view.num_padding:,} padding; {plural(len(view.segments), 'document')}",
        style="dim",
    )
    folder = common_folder(segment.url for segment in view.segments)
    console.print(Text(f"shards in {printable(folder)}", style="dim", overflow="fold"))
    for segment in view.segments:
        colour = _COLOURS[segment.document % len(_COLOURS) - 1]
        bar = Text(_BAR, style=colour)
        _draw_after(console, bar, _heading(segment, folder, colour))
        _draw_after(console, bar, _body(segment, view, pieces, looking, colour))
        _draw_edge(console, segment)
    if view.num_padding:
        first, last = view.num_tokens, len(view.tokens) - 1
        name = pieces.name(view.tokens[-1])
        text = f"rows {first}-{last}  padding  ░░░ {view.num_padding:,} times {name}, label {IGNORE_INDEX}, segment 0"
        _draw_after(console, Text(_BAR, style="dim"), Text(text, style="dim"))
    console.print()


def draw_legend(console: Console, pieces: Pieces, looking: Looking, roles: Collection[str]) -> None:
    """What the marks mean; `roles` are those of the messages that were shown."""
    console.print(Rule(style="dim"))
    begin, end = _MARKS[looking]
    meaning = f" masked: its label is {IGNORE_INDEX}, what follows is no target"
    if looking is Looking.TARGETS:
        meaning = " trained: it is the label of the row before it"
    parts = [
        Text.assemble(
            *((_BAR.strip(), colour) for colour in _COLOURS),
            " documents in turn",
        ),
        Text.assemble(begin, ("row" if looking is Looking.ROWS else "token", _marked(looking)), end, meaning),
        Text("░ padding"),
    ]
    shown = [role for role in _ROLES if role in roles]
    if shown:
        parts.append(Text(" ").join([Text("messages of"), *(Text(role, _ROLES[role]) for role in shown)]))
    if pieces.known:
        parts.append(Text.assemble(("<s>", "bold"), " control token"))
        parts.append(Text("↵ ⇥ line break, tab"))
    else:
        parts.append(Text("numbers are token ids (the tokenizer has no id_to_piece)"))
    line = Text()
    for part in parts:
        if line and line.cell_len + 3 + part.cell_len > console.width:
            console.print(line)
            line = Text()
        line = Text("   ").join([line, part]) if line else part
    console.print(line)


def _draw_after(console: Console, mark: Text, text: Text) -> None:
    """The text, with the mark before each of its lines."""
    for line in text.wrap(console, max(console.width - len(_BAR), 8), overflow="fold"):
        console.print(mark + line, no_wrap=True, crop=False)


def _heading(segment: Segment, folder: str, colour: str) -> Text:
    rows = f"rows {segment.first_row}-{segment.first_row + segment.num_rows - 1}"
    record = f", record {segment.record}" if segment.record else ""
    part = f", part {segment.part}" if segment.part else ""
    heading = Text.assemble(
        (f"document {segment.document}", f"bold {colour}"),
        f"  {rows}  ",
        (f"key {printable(segment.key)}{record}{part}", "bold"),
        f"  {printable(segment.url[len(folder) :])}",
    )
    if segment.document_row:
        heading.append(f"  from its row {segment.document_row:,} on", style="dim")
    return heading


def _body(segment: Segment, view: View, pieces: Pieces, looking: Looking, colour: str) -> Text:
    body = Text(style=colour)
    begin, end = _MARKS[looking]
    unmarked = Style() if looking is Looking.ROWS else Style(dim=True)
    for is_marked, run in itertools.groupby(
        stretches(view, segment, pieces, looking), key=lambda stretch: stretch.is_marked
    ):
        parts = list(run)
        spaces = 0
        if is_marked:  # the mark stands at the first word
            joined = "".join(part.text for part in parts)
            spaces = len(joined) - len(joined.lstrip(" "))
            body.append(" " * spaces + begin)
        for part in parts:
            text, spaces = part.text[spaces:], max(spaces - len(part.text), 0)
            style = _marked(looking) if is_marked else unmarked
            if part.is_control and not (is_marked and looking is Looking.ROWS):
                style += Style(bold=True)
            body.append(text, style=Style.parse(_ROLES.get(part.role, "")) + style)
        if is_marked:
            body.append(end)
    if segment.goes_on:
        body.append(" …")
    return body


def _marked(looking: Looking) -> Style:
    return Style(dim=True, underline=True) if looking is Looking.ROWS else Style(underline=True)


def _draw_edge(console: Console, segment: Segment) -> None:
    edge = segment.edge
    line = Text.assemble(
        (f"row {edge.row}", "bold"),
        f": input {edge.input_text} (document {segment.document}, key {printable(segment.key)}) → label ",
        (str(IGNORE_INDEX), "bold red") if edge.masked else (edge.label_text, "bold green"),
        f" ({edge.reason})",
    )
    _draw_after(console, Text(" " * len(_BAR)), line)
