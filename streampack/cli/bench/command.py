"""`streampack bench`: how fast the line is on one's own shards and model, and where its time goes.

It reads the first samples of the shards, once, and cuts them into slices on the local disk; each round of a measure
takes another slice. So storage counts in "storage" as a local disk does; `count` and a training run show one's network.
"""

import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from math import isnan
from pathlib import Path
from typing import Annotated, Self

import msgspec
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from streampack.cli.arguments import Json, make_dataset
from streampack.cli.bench import drawing
from streampack.cli.bench.clocks import first_batch, resume, scale
from streampack.cli.bench.measures import MakeDataset, check_ids, compare
from streampack.cli.bench.report import Machine, Report
from streampack.cli.bench.workload import DEMO_MODEL, Slice, cut_slices, made_up_slices
from streampack.cli.console import messages, output, print_json
from streampack.dataset.dataset import PackedDataset
from streampack.errors import ConfigError
from streampack.records import Tokenizer
from streampack.tokenizers.engines import ENGINES, Engine, choose_engine
from streampack.tokenizers.loading import SentencePieceTokenizer, load_tokenizer

_LANES = 12
_TOKENS_ARE_FASTER = 16
"""So many times the bytes are read where the documents are tokens already."""


def bench(
    shards: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SHARDS]...",
            help="Paths or URLs, with braces or globs, directories, @manifest; or one config file (.yaml). Without: "
            "made-up text.",
            show_default=False,
        ),
    ] = None,
    *,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", "-t", help="SentencePiece model or tokenizer.json.", show_default="the demo's"),
    ] = None,
    field: Annotated[
        str | None, typer.Option(help="What a document is: txt, json:KEY, jsonl:KEY, npy.", show_default="txt")
    ] = None,
    seq_len: Annotated[int | None, typer.Option(min=2, help="Tokens of a pack.", show_default="4096")] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(help=f"Engines to compare: {', '.join(ENGINES)}.", show_default="auto and sentencepiece"),
    ] = None,
    workers: Annotated[
        list[int] | None, typer.Option("--workers", "-w", min=0, help="Workers to try.", show_default="0, 1, 2, 4")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each measure.")] = 7,
    megabytes: Annotated[int, typer.Option(min=1, help="Of the shards, to read.")] = 20,
    quick: Annotated[bool, typer.Option("--quick", help="Three rounds on 3 MB: tells orders of magnitude.")] = False,
    json: Json = False,
    out: Annotated[Path | None, typer.Option(help="Write the tables as Markdown, too.", show_default=False)] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the ratios into an SVG file.", show_default=False)] = None,
) -> None:
    """How fast the line is on your shards and model, beside the tokenizer alone, and where its time goes."""
    if quick:
        rounds, megabytes = min(rounds, 3), min(megabytes, 3)
    report = make_report(
        shards or [],
        tokenizer=tokenizer,
        field=field,
        seq_len=seq_len,
        engines=engine or ["auto", "sentencepiece"],
        workers=workers or ([0, 2] if quick else [0, 1, 2, 4]),
        rounds=rounds,
        num_bytes=megabytes * 10**6,
    )
    if out is not None:
        out.write_text(drawing.markdown(report), "utf-8")
    if plot is not None:
        plot.write_text(drawing.svg(report), "utf-8")
    if json:
        print_json(_without_nan(msgspec.to_builtins(report)))
    else:
        drawing.draw(output(), report)


def make_report(
    shards: Sequence[str],
    *,
    tokenizer: str | None,
    field: str | None,
    seq_len: int | None,
    engines: Sequence[str],
    workers: Sequence[int],
    rounds: int,
    num_bytes: int,
) -> Report:
    """All measures, with a bar of their progress on stderr."""
    machine = _machine()
    ids_alone = tokenizer is None and field == "npy"
    given = {"field": field, "seq_len": seq_len, **({"add_bos": False, "add_eos": False} if ids_alone else {})}
    if not shards and (field or "txt") != "txt":
        raise ConfigError(f"field={field!r} without shards: the made-up text is txt")
    if not (ids_alone or tokenizer or (len(shards) == 1 and shards[0].endswith((".yaml", ".yml")))):
        tokenizer = str(DEMO_MODEL)
    with tempfile.TemporaryDirectory(prefix="streampack-bench-") as name:
        folder = Path(name)
        if not shards:
            plain: Tokenizer | None = _plain(str(tokenizer))
            slices = made_up_slices(folder, num_slices=rounds, slice_bytes=num_bytes // rounds)
            source = "made-up text"
            known: dict[str, object] = {}
        else:
            whole = make_dataset(shards, tokenizer=tokenizer, **given)
            pipeline = whole.pipeline
            if pipeline.documents.field.kind == "npy":
                num_bytes *= _TOKENS_ARE_FASTER
            slice_bytes = max(num_bytes // rounds, 1)
            slices = cut_slices(whole, folder, num_slices=rounds, slice_bytes=slice_bytes)
            source = f"the first {sum(part.num_bytes for part in slices) / 1e6:.1f} MB of {' '.join(shards)}"
            plain = None if pipeline.documents.field.kind == "npy" else _without_engine(pipeline.tokenizer)
            known = {"field": str(pipeline.documents.field), "seq_len": whole.seq_len}
            known |= {"add_bos": pipeline.bos_id is not None, "add_eos": pipeline.eos_id is not None}
        arguments = {name: value for name, value in (given | known).items() if value is not None}
        chosen = _engines(plain, engines)
        return _measure(machine, source, slices, plain, chosen, partial(_make, arguments), workers)


def _measure(
    machine: Machine,
    source: str,
    slices: list[Slice],
    plain: Tokenizer | None,
    engines: dict[str, Tokenizer | None],
    make: MakeDataset,
    workers: Sequence[int],
) -> Report:
    first = next(iter(engines.values()))
    every = [path for part in slices for path in part.shards]

    def whole_line() -> PackedDataset:
        return make(every, tokenizer=first, num_lanes=_LANES)

    some = min(len(slices), 3)
    with _Progress() as progress:
        progress.begin("ids", len(engines))
        for name, tokenizer in engines.items():
            check_ids(make, slices[0], tokenizer, plain)
            progress.advance(name)
        progress.begin("line and stages", len(slices) * (len(engines) + 9))
        comparison = compare(make, slices, plain=plain, engines=engines, advance=progress.advance)
        progress.begin("workers", some * len(workers))
        scaled = scale(whole_line, workers, some, advance=progress.advance)
        progress.begin("first batch and resume", 3)
        starts = {}
        for number in sorted({0, max(workers)}):
            starts[number] = first_batch(whole_line, number, some)
            progress.advance(f"{number} workers")
        resumed = resume(whole_line, (0, 10, 90), some)
    return Report(
        machine=machine,
        source=source,
        tokenizer="none: the documents are tokens" if plain is None else plain.digest[:28],
        rounds=len(slices),
        bytes=sum(part.num_bytes for part in slices),
        comparison=comparison,
        workers=scaled,
        first_batch_s=starts,
        resume=resumed,
    )


def _make(
    arguments: dict[str, object],
    shards: Sequence[str],
    *,
    tokenizer: Tokenizer | None,
    num_lanes: int,
    epochs: int | None = 1,
    shuffle: bool = False,
) -> PackedDataset:
    return PackedDataset(
        list(shards),
        tokenizer,
        num_lanes=num_lanes,
        epochs=epochs,
        shuffle=shuffle,
        # A tokenizer that is an engine already is taken as it is.
        engine="sentencepiece" if type(tokenizer) is SentencePieceTokenizer else "auto",
        dp_rank=0,
        dp_size=1,
        **arguments,  # type: ignore[arg-type]  # checked where they came in
    )


def _plain(path: str) -> Tokenizer:
    return load_tokenizer(Path(path).read_bytes(), name=path)


def _without_engine(tokenizer: Tokenizer | None) -> Tokenizer | None:
    """The library that the model is made for, given each text as a whole."""
    return tokenizer.plain if isinstance(tokenizer, Engine) else tokenizer


def _engines(plain: Tokenizer | None, names: Sequence[str]) -> dict[str, Tokenizer | None]:
    """By name what each engine is for this model, each of them once."""
    if plain is None:
        return {"tokens": None}
    chosen: dict[str, Tokenizer | None] = {}
    for name in names:
        tokenizer = choose_engine(plain, name)
        if isinstance(tokenizer, Engine):
            chosen.setdefault(tokenizer.engine, tokenizer)
        else:
            chosen.setdefault(type(tokenizer).__name__.removesuffix("Tokenizer").lower(), tokenizer)
    return chosen


def _machine() -> Machine:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        cores=cores,
        load=os.getloadavg()[0],
        python=platform.python_version(),
        versions={name: version(name) for name in ("streampack", "sentencepiece", "torch", "numpy")},
    )


def _without_nan(value: object) -> object:
    """JSON has no nan."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and isnan(value) else value


class _Progress:
    """A bar on stderr, one measure after the other; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        console = messages()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[name]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
            expand=True,
            auto_refresh=False,  # no thread of it shall run beside what is timed, or be there when workers are forked
        )
        self._task = self._progress.add_task("", total=1, name="")
        self.advance: Callable[[str], None] = self._advance

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, measure: str, total: int) -> None:
        self._progress.reset(self._task, total=total, description=measure, name="")
        self._progress.refresh()

    def _advance(self, name: str) -> None:
        self._progress.advance(self._task)
        self._progress.update(self._task, name=name)
        self._progress.refresh()
