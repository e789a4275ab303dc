"""Options that several commands have, and the dataset that they make.

In:  what was given on the command line. Out: a `PackedDataset` on one rank, or what is needed to reach the shards.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from streampack.config.file import load_config
from streampack.dataset.dataset import PackedDataset
from streampack.packing.policies import ReplaceBoundary
from streampack.storage.access import StorageReader
from streampack.tokenizers.loading import ByteTokenizer

Shards = Annotated[
    list[str],
    typer.Argument(
        metavar="SHARDS",
        help="Paths or URLs, with braces or globs; directories; @manifest; or one config file (.yaml): its dataset, "
        "with what the options change.",
        show_default=False,
    ),
]
Tokenizer = Annotated[
    str | None, typer.Option("--tokenizer", "-t", help="SentencePiece model or tokenizer.json.", show_default=False)
]
Field = Annotated[
    str | None,
    typer.Option(
        help="What a document is: txt, json:KEY, jsonl:KEY (conversations with KEY messages) or npy.",
        show_default="txt",
    ),
]
ChatTemplate = Annotated[
    str | None,
    typer.Option(
        help="For conversations: phi3, llama2, mistral, llama3, chatml, or the path of a template.", show_default=False
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
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def make_dataset(shards: Sequence[str], **given: Any) -> PackedDataset:  # Any: each argument has its own type
    """The dataset of the shards, or of one config file, on one rank; an argument that is None was not given."""
    given = {name: value for name, value in given.items() if value is not None}
    if len(shards) == 1 and shards[0].endswith((".yaml", ".yml")):
        given = load_config(shards[0]).dataset_arguments() | given
    else:
        given = {"shards": list(shards), "tokenizer": None} | given
    boundary = given.get("boundary")
    if isinstance(boundary, str) and boundary.startswith("replace:") and boundary[8:].isdecimal():
        given["boundary"] = ReplaceBoundary(int(boundary[8:]))
    return PackedDataset(**given, dp_rank=0, dp_size=1)


def make_measured_dataset(shards: Sequence[str], tokenizer: str | None, **given: Any) -> tuple[PackedDataset, bool]:
    """The dataset, and whether it gives tokens: without a tokenizer text is only read and measured in bytes."""
    if tokenizer is None and given["field"] == "npy":
        bare = dict.fromkeys(("add_bos", "add_eos"), False)
        return make_dataset(shards, **given | {name: given.get(name) or value for name, value in bare.items()}), True
    if tokenizer is None and not (len(shards) == 1 and shards[0].endswith((".yaml", ".yml"))):
        return make_dataset(shards, tokenizer=ByteTokenizer(), **given), False  # the tokenizer is never called
    return make_dataset(shards, tokenizer=tokenizer, **given), True


def make_storage(shards: Sequence[str]) -> tuple[list[str], StorageReader]:
    """The shards and how to reach them, for commands that need no tokenizer; from a config file its dataset's."""
    if len(shards) == 1 and shards[0].endswith((".yaml", ".yml")):
        given = load_config(shards[0]).dataset_arguments()
        found = given["shards"]
        specs = [found] if isinstance(found, str) else list(found)
        return specs, StorageReader(given.get("storage_options"), given.get("retry"))
    return list(shards), StorageReader()
