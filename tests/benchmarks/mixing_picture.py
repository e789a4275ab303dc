"""The picture of docs/mixing.md: how the order of sources arises, drawn by the function that a run uses.

    python tests/benchmarks/mixing_picture.py

In:  nothing. Out: docs/mixing.svg.
"""

from pathlib import Path
from xml.sax.saxutils import escape

from streampack.corpus.shares import Shares, point

NAMES = ("web", "code", "books")
STAGES = (Shares.of([0.70, 0.25, 0.05]), Shares.of([0.40, 0.40, 0.20]))
LANES, ROUNDS = 12, 10
"""The second half of the rounds is of the second stage."""
WIDTH, HEIGHT, CELL, LEFT, TOP = 760, 530, 26, 96, 200
BAR, BAR_LEFT = 560, 96
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #333a44 } .title { font-weight: 600; font-size: 14px }
  .note { font-size: 11px; fill: #6b7480 } .on { fill: #ffffff; font-size: 11px }
  .web { fill: #3f76b5 } .code { fill: #b9651b } .books { fill: #2f8a63 }
  .line { stroke: #333a44; stroke-width: 1.2; fill: none } .cut { stroke: #333a44; stroke-dasharray: 5 4 }
  @media (prefers-color-scheme: dark) {
    text { fill: #d5dae2 } .on { fill: #ffffff } .note { fill: #9aa3ae } .line, .cut { stroke: #d5dae2 }
  }
"""


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """A line of words."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str) -> str:
    """A rectangle in the colour of a source."""
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" rx="2"/>'


def intervals() -> list[str]:
    """The line that points fall on, and where the first packs of lane 0 fall."""
    y = 66
    drawn = [text(8, 22, "1. A pack's lane and round give a point; it falls into the interval of a source", "title")]
    begin = 0.0
    for index, name in enumerate(NAMES):
        share = STAGES[0].share(index)
        drawn.append(box(BAR_LEFT + begin * BAR, y, share * BAR - 2, 26, name))
        words = f"{name} {share:.0%}" if share > 0.1 else ""
        drawn.append(text(BAR_LEFT + (begin + share / 2) * BAR, y + 17, words, "on", "middle"))
        begin += share
    drawn.append(text(BAR_LEFT + BAR + 6, y + 17, "books 5%"))
    drawn.append(text(8, y + 17, "shares"))
    for lane, low, words in ((0, y - 6, "lane 0"), (1, y + 44, "lane 1")):
        drawn.append(text(8, low - 1 if lane == 0 else low, words))
        for pack in range(6):
            x = BAR_LEFT + point(lane, pack) / 2**64 * BAR
            tick = f"M{x:.1f} {y - 4}v8" if lane == 0 else f"M{x:.1f} {y + 22}v10"
            drawn.append(f'<path class="line" d="{tick}"/>')
            drawn.append(text(x, y - 8 if lane == 0 else y + 44, str(pack), "", "middle"))
    words = "Numbers: rounds 0 to 5. From round to round a lane's point moves on by the same step, and round the end."
    drawn.append(text(8, y + 72, words, "note"))
    return drawn


def grid() -> list[str]:
    """Lanes by rounds, coloured by source; a second stage from the middle on."""
    drawn = [text(8, TOP - 32, "2. So each lane, each round and each batch has its share of every source", "title")]
    given = [0, 0, 0]
    drawn += [text(LEFT + (lane + 0.5) * CELL, TOP - 8, str(lane), "note", "middle") for lane in range(LANES)]
    drawn.append(text(8, TOP - 8, "lane", "note"))
    for at in range(ROUNDS):
        stage, first = (0, 0) if at < ROUNDS // 2 else (1, ROUNDS // 2)
        y = TOP + at * CELL
        drawn.append(text(8, y + 17, f"round {at}", "note"))
        for lane in range(LANES):
            source = STAGES[stage].source(lane, at - first)
            given[source] += 1
            drawn.append(box(LEFT + lane * CELL, y, CELL - 3, CELL - 3, NAMES[source]))
            drawn.append(text(LEFT + (lane + 0.45) * CELL, y + 16, str(at * LANES + lane), "on", "middle"))
        if at in {ROUNDS // 2 - 1, ROUNDS - 1}:
            x = LEFT + LANES * CELL + 24
            wanted = [STAGES[stage].share(index) for index in range(3)]
            top = TOP + first * CELL
            drawn.append(text(x, top + 16, f"stage {stage}", "title"))
            for index, name in enumerate(NAMES):
                row = top + 36 + index * 22
                drawn.append(box(x, row - 11, 12, 12, name))
                packs = ROUNDS // 2 * LANES
                words = f"{name}: asked {wanted[index]:.0%}, {given[index]} of {packs} packs"
                drawn.append(text(x + 20, row, words))
            given = [0, 0, 0]
    middle = TOP + ROUNDS // 2 * CELL - 1.5
    drawn.append(f'<path class="cut" d="M{LEFT - 8} {middle}H{WIDTH - 20}"/>')
    bottom = TOP + ROUNDS * CELL + 22
    words = "Numbers: global packs, row by row. With a global batch of 6 packs, batch 0 is packs 0 to 5, batch 1 packs"
    drawn.append(text(8, bottom, f"{words} 6 to 11, ...", "note"))
    words = "A stage begins with a round. Each lane continues each source where it left it."
    drawn.append(text(8, bottom + 18, words, "note"))
    return drawn


def main() -> None:
    """Write the picture beside the page."""
    path = Path(__file__).parents[2] / "docs" / "mixing.svg"
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    label = "Packs of three sources over lanes and rounds"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">'
    path.write_text("\n".join([head, f"<style>{STYLE}</style>", *intervals(), *grid(), "</svg>\n"]), "utf-8")


if __name__ == "__main__":
    main()
