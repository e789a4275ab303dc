"""Horizontal bars as an SVG file: a bar for a median, a line from the lowest to the highest value, a label.

In:  panels of groups of bars with their values; each panel has a scale and a unit of its own.
Out: the text of an SVG file, readable on light and on dark backgrounds.
Never: a font, a script or anything else that a viewer would have to fetch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from xml.sax.saxutils import escape

from streampack.cli.bench.stopwatch import Spread

_WIDTH, _LABEL, _ROW, _RIGHT = 760, 250, 22, 84
_STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #333a44 }
  .title { font-weight: 600; font-size: 14px } .group { font-weight: 600 } .note { font-size: 11px; fill: #6b7480 }
  .bar { fill: #3f76b5 } .own { fill: #d9822b } .range { stroke: #333a44; stroke-width: 1.2 }
  .grid { stroke: #8a93a0; stroke-opacity: 0.3 } .one { stroke: #8a93a0; stroke-dasharray: 4 3 }
  @media (prefers-color-scheme: dark) {
    text { fill: #d5dae2 } .note { fill: #9aa3ae } .range { stroke: #d5dae2 }
    .bar { fill: #5b93d3 } .own { fill: #e09a4f }
  }
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One row."""

    label: str
    value: Spread
    is_own: bool = False
    """Drawn in the second colour: streampack's own."""
    shown: str = ""
    """In place of the median: with a unit, say."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows under one heading."""

    heading: str
    bars: list[Bar]


@dataclass(frozen=True, slots=True)
class Panel:
    """Groups on one scale from 0."""

    groups: Sequence[Group]
    unit: str
    mark: float | None = None
    """A dashed line stands here."""


def draw_bars(title: str, groups: Sequence[Group], *, unit: str, note: str = "", mark: float | None = 1.0) -> str:
    """All bars on one scale."""
    return draw_panels(title, [Panel(groups, f"{unit}. {note}".strip(), mark)])


def draw_panels(title: str, panels: Sequence[Panel], *, notes: Sequence[str] = ()) -> str:
    """Panels, one below the other; `notes` stand under the title."""
    shapes = [_text(8, 22, title, "title")]
    y = 36.0
    for note in notes:
        shapes.append(_text(8, y + 4, note, "note"))
        y += 16
    y += 8
    for panel in panels:
        drawn, y = _panel(panel, y)
        shapes += drawn
    height = round(y)
    label = escape(title, {'"': "&quot;"})
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">',
            f"<style>{_STYLE}</style>",
            *shapes,
            "</svg>\n",
        ]
    )


def _panel(panel: Panel, top: float) -> tuple[list[str], float]:
    """The shapes of a panel that begins at a height, and where it ends."""
    highest = max(bar.value.high for group in panel.groups for bar in group.bars)
    step = _step(highest)
    num_steps = max(ceil(highest / step), 1)
    scale = (_WIDTH - _LABEL - _RIGHT) / (num_steps * step)
    rows: list[str] = []
    y = top
    for group in panel.groups:
        y += 8
        rows.append(_text(8, y + 14, group.heading, "group"))
        y += _ROW
        for bar in group.bars:
            low, median, high = (_LABEL + value * scale for value in (bar.value.low, bar.value.median, bar.value.high))
            middle = y + _ROW / 2
            rows += [
                _text(_LABEL - 8, middle + 4, bar.label, "", anchor="end"),
                _rectangle("own" if bar.is_own else "bar", y + 4, median - _LABEL),
                _path("range", f"M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8"),
                _text(high + 6, middle + 4, bar.shown or number(bar.value.median), ""),
            ]
            y += _ROW
    bottom = y + 6
    grid = []
    for index in range(num_steps + 1):
        x = _LABEL + index * step * scale
        grid.append(_path("grid", f"M{x:.1f} {top}V{bottom}"))
        grid.append(_text(x, bottom + 16, f"{index * step:,g}", "note", anchor="middle"))
    if panel.mark is not None and panel.mark <= num_steps * step:
        grid.append(_path("one", f"M{_LABEL + panel.mark * scale:.1f} {top}V{bottom}"))
    return [*grid, *rows, _text(8, bottom + 34, panel.unit, "note")], bottom + 46


def number(value: float) -> str:
    """A number with two or three significant digits.

    >>> [number(value) for value in (0, 0.081, 0.97, 5.25, 41.3, 1234.5)]
    ['0', '0.08', '0.97', '5.2', '41', '1,234']
    """
    if value >= 10:
        return f"{value:,.0f}"
    return "0" if value == 0 else f"{value:.1f}" if value >= 2 else f"{value:.2f}"


def _step(highest: float) -> float:
    """The distance of the lines of the grid: 1, 2 or 5 times a power of ten."""
    rough = max(highest, 1e-9) / 6
    power = 10.0 ** floor(log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)


def _text(x: float, y: float, text: str, kind: str, *, anchor: str = "start") -> str:
    classes = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{classes} text-anchor="{anchor}">{escape(text)}</text>'


def _rectangle(kind: str, y: float, width: float) -> str:
    return f'<rect class="{kind}" x="{_LABEL}" y="{y}" width="{width:.1f}" height="{_ROW - 8}" rx="2"/>'


def _path(kind: str, drawing: str) -> str:
    return f'<path class="{kind}" d="{drawing}" fill="none"/>'
