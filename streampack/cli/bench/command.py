"""`streampack bench`: how fast streampack is on one's own shards and model, and where the time goes.

In:  the command line. Out: tables on stdout (or JSON), and, where asked for, a Markdown file and an SVG file.
"""

from math import isnan
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from streampack.cli.arguments import (
    TOKENIZER_HELP,
    AddBos,
    AddEos,
    BosToken,
    EosToken,
    Json,
    check_folder,
    file_errors,
)
from streampack.cli.bench import drawing
from streampack.cli.bench.measuring import make_report
from streampack.cli.console import output, print_json
from streampack.tokenizers.engines import ENGINES


def bench(
    shards: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SHARDS]...",
            help="Paths or URLs, with braces or globs; directories; @manifest; or one config file (.yaml). Without "
            "any, made-up text is used.",
            show_default=False,
        ),
    ] = None,
    *,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", "-t", help=TOKENIZER_HELP, show_default="the demo's"),
    ] = None,
    field: Annotated[
        str | None, typer.Option(help="What a document is: txt, json:KEY, jsonl:KEY, npy.", show_default="txt")
    ] = None,
    bos: AddBos = None,
    eos: AddEos = None,
    bos_token: BosToken = None,
    eos_token: EosToken = None,
    seq_len: Annotated[int | None, typer.Option(min=2, help="Tokens of a pack.", show_default="4096")] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Engine to compare: {', '.join(ENGINES)}; may be given several times.",
            show_default="auto, and the library of the file",
        ),
    ] = None,
    workers: Annotated[
        list[int] | None,
        typer.Option(
            "--workers",
            "-w",
            min=0,
            help="Numbers of workers to try; may be given several times.",
            show_default="0, 1, 2, 4",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each measure.")] = 7,
    megabytes: Annotated[int, typer.Option(min=1, help="MB of the shards to read.")] = 20,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Three rounds on 3 MB, in a minute or less: only the order of magnitude."),
    ] = False,
    json: Json = False,
    out: Annotated[
        Path | None, typer.Option(help="Also write the tables to this file, as Markdown.", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw speeds, ratios and stages as SVG.", show_default=False)
    ] = None,
) -> None:
    """Measure the speed on your shards and model, compare it with the tokenizer alone, and show where the time goes."""
    for option, file in (("--out", out), ("--plot", plot)):
        if file is not None:
            check_folder(option, file)
    if quick:
        rounds, megabytes = min(rounds, 3), min(megabytes, 3)
    report = make_report(
        shards or [],
        tokenizer=tokenizer,
        field=field,
        ends={"add_bos": bos, "add_eos": eos},
        tokens={"bos_token": bos_token, "eos_token": eos_token},
        seq_len=seq_len,
        engines=engine or ["auto", "sentencepiece"],
        workers=workers or ([0, 2] if quick else [0, 1, 2, 4]),
        rounds=rounds,
        num_bytes=megabytes * 10**6,
    )
    if json:
        print_json(_without_nan(msgspec.to_builtins(report)))
    else:
        drawing.draw(output(), report)
    if out is not None:
        with file_errors("--out", out):
            out.write_text(drawing.markdown(report), "utf-8")
    if plot is not None:
        with file_errors("--plot", plot):
            plot.write_text(drawing.svg(report), "utf-8")


def _without_nan(value: object) -> object:
    """The value with None for nan, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and isnan(value) else value
