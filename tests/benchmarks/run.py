"""All benchmarks, one after the other, and the tables and plots of docs/performance.md made of them.

    pip install -e '.[fast,bench,peers]'
    python tests/benchmarks/run.py [corpus.jsonl.zst ...]          about 20 minutes; leave the machine alone meanwhile
    python tests/benchmarks/run.py --draw                          only the documents, from the results that are there

In:  files of JSON lines (zstd) with "text"; without any, made-up text.
Out: docs/benchmarks.json; the part of docs/performance.md between its markers; line.svg, byte_level.svg and
     peers.svg in docs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import machine_of

from streampack.cli.bench.chart import Bar, Group, draw_bars, number
from streampack.cli.bench.drawing import spread, table_rows
from streampack.cli.bench.stopwatch import Spread

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs"
BEGIN, END = "<!-- made by tests/benchmarks/run.py -->", "<!-- end -->"


def main() -> None:
    """Measure, write the results, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="*")
    parser.add_argument("--draw", action="store_true", help="draw only")
    parser.add_argument("--quick", action="store_true", help="small inputs: whether it all runs")
    parser.add_argument("--megabytes", type=float, help="of each file, for less or more than 20 minutes")
    parser.add_argument("--rounds", type=int, help="of each comparison, likewise")
    parser.add_argument("--docs", type=Path, default=DOCS)
    arguments = parser.parse_args()
    results = arguments.docs / "benchmarks.json"
    if not arguments.draw:
        sizes = [
            word
            for name in ("megabytes", "rounds")
            if (value := getattr(arguments, name)) is not None
            for word in (f"--{name}", str(value))
        ]
        found = measure(arguments.corpus, sizes, quick=arguments.quick)
        results.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    write(json.loads(results.read_text("utf-8")), arguments.docs)


def measure(corpus: list[str], sizes: list[str], *, quick: bool) -> dict[str, Any]:
    small = {
        "line": ["--megabytes", "2", "--rounds", "2", "--multiple", "1"],
        "byte_level": ["--megabytes", "2", "--rounds", "2"],
        "peers": ["--megabytes", "2", "--rounds", "2"],
        "memory": ["--megabytes", "50"],
    }
    found: dict[str, Any] = {
        "machine": machine_of("streampack", "sentencepiece", "torch", "numpy")
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in ("line", "byte_level", "peers", "memory"):
            path = Path(folder, name)
            command = [sys.executable, str(HERE / f"{name}.py"), *corpus, "--json", str(path)]
            chosen = small[name] if quick else [] if name == "memory" else sizes
            subprocess.run([*command, *chosen], check=True)
            found[name] = json.loads(path.read_text("utf-8"))
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
    machine, memory = results["machine"], results["memory"]
    byte_level = results["byte_level"]
    rows = [
        [row["what"], f"{spread(Spread(**row['value']))} {row['unit']}", row["goal"]] for row in results["line"]["rows"]
    ]
    own = f"at most {memory['early_mb']:.0f} MB for itself in the first 200 MB of text"
    parts = [
        described(machine, results["line"]["texts"]),
        "### The whole pipeline",
        table_rows(["", "median (lowest to highest)", "goal"], rows),
        "![The pipeline beside plain SentencePiece](line.svg)",
        f"A worker has {own}, and at most {memory['late_mb']:.0f} MB over {memory['curve'][-1][0]:,.0f} MB.",
        f"### Byte-level BPE, {byte_level['tokenizer']}'s vocabulary",
        described(byte_level["machine"], byte_level["texts"]),
        "![The pipeline beside tokenizers and tiktoken](byte_level.svg)",
        table_rows(
            ["", "ratio to Tokenizer.encode", "Mtok/s", "goal"],
            [
                [
                    f"{row['text']}: {row['what']}",
                    spread(Spread(**row["ratio"])),
                    spread(Spread(**row["mtok_per_s"])),
                    row["goal"],
                ]
                for row in byte_level["rows"]
            ],
        ),
        "### Peers",
        "![Other libraries on the same documents](peers.svg)",
    ]
    for result in results["peers"]:
        header = [
            "",
            "version",
            "ratio by CPU time",
            "ratio by the clock, 2 workers",
            "first batch, ms",
            "labels",
            "ids",
        ]
        body = [
            [
                row["name"],
                row["version"],
                spread(Spread(**row["ratio"])),
                spread(Spread(**row["clock_ratio"])) if "clock_ratio" in row else "",
                number(row["first_batch_s"] * 1e3),
                row["labels"],
                row["ids"],
            ]
            for row in result["rows"]
        ]
        parts += [f"{result['text']}, {result['megabytes']:.0f} MB:", table_rows(header, body)]
    return "\n\n".join(parts)


def described(machine: dict[str, Any], texts: list[dict[str, Any]]) -> str:
    """Where something was measured, and with which text."""
    sizes = ", ".join(
        f"{text['name']} {text['megabytes']:.0f} MB ({text['mean_bytes']:,.0f} bytes a document)" for text in texts
    )
    return f"{name_of(machine)}. Text: {sizes}."


def name_of(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items())
    return f"{short(machine)}; Python {machine['python']}, {versions}"


def byte_level_plot(results: dict[str, Any]) -> str:
    """Millions of tokens per CPU second, for each kind of text."""
    found = results["byte_level"]
    groups = [
        Group(
            text["name"],
            [
                Bar(row["what"], Spread(**row["mtok_per_s"]), is_own=row["what"].startswith("shards"))
                for row in found["rows"]
                if row["text"] == text["name"] and "clock" not in row["what"]
            ],
        )
        for text in found["texts"]
    ]
    return draw_bars(
        f"Text to batches with {found['tokenizer']}'s byte-level BPE",
        groups,
        unit="Mtok per CPU second",
        note=short(found["machine"]),
        mark=None,
    )


def short(machine: dict[str, Any]) -> str:
    """The machine in a few words."""
    return f"{machine['processor']}, {machine['cores']} cores, load {machine['load']:.1f} before the run"


def line_plot(results: dict[str, Any]) -> str:
    """The ratios to plain SentencePiece."""
    bars = [
        Bar(row["what"].removesuffix(", by the clock"), Spread(**row["value"]), is_own=True)
        for row in results["line"]["rows"]
        if row["unit"] == "x plain" and not row["what"].startswith((".npy", "the same"))
    ]
    return draw_bars(
        "Shards to batches, beside plain SentencePiece",
        [Group("tokens per CPU second", bars)],
        unit="ratio to SentencePieceProcessor.encode on the same documents; dashed: 1",
        note=short(results["machine"]),
    )


def peers_plot(results: dict[str, Any]) -> str:
    """From text, for each kind of it."""
    groups = [
        Group(
            f"{result['text']}, text to packs",
            [
                Bar(row["name"], Spread(**row["ratio"]), is_own=row["name"].startswith("streampack"))
                for row in result["rows"]
                if not row["pretokenized"]
            ],
        )
        for result in results["peers"]
    ]
    return draw_bars(
        "The same work by other libraries",
        groups,
        unit="tokens per CPU second, ratio to plain SentencePiece; dashed: 1",
        note=short(results["machine"]),
    )


if __name__ == "__main__":
    main()
