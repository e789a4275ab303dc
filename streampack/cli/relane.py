"""`streampack relane`: the state of a run with another number of lanes.

In:  the run's config file, a state of it, how many lanes it is to have: those of the config, where none are given.
Out: the new state in a file or a folder; on stdout what changes.
Invariants: no shard is read, but for its name and size; a file that is there stays.
"""

import tempfile
import warnings
from pathlib import Path
from typing import Annotated

import torch
import typer

from streampack.cli.arguments import Json, check_config, check_folder, file_errors, make_dataset
from streampack.cli.console import output, print_json, printable
from streampack.corpus.partition import fitting_ranks
from streampack.errors import ConfigError
from streampack.loader.relaning import relane as relane_state
from streampack.state.checkpoint import State
from streampack.state.fingerprint import fingerprint_of
from streampack.state.forms import leftovers_from_json
from streampack.state.joining import to_json
from streampack.state.reading import read_state

_TORCH = (".pt", ".pth", ".bin")


def relane(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="The run's config file (.yaml).", show_default=False)],
    state: Annotated[
        Path,
        typer.Argument(
            metavar="STATE",
            help="A checkpoint of the run: a folder of torch.distributed.checkpoint, a file of torch.save, or JSON.",
            show_default=False,
        ),
    ],
    *,
    num_lanes: Annotated[
        int | None,
        typer.Option(
            "--num-lanes", "-n", min=1, help="How many lanes it is to have.", show_default="num_lanes of CONFIG"
        ),
    ] = None,
    output_file: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="NEW",
            help="Where to write the new state: a file of JSON (.json) or torch.save (.pt), or else a folder of "
            "torch.distributed.checkpoint.",
            show_default=False,
        ),
    ],
    json: Json = False,
) -> None:
    """Give a saved run another number of lanes, for ranks that do not divide those it has.

    Its packs up to now stay as they are, and no document is lost or comes twice.
    """
    check_config(config, "relane")
    check_folder("--output", output_file)
    if output_file.exists():
        raise ConfigError(f"--output {output_file} is there already: name another file or folder")
    saved = read_state(state)
    dataset = make_dataset([config])
    if num_lanes is None:
        if dataset.auto_lanes:
            raise ConfigError(
                f"how many lanes is the run to have? {config} has num_lanes: auto or none. Name a number there, or "
                "give --num-lanes"
            )
        num_lanes = dataset.num_lanes
    made = relane_state(saved, dataset, num_lanes)
    _write(made, output_file)
    epochs = {name: left.epoch for name, left in leftovers_from_json(made["leftovers"]).items()}
    ranks = fitting_ranks(num_lanes)
    found = {
        "num_lanes": num_lanes,
        "num_lanes_before": fingerprint_of(saved)["num_lanes"],
        "ranks": ranks,
        "first_pack": made["global_pack"],
        "last_epoch_begun": epochs,
    }
    if json:
        print_json(found)
        return
    lines = [
        f"{found['num_lanes_before']:,} -> {num_lanes:,} lanes, from global pack {found['first_pack']:,} on",
        f"ranks that fit: {' '.join(f'{each:,}' for each in ranks)}",
        *(
            f"source {name}: what is left of the epochs up to {epoch} is divided among the new lanes"
            for name, epoch in epochs.items()
        ),
        f"written: {output_file}; load it with num_lanes: {num_lanes} in the config, or auto",
    ]
    for line in lines:
        output().print(printable(line), soft_wrap=True)


def _write(state: State, path: Path) -> None:
    """Write the state in the form that the path's name asks for; it has this name only when it is whole."""
    with file_errors("--output", path), tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        unfinished = Path(folder) / path.name
        if path.suffix == ".json":
            unfinished.write_text(to_json(state), "utf-8")
        elif path.suffix in _TORCH:
            torch.save(state, unfinished)
        else:
            from torch.distributed.checkpoint.state_dict_saver import save

            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # torch says that one process saves, which is meant
                save({"loader": state}, checkpoint_id=unfinished, no_dist=True)
        unfinished.rename(path)
