"""All measures of `streampack bench`, one after the other.

In:  shards of any storage (or nothing: then text is made up), a tokenizer, and what is to be compared.
Out: a `Report`.
Invariants: the shards' first samples are read once and cut into slices on the local disk; each round of a measure takes
another slice. So the stage "storage" is the speed of a local disk: `streampack count` and a training run show the
network's.
"""

import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from streampack.cli.arguments import is_config, make_dataset
from streampack.cli.bench.checks import check_ids
from streampack.cli.bench.clocks import first_batch, resume, scale
from streampack.cli.bench.comparison import compare
from streampack.cli.bench.made_up import DEMO_MODEL, made_up_slices
from streampack.cli.bench.progress import MeasureProgress
from streampack.cli.bench.report import Machine, Report
from streampack.cli.bench.slices import Slice, cut_slices
from streampack.cli.bench.stages import MakeDataset
from streampack.dataset.dataset import PackedDataset
from streampack.dataset.tokenizer import read_tokenizer
from streampack.documents.fields import Field, parse_field
from streampack.errors import ConfigError
from streampack.records import Tokenizer
from streampack.storage.access import StorageReader
from streampack.tokenizers.comparing import Engine
from streampack.tokenizers.engines import choose_engine
from streampack.tokenizers.huggingface import HuggingFaceTokenizer
from streampack.tokenizers.sentencepiece import SentencePieceTokenizer

_OWN_ENGINES = {SentencePieceTokenizer: "sentencepiece", HuggingFaceTokenizer: "tokenizers"}
"""By which a plain tokenizer stays as it is."""
_LANES = 12
_TOKENS_ARE_FASTER = 16
"""So many times the bytes are read where the documents are token ids already."""


def make_report(
    shards: Sequence[str],
    *,
    tokenizer: str | None,
    field: str | None,
    ends: Mapping[str, bool | None],
    tokens: Mapping[str, str | None],
    seq_len: int | None,
    engines: Sequence[str],
    workers: Sequence[int],
    rounds: int,
    num_bytes: int,
) -> Report:
    """All measures, with a bar of their progress on stderr."""
    machine = _machine()
    ids_alone = tokenizer is None and field == "npy"
    given: dict[str, Any] = {"field": field, "seq_len": seq_len, **ends}
    if ids_alone:
        given |= {"add_bos": False, "add_eos": False}
    if not shards and (field or "txt") != "txt":
        raise ConfigError(f"field={field!r} without shards: the made-up text is txt")
    if field is not None:
        _refuse_conversations(parse_field(field))
    if not (ids_alone or tokenizer or is_config(shards)):
        tokenizer = str(DEMO_MODEL)
    with tempfile.TemporaryDirectory(prefix="streampack-bench-") as name:
        folder = Path(name)
        if not shards:
            plain: Tokenizer | None = _plain(str(tokenizer), tokens)
            slices = made_up_slices(folder, num_slices=rounds, slice_bytes=num_bytes // rounds)
            source = "made-up text"
            known: dict[str, object] = {}
        else:
            whole = make_dataset(shards, tokenizer=tokenizer, **given, **tokens)
            pipeline = whole.pipeline
            _refuse_conversations(pipeline.documents.field)
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
        return _measure(machine, source, slices, plain, chosen, partial(make_finite, arguments), workers)


def _refuse_conversations(field: Field) -> None:
    if field.is_chat:
        raise ConfigError(
            f"field={str(field)!r} holds conversations, and `streampack bench` measures texts and token ids. "
            "`streampack count` reads and tokenizes conversations (--chat), and tells how fast; in a run "
            'loader.stats()["stages"] tells what limits them'
        )


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

    def whole_pipeline() -> PackedDataset:
        return make(every, tokenizer=first, num_lanes=_LANES)

    some = min(len(slices), 3)
    with MeasureProgress() as progress:
        progress.begin("ids", len(engines))
        for name, tokenizer in engines.items():
            check_ids(make, slices[0], tokenizer, plain)
            progress.advance(name)
        progress.begin("pipeline and stages", len(slices) * (len(engines) + 9))
        comparison = compare(make, slices, plain=plain, engines=engines, advance=progress.advance)
        progress.begin("workers", some * len(workers))
        scaled = scale(whole_pipeline, workers, some, advance=progress.advance)
        progress.begin("first batch and resume", 3)
        starts = {}
        for number in sorted({0, max(workers)}):
            starts[number] = first_batch(whole_pipeline, number, some)
            progress.advance(f"{number} workers")
        resumed = resume(whole_pipeline, (0, 10, 90), some)
    return Report(
        machine=machine,
        source=source,
        tokenizer="none (the documents are token ids)" if plain is None else plain.digest[:28],
        rounds=len(slices),
        bytes=sum(part.num_bytes for part in slices),
        comparison=comparison,
        workers=scaled,
        first_batch_s=starts,
        resume=resumed,
    )


def make_finite(
    arguments: Mapping[str, object],
    shards: Sequence[str],
    *,
    tokenizer: Tokenizer | None,
    num_lanes: int,
    epochs: int | None = 1,
    shuffle: bool = False,
) -> PackedDataset:
    """The dataset that is measured, on one rank: with `arguments`, and a tokenizer whose engine is chosen already."""
    return PackedDataset(
        list(shards),
        tokenizer,
        num_lanes=num_lanes,
        epochs=epochs,
        shuffle=shuffle,
        engine=_OWN_ENGINES.get(type(tokenizer), "auto"),
        **arguments,  # type: ignore[arg-type]  # checked where they came in
    ).for_rank(0, 1)


def _plain(path: str, tokens: Mapping[str, str | None]) -> Tokenizer:
    return read_tokenizer(path, StorageReader(), {name: token for name, token in tokens.items() if token is not None})


def _without_engine(tokenizer: Tokenizer | None) -> Tokenizer | None:
    """The library that the model is made for, which gets each text as a whole."""
    return tokenizer.plain if isinstance(tokenizer, Engine) else tokenizer


def _engines(plain: Tokenizer | None, names: Sequence[str]) -> dict[str, Tokenizer | None]:
    """The engines by the name of what they are for this model; two names for one engine give one entry."""
    if plain is None:
        return {"tokens": None}
    chosen: dict[str, Tokenizer | None] = {}
    for name in names:
        tokenizer = choose_engine(plain, name)
        if isinstance(tokenizer, Engine):
            chosen.setdefault(tokenizer.engine, tokenizer)
        else:
            kind = type(tokenizer)
            chosen.setdefault(_OWN_ENGINES.get(kind, kind.__name__.removesuffix("Tokenizer").lower()), tokenizer)
    return chosen


def _machine() -> Machine:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        processor=_processor(),
        cores=cores,
        load=os.getloadavg()[0],
        python=platform.python_version(),
        versions=_versions("streampack", "sentencepiece", "tokenizers", "gigatoken", "torch", "numpy"),
    )


def _versions(*names: str) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _processor() -> str:
    """What Linux calls the processor, or what Python knows of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
