"""Options that several commands have, and the dataset or the sources that they make.

In:  what was given on the command line. Out: a `PackedDataset` on one rank, or what is needed to reach the shards.
"""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from streampack.chat.options import as_chat
from streampack.config.file import load_config
from streampack.dataset.dataset import PackedDataset
from streampack.dataset.sources import as_sources, names_of
from streampack.errors import ConfigError, StreampackError, as_choice
from streampack.formats.consumers import FORMAT_SPECS, Format
from streampack.lanes.run import RunSource
from streampack.packing.options import Packing
from streampack.packing.policies import ReplaceBoundary
from streampack.storage.access import StorageReader
from streampack.storage.options import Storage, as_storage
from streampack.tokenizers.bytes import ByteTokenizer

Shards = Annotated[
    list[str],
    typer.Argument(
        metavar="SHARDS",
        help="Paths or URLs, with braces or globs; directories; @manifest; or one config file (.yaml): its dataset, "
        "with what the options change.",
        show_default=False,
    ),
]
TOKENIZER_HELP = "SentencePiece model, tokenizer.json, tekken.json, or the folder with one."
Tokenizer = Annotated[str | None, typer.Option("--tokenizer", "-t", help=TOKENIZER_HELP, show_default=False)]
Field = Annotated[
    str | None,
    typer.Option(
        help="What a document is: txt, json:KEY, jsonl:KEY (conversations with KEY messages) or npy.",
        show_default="txt",
    ),
]
Chat = Annotated[
    str | None,
    typer.Option(
        help="For conversations: phi3, llama2, mistral, llama3, chatml, tokenizer (that of its folder) or the path "
        "of a template.",
        show_default=False,
    ),
]
TrainOn = Annotated[
    str | None,
    typer.Option(
        help="For conversations, what is trained: assistant, last_assistant or all.", show_default="assistant"
    ),
]
NumWorkers = Annotated[
    int | None, typer.Option("--workers", "-w", min=1, help="Processes that read shards.", show_default="one per core")
]
AddBos = Annotated[
    bool | None, typer.Option("--bos/--no-bos", help="Begin each document with BOS.", show_default="bos")
]
AddEos = Annotated[bool | None, typer.Option("--eos/--no-eos", help="End each document with EOS.", show_default="eos")]
BosToken = Annotated[
    str | None,
    typer.Option(metavar="TOKEN", help="The tokenizer's token that is BOS.", show_default="as its files say"),
]
EosToken = Annotated[
    str | None,
    typer.Option(metavar="TOKEN", help="The tokenizer's token that is EOS.", show_default="as its files say"),
]
PadToken = Annotated[
    str | None,
    typer.Option(metavar="TOKEN", help="The tokenizer's token that pads.", show_default="as its files say, else id 0"),
]
OneSource = Annotated[
    str | None,
    typer.Option("--source", metavar="NAME", help="Of a config with several sources, this one.", show_default="all"),
]
State = Annotated[
    Path | None,
    typer.Option(
        help="A checkpoint of the run, to begin there: a folder of torch.distributed.checkpoint, a file of torch.save, "
        "or JSON.",
        show_default="the start of the run",
    ),
]
GlobalBatch = Annotated[
    int | None, typer.Option(min=1, help="Packs of a batch over all ranks: batch_size x ranks.", show_default=False)
]
HeldOutPart = Annotated[
    str | None,
    typer.Option(help="Of a config with hold_out: train, or val, what is held out.", show_default="the config's"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def is_config(shards: Sequence[str]) -> bool:
    """Whether a config file is given in place of shards."""
    return len(shards) == 1 and shards[0].endswith((".yaml", ".yml"))


def check_config(given: str, command: str) -> None:
    """Refuse shards where only a config file will do."""
    if not is_config([given]):
        raise ConfigError(
            f"{given}: `streampack {command}` takes a config file (.yaml), whose `data:` names the shards "
            "(configs/demo.yaml is one); `streampack count` takes shards"
        )


def make_dataset(
    shards: Sequence[str],
    *,
    chat: str | None = None,
    train_on: str | None = None,
    boundary: str | None = None,
    packing: str | None = None,
    part: str | None = None,
    **others: Any,  # Any: each argument has its own type
) -> PackedDataset:
    """The dataset of the shards, or of one config file, on one rank; an argument that is None was not given.

    An option changes what it names of a config file's record, and leaves the rest as it is. Labels are as the format of
    the file's loader has them.

    Raises:
        ConfigError: an argument cannot be, or shards of text are given without a tokenizer.
    """
    given: dict[str, Any] = {"data": list(shards), "tokenizer": None}
    model_shifts = False
    if is_config(shards):
        config = load_config(shards[0])
        given = config.dataset_arguments()
        kind = as_choice(Format, config.loader_arguments().get("format", Format.STREAMPACK), "format")
        model_shifts = FORMAT_SPECS[kind].model_shifts
    if part is not None:
        given = _of_part(given, part)
    given |= {name: value for name, value in others.items() if value is not None}
    if not is_config(shards) and given["tokenizer"] is None:
        is_bare = (given.get("field"), given.get("add_bos"), given.get("add_eos")) == ("npy", False, False)
        if not is_bare:
            raise ConfigError(
                "--tokenizer (-t) is missing: give the path or URL of a SentencePiece model, a tokenizer.json, a "
                "tekken.json, or of the folder with one. "
                "Only token ids need none: --field npy --no-bos --no-eos"
            )
    if chat is not None or train_on is not None:
        asked = {"template": chat, "train_on": train_on}
        changes = {name: value for name, value in asked.items() if value is not None}
        given["chat"] = dataclasses.replace(as_chat(given.get("chat")), **changes)
    if packing is not None:
        record = given.get("packing")
        given["packing"] = dataclasses.replace(record, kind=packing) if isinstance(record, Packing) else packing
    if boundary is not None:
        token = boundary.removeprefix("replace:")
        given["boundary"] = ReplaceBoundary(int(token)) if token != boundary and token.isdecimal() else boundary
    dataset = PackedDataset(**given)
    return (dataset.without_lookahead() if model_shifts else dataset).for_rank(0, 1)


def _of_part(given: dict[str, Any], part: str) -> dict[str, Any]:  # Any: each argument has its own type
    """The arguments of a run's dataset, for its training or for what it holds out, which has no course of its own."""
    hold_out = given.get("hold_out")
    if hold_out is None:
        raise ConfigError(f"--part {part}: nothing is held out here; give a config whose dataset has hold_out")
    given = given | {"hold_out": dataclasses.replace(hold_out, part=part)}
    course = ("stages", "epochs", "num_tokens", "num_packs") if part == "val" and hold_out.part != part else ()
    return {name: value for name, value in given.items() if name not in course}


def make_measured_dataset(shards: Sequence[str], tokenizer: str | None, **given: Any) -> tuple[PackedDataset, bool]:
    """The dataset, and whether it gives tokens; without a tokenizer text is only read and measured in bytes.

    For commands that read whole shards: nothing is shuffled, and so no warning is about a shuffle.
    """
    given["shuffle"] = False
    if tokenizer is None and given["field"] == "npy":
        bare = dict.fromkeys(("add_bos", "add_eos"), False)
        return make_dataset(shards, **given | {name: given.get(name) or value for name, value in bare.items()}), True
    if tokenizer is None and not is_config(shards):
        return make_dataset(shards, tokenizer=ByteTokenizer(), **given), False  # the tokenizer is never called
    return make_dataset(shards, tokenizer=tokenizer, **given), True


def chosen_sources(dataset: PackedDataset, name: str | None) -> list[RunSource]:
    """The sources of a run, or the one of this name.

    Raises:
        ConfigError: there is none of this name.
    """
    sources = list(dataset.run().sources)
    if name is None:
        return sources
    check_source(name, dataset.sources)
    return [source for source in sources if source.name == name]


def check_source(name: str, sources: Collection[str]) -> None:
    """Refuse a name that no source has."""
    if name not in sources:
        raise ConfigError(f"--source {name}: there is no such source; there are {', '.join(sources)}")


def make_storages(shards: Sequence[str], source: str | None) -> dict[str, tuple[Sequence[str], StorageReader]]:
    """The shards of each source and how to reach them, for commands that need no tokenizer.

    Those of a config file are its dataset's, with the sources that stages add. Nothing is kept in a cache: what these
    commands read, they read once.
    """
    if not is_config(shards):
        found, storage = as_sources(list(shards)), Storage()
    else:
        given = load_config(shards[0]).dataset_arguments()
        found, storage = dict(as_sources(given["data"])), as_storage(given.get("storage", Storage()))
        for stage in given.get("stages", ()):
            found |= stage.sources or {}
    if source is not None:
        check_source(source, found)
        found = {source: found[source]}
    readers: dict[str, tuple[Sequence[str], StorageReader]] = {}
    for name, each in found.items():
        own = storage if each.storage is None else as_storage(each.storage)
        readers[name] = (names_of(each.data), StorageReader(own.options, own.retry))
    return readers


def check_folder(option: str, file: Path) -> None:
    """Refuse, before any work is done, a file in a folder that is not there."""
    if not file.parent.is_dir():
        raise ConfigError(f"{option} {file}: there is no folder {file.parent}: make it, or name a file in another one")


@contextlib.contextmanager
def file_errors(option: str, file: Path) -> Iterator[None]:
    """Use, in the block, the file that an option names.

    Raises:
        ConfigError: the operating system refuses; streampack's own errors, such as those of shards, pass as they are.
    """
    try:
        yield
    except StreampackError:
        raise
    except OSError as error:
        raise ConfigError(
            f"{option} {file}: {error.strerror or error}. Name a file in a folder that exists and may be written to."
        ) from error
