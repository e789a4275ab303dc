"""All benchmarks, one after the other, and the tables and plots of docs/performance.md made of them.

    pip install -e '.[fast,bench,peers]'
    python tests/benchmarks/run.py [corpus.jsonl.zst ...]          half an hour; leave the machine alone meanwhile
    python tests/benchmarks/run.py --only peers [corpus ...]       one of them, the others as they are
    python tests/benchmarks/run.py --draw                          only the documents, from the results that are there

In:  files of JSON lines (zstd) with "text"; without any, made-up text. Byte-level vocabularies as `vocabularies` reads
     them; the other libraries are measured with the first one.
Out: docs/benchmarks.json; the part of docs/performance.md between its markers; line.svg, byte_level.svg and
     peers.svg in docs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streampack.cli.bench.chart import Bar, Group, Panel, draw_panels, number
from streampack.cli.bench.drawing import spread, table_rows
from streampack.cli.bench.stopwatch import Spread

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs"
MEASURES = ("line", "byte_level", "peers", "memory")
BEGIN, END = "<!-- made by tests/benchmarks/run.py -->", "<!-- end -->"


def main() -> None:
    """Measure, write the results, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="*")
    parser.add_argument("--draw", action="store_true", help="draw only")
    parser.add_argument("--quick", action="store_true", help="small inputs: whether it all runs")
    parser.add_argument("--only", choices=MEASURES, action="append", help="may be given several times")
    parser.add_argument("--tokenizer", action="append", default=[], help="of a byte-level BPE; several times as well")
    parser.add_argument("--megabytes", type=float, help="of each file, for less or more than half an hour")
    parser.add_argument("--rounds", type=int, help="of each comparison, likewise")
    parser.add_argument("--docs", type=Path, default=DOCS)
    arguments = parser.parse_args()
    results = arguments.docs / "benchmarks.json"
    if not arguments.draw:
        found = json.loads(results.read_text("utf-8")) if arguments.only else {}
        for name in arguments.only or MEASURES:
            found[name] = measure(name, arguments)
            results.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    write(json.loads(results.read_text("utf-8")), arguments.docs)


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The results of one benchmark, which runs in a process of its own."""
    words = list(arguments.corpus)
    sizes = {"--megabytes": arguments.megabytes, "--rounds": arguments.rounds}
    if arguments.quick:
        sizes = {"--megabytes": 50 if name == "memory" else 2, "--rounds": 2}
    elif name == "memory":
        sizes = {}
    if name == "memory":
        sizes.pop("--rounds", None)
    elif name == "line" and arguments.quick:
        sizes["--multiple"] = 1
    words += [word for option, value in sizes.items() if value is not None for word in (option, str(value))]
    tokenizers = {"byte_level": arguments.tokenizer, "peers": arguments.tokenizer[:1]}.get(name, [])
    words += [word for tokenizer in tokenizers for word in ("--tokenizer", tokenizer)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        subprocess.run([sys.executable, str(HERE / f"{name}.py"), *words, "--json", str(path)], check=True)
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def write(results: dict[str, Any], docs: Path) -> None:
    """The tables into the document, the plots beside it."""
    path = docs / "performance.md"
    text = path.read_text("utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n\n{tables(results)}\n\n{END}{after}", "utf-8")
    (docs / "line.svg").write_text(line_plot(results), "utf-8")
    (docs / "byte_level.svg").write_text(byte_level_plot(results), "utf-8")
    (docs / "peers.svg").write_text(peers_plot(results), "utf-8")


def tables(results: dict[str, Any]) -> str:
    line, byte_level, peers, memory = (results[name] for name in MEASURES)
    own = f"at most {memory['early_mb']:.0f} MB for itself in the first 200 MB of text"
    parts = [
        "### The whole pipeline",
        described(line["machine"], line["texts"]),
        "![The pipeline beside plain SentencePiece](line.svg)",
        table_rows(
            ["", "median (lowest to highest)", "Mtok/s", "goal"],
            [
                [row["what"], f"{of(row['value'])} {row['unit']}", of(row["mtok_per_s"]), row["goal"]]
                for row in line["rows"]
            ],
        ),
        f"A worker has {own}, and at most {memory['late_mb']:.0f} MB over {memory['curve'][-1][0]:,.0f} MB.",
        "### Byte-level BPE",
        described(byte_level["machine"], byte_level["texts"]),
        "![The pipeline beside tokenizers and tiktoken](byte_level.svg)",
    ]
    for found in byte_level["tokenizers"]:
        body = [
            [f"{row['text']}: {row['what']}", of(row["ratio"]), of(row["mtok_per_s"]), row["goal"]]
            for row in found["rows"]
        ]
        parts += [f"{found['tokenizer']}:", table_rows(["", "ratio to Tokenizer.encode", "Mtok/s", "goal"], body)]
    texts = [text | {"name": text["text"]} for text in peers["tokenizers"][0]["texts"]]
    parts += ["### Peers", described(peers["machine"], texts), "![Other libraries on the same documents](peers.svg)"]
    header = [
        "",
        "version",
        "ratio by CPU time",
        "Mtok/s of CPU time",
        "ratio by the clock, 2 workers",
        "Mtok/s by the clock",
        "first batch, ms",
        "labels",
        "ids",
    ]
    for found in peers["tokenizers"]:
        for result in found["texts"]:
            body = [
                [
                    row["name"],
                    row["version"],
                    of(row["ratio"]),
                    of(row["mtok_per_s"]),
                    of(row.get("clock_ratio")),
                    of(row.get("clock_mtok_per_s")),
                    number(row["first_batch_s"] * 1e3) if "first_batch_s" in row else "",
                    row["labels"],
                    row["ids"],
                ]
                for row in result["rows"]
            ]
            parts += [f"{found['tokenizer']}, {result['text']}:", table_rows(header, body)]
    return "\n\n".join(parts)


def of(value: dict[str, float] | None) -> str:
    """A spread; empty where nothing was measured."""
    return spread(Spread(**value)) if value else ""


def described(machine: dict[str, Any], texts: list[dict[str, Any]]) -> str:
    """Where something was measured, and with which text."""
    sizes = ", ".join(
        f"{text['name']} {text['megabytes']:.0f} MB ({text['mean_bytes']:,.0f} bytes a document)" for text in texts
    )
    return f"{name_of(machine)}. Text: {sizes}."


def name_of(machine: dict[str, Any]) -> str:
    return f"{short(machine)}; {versions(machine)}"


def versions(machine: dict[str, Any]) -> str:
    return ", ".join(
        [f"Python {machine['python']}", *(f"{name} {found}" for name, found in machine["versions"].items())]
    )


def short(machine: dict[str, Any]) -> str:
    """The machine in a few words."""
    return f"{machine['processor']}, {machine['cores']} cores, load {machine['load']:.1f} before the run"


def line_plot(results: dict[str, Any]) -> str:
    """The pipeline from text, with each engine."""
    line = results["line"]
    bars = [
        Measured(row["what"], row["value"], row["mtok_per_s"], is_own="plain" not in row["what"])
        for row in line["rows"]
        if row["unit"] == "x plain" and not row["what"].startswith((".npy", "the same"))
    ]
    base = "SentencePieceProcessor.encode"
    return plot("Shards to batches, beside plain SentencePiece", {"from text": bars}, base, line["machine"])


def byte_level_plot(results: dict[str, Any]) -> str:
    """Each kind of text with each vocabulary."""
    found = results["byte_level"]
    groups = {
        f"{text['name']}, {each['tokenizer']}": [
            Measured(row["what"], row["ratio"], row["mtok_per_s"], is_own=row["what"].startswith("shards"))
            for row in each["rows"]
            if row["text"] == text["name"] and "clock" not in row["what"]
        ]
        for each in found["tokenizers"]
        for text in found["texts"]
    }
    return plot("Text to batches with a byte-level BPE", groups, "tokenizers, Tokenizer.encode", found["machine"])


def peers_plot(results: dict[str, Any]) -> str:
    """From text, for each tokenizer and kind of text."""
    found = results["peers"]
    groups = {
        f"{result['text']}, {each['tokenizer']}": [
            Measured(row["name"], row["ratio"], row["mtok_per_s"], is_own=row["name"].startswith("streampack"))
            for row in result["rows"]
            if not row["pretokenized"]
        ]
        for each in found["tokenizers"]
        for result in each["texts"]
    }
    base = "the tokenizer's own library"
    return plot("The same work by other libraries, text to packs", groups, base, found["machine"])


@dataclass(frozen=True)
class Measured:
    """What a bar shows."""

    name: str
    ratio: dict[str, float]
    mtok_per_s: dict[str, float]
    is_own: bool


def plot(title: str, groups: dict[str, list[Measured]], base: str, machine: dict[str, Any]) -> str:
    """The speed of each as a bar, beside it the ratio."""
    drawn = []
    for heading, found in groups.items():
        bars = []
        for each in found:
            ratio, speed = Spread(**each.ratio), Spread(**each.mtok_per_s)
            bars.append(Bar(each.name, speed, each.is_own, f"{number(speed.median)} ({number(ratio.median)} x)"))
        drawn.append(Group(heading, bars))
    unit = f"Mtok per CPU second; median, lowest to highest (x: median of the ratio to {base})"
    return draw_panels(title, [Panel(drawn, unit)], notes=[short(machine), versions(machine)])


if __name__ == "__main__":
    main()
