"""Pictures of a plan as SVG: they are as wide as the page, so that text keeps its size on any screen.

In:  records of numbers. Out: SVG, with positions along the width in percent and along the height in pixels.
Never: a colour; the page's style gives one to each class, in both themes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, floor, log10

from markupsafe import Markup

_TICKS = 0.1
"""The share of the width that the names of heights take."""
_NARROWEST = 250
"""Pixels of a drawing's width on the smallest screen; text has to fit in there."""
_LETTER = 6.6
"""Pixels of a letter's width, at most as a mean."""


@dataclass(frozen=True, slots=True)
class Part:
    """A rectangle of a row or a column; sizes are shares of the whole, 0 to 1."""

    begin: float
    size: float
    kind: str
    """A class of the style."""
    title: str = ""
    """Shown where a pointer rests."""


@dataclass(slots=True)
class Drawing:
    """An SVG of a fixed height in pixels."""

    label: str
    """What it shows, for those who do not see it."""
    height: int
    shapes: list[Markup] = field(default_factory=list)

    def rectangle(self, x: float, width: float, y: float, height: float, kind: str, title: str = "") -> None:
        """`x` and `width` are shares of the drawing's width, 0 to 1."""
        inside = Markup("<title>{}</title>").format(title) if title else ""
        self.shapes.append(
            Markup('<rect x="{}%" width="{}%" y="{}" height="{}" class="{}">{}</rect>').format(
                _percent(x), _percent(width), _pixels(y), _pixels(height), kind, inside
            )
        )

    def dot(self, x: float, y: float, kind: str, title: str) -> None:
        """A small circle."""
        self.shapes.append(
            Markup('<circle cx="{}%" cy="{}" r="3.5" class="{}"><title>{}</title></circle>').format(
                _percent(x), _pixels(y), kind, title
            )
        )

    def line(self, x: float, x_end: float, y: float, y_end: float, kind: str) -> None:
        self.shapes.append(
            Markup('<line x1="{}%" x2="{}%" y1="{}" y2="{}" class="{}"/>').format(
                _percent(x), _percent(x_end), _pixels(y), _pixels(y_end), kind
            )
        )

    def mark(self, x: float, y: float, y_end: float) -> None:
        """An upright line, outlined so that it is seen on a bar of any colour."""
        for kind in ("outline", "mark"):
            self.line(x, x, y, y_end, kind)

    def names(self, names: Sequence[tuple[float, str]], y: float, *, is_even: bool = True) -> None:
        """Texts in one line, by their shares of the width, as many as a small screen has room for.

        Even: every second one, or third, and so on; else each that has room beside those before it.
        """
        chosen = _fitting(names)
        if is_even:
            steps = (list(names[::step]) for step in range(1, len(names) + 1))
            chosen = next((each for each in steps if len(_fitting(each)) == len(each)), chosen)
        for x, name in chosen:
            self.text(x, y, name)

    def text(self, x: float, y: float, text: str, kind: str = "tick") -> None:
        """Text at a share of the width; it stays inside at both ends."""
        anchor = _anchor(x, text)
        self.shapes.append(
            Markup('<text x="{}%" y="{}" class="{}" text-anchor="{}">{}</text>').format(
                _percent(x), _pixels(y), kind, anchor, text
            )
        )

    def svg(self) -> Markup:
        """The drawing."""
        return Markup('<svg role="img" aria-label="{}" width="100%" height="{}">{}</svg>').format(
            self.label, self.height, Markup("\n").join(self.shapes)
        )


def _anchor(x: float, text: str) -> str:
    """Which end of a text, or its middle, stands at a share of the width."""
    half = len(text) * _LETTER / _NARROWEST / 2
    return "start" if x < half else "end" if x > 1 - half else "middle"


def _fitting(names: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Those of the texts in one line that lie on none before them."""
    fitting, free = list[tuple[float, str]](), -1.0
    for x, name in names:
        size = (len(name) + 0.5) * _LETTER / _NARROWEST
        begin = x - {"start": 0.0, "middle": size / 2, "end": size}[_anchor(x, name)]
        if begin >= free:
            fitting.append((x, name))
            free = begin + size
    return fitting


def row(label: str, parts: Sequence[Part], *, height: int = 18, mark: float | None = None) -> Markup:
    """One bar of parts side by side; a mark is higher than the bar."""
    drawing, edge = Drawing(label, height), 0 if mark is None else 3
    drawing.rectangle(0, 1, edge, height - 2 * edge, "ground")
    for part in parts:
        drawing.rectangle(part.begin, part.size, edge, height - 2 * edge, part.kind, part.title)
    if mark is not None:
        drawing.mark(mark, 0, height)
    return drawing.svg()


def columns(
    label: str,
    series: Sequence[tuple[str, Sequence[float]]],
    names: Sequence[str],
    *,
    unit: str,
    mark: float | None = None,
    mark_name: str = "",
    height: int = 190,
) -> Markup:
    """Columns in groups; `series` are (class, values), a value for each name. `mark`: a position among the groups."""
    top, bottom = 32, height - 20
    highest = max((value for _, values in series for value in values), default=0) or 1.0
    drawing = Drawing(label, height)
    for value in ticks(0, highest, 4)[1:]:
        y = bottom - value / highest * (bottom - top)
        drawing.line(0, 1, y, y, "grid")
        drawing.text(0, y - 4, f"{value:,.3g}{unit}", "tick")
    wide, count = (1 - _TICKS) / max(len(names), 1), max(len(series), 1)
    for index, name in enumerate(names):
        for number, (kind, values) in enumerate(series):
            size = values[index] / highest * (bottom - top)
            x = _TICKS + (index + 0.14 + 0.72 * number / count) * wide
            title = f"{name}: {values[index]:,.3g}{unit}"
            drawing.rectangle(x, 0.72 * wide / count * 0.94, bottom - size, size, kind, title)
    drawing.names([(_TICKS + (index + 0.5) * wide, name) for index, name in enumerate(names)], bottom + 15)
    drawing.line(0, 1, bottom, bottom, "axis")
    if mark is not None:
        x = _TICKS + mark * wide
        drawing.mark(x, 15, bottom)
        drawing.text(x, 11, mark_name, "note")
    return drawing.svg()


def dots(label: str, values: Sequence[tuple[float, str]], *, unit: str, mean: float, height: int = 170) -> Markup:
    """A dot for each value, in order; the mean is a line."""
    top, bottom = 14, height - 8
    low, high = min(value for value, _ in values), max(value for value, _ in values)
    room = max((high - low) * 0.15, high * 0.02)
    low, high = max(low - room, 0), high + room
    drawing = Drawing(label, height)

    def y_of(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    drawing.line(0, 1, y_of(mean), y_of(mean), "mark")
    for value in ticks(low, high, 4):
        drawing.line(0, 1, y_of(value), y_of(value), "grid")
        drawing.text(0, y_of(value) - 4, f"{value:.3g} {unit}", "tick")
    drawing.text(1, y_of(mean) + 14, f"mean {mean:.3g}", "note")  # values rise, so there is room at the right
    for index, (value, name) in enumerate(values):
        x = 0.2 + 0.78 * (index + 0.5) / len(values)
        drawing.dot(x, y_of(value), "dot", f"{name}: {value:.4g} {unit}")
    return drawing.svg()


def stack(
    label: str,
    columns_: Sequence[tuple[float, float, Sequence[Part]]],
    axis: Sequence[tuple[float, str]],
    heads: Sequence[tuple[float, str]] = (),
    *,
    mark: float | None,
    mark_name: str,
    height: int = 220,
) -> Markup:
    """Columns side by side, each filled from the bottom by its parts.

    `columns_` are (begin, width, parts), `axis` and `heads` (position, name), along the width from 0 to 1; heads stand
    above the columns.
    """
    top, bottom = 36 if heads else 20, height - 20
    drawing = Drawing(label, height)
    drawing.names(heads, top - 5, is_even=False)
    for begin, width, parts in columns_:
        for part in parts:
            size = part.size * (bottom - top)
            y = bottom - part.begin * (bottom - top) - size
            drawing.rectangle(begin, width, y, size, part.kind, part.title)
        drawing.line(begin, begin, top, bottom + 4, "cut")
    for share in (0.25, 0.5, 0.75):
        y = bottom - share * (bottom - top)
        drawing.line(0, 1, y, y, "over")
        drawing.text(0, y - 4, f" {share:.0%}", "on")
    drawing.line(0, 1, bottom, bottom, "axis")
    drawing.names(axis, bottom + 15)
    if mark is not None:
        drawing.mark(mark, 15, bottom + 4)
        drawing.text(mark, 11, mark_name, "note")
    return drawing.svg()


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most about `most` round values from `low` to `high`.

    >>> ticks(0, 1, 4), ticks(0.118, 0.131, 4)
    ([0.0, 0.5, 1.0], [0.12, 0.125, 0.13])
    """
    rough = max(high - low, 1e-12) / most
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [round(number * step, 12) for number in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def _percent(share: float) -> str:
    return f"{100 * share:.3f}".rstrip("0").rstrip(".")


def _pixels(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
