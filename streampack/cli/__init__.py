"""The command line: `streampack COMMAND`, with a module or a folder for each command.

    write   peek/   trace/   plan/   count/   manifest   verify/   merge   relane   bench/   demo/
                                        a command each; in a folder it is command.py
    parts/                              the work of count, manifest and verify in parts, and on a Ray cluster
    per_shard   whole_shard   replay    how commands read shards, and lanes of a run
    arguments   console   progress      what is typed, and what is shown
    packings                            what each packing makes of the same documents

In:  the command's name and its arguments. Out: results on stdout, all else on stderr, and an exit code: 0, 1 after an
error or where something is wrong, 2 for wrong arguments.
Invariants: a command's module is imported only when that command runs. An error that streampack raises on purpose
becomes a message on stderr; `--debug`, anywhere on the command line, shows its traceback instead.
"""

import importlib
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import streampack
from streampack.errors import StreampackError

_HELP = {
    "write": "Write JSON lines, Parquet, texts or a dataset into shards, with a manifest.",
    "peek": "Show packs: their text, where documents meet, and which labels are masked.",
    "trace": "Show which documents are in a pack or a batch of a run, and where they are stored.",
    "plan": "Show what a config needs on so many ranks and workers: lanes, batches, memory, requests.",
    "count": "Count documents, bytes and tokens of shards, and how well they pack.",
    "manifest": "List shards and their sizes once, into a file that later runs read instead.",
    "verify": "Read whole shards and report what is wrong in them, and where.",
    "relane": "Give a saved run another number of lanes, for ranks that do not divide those it has.",
    "merge": "Add up the parts of verify, count or manifest, or finish a folder that write made in parts.",
    "bench": "Measure the speed on your shards and model, and show where the time goes.",
    "demo": "Kill a training, resume it on other ranks and workers, and compare every pack.",
}
_MODULES = {
    "write": "streampack.cli.write",
    "peek": "streampack.cli.peek.command",
    "trace": "streampack.cli.trace.command",
    "plan": "streampack.cli.plan.command",
    "count": "streampack.cli.count.command",
    "manifest": "streampack.cli.manifest",
    "verify": "streampack.cli.verify.command",
    "relane": "streampack.cli.relane",
    "merge": "streampack.cli.merge",
    "bench": "streampack.cli.bench.command",
    "demo": "streampack.cli.demo.command",
}
"""Where each command is: the function of its name."""
_SETTINGS = {"help_option_names": ["-h", "--help"]}


class _Commands(TyperGroup):
    """Commands that are known by name and one line of help until one of them runs."""

    def main(self, *args: Any, **extra: Any) -> Any:  # Any: as below
        from streampack.cli.console import escape_unencodable

        escape_unencodable()
        return super().main(*args, **extra)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # Any: typer's contexts moved between its releases
        if "--debug" in args:
            args = ["--debug", *(arg for arg in args if arg != "--debug")]
        if any(arg.partition("=")[0] == "--ray" for arg in args):
            from streampack.cli.parts.options import with_address

            args = with_address(args)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # Any: as above
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and _load(str(name)), rest

    def invoke(self, ctx: Any) -> Any:  # Any: as above
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except StreampackError as error:
            if ctx.params["debug"]:
                raise
            from streampack.cli.console import print_error

            print_error(str(error))
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    help="Tar shards in, packed and labelled batches out, with bit-exact resume on any number of ranks and workers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings=_SETTINGS,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"streampack {streampack.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version of streampack."),
    ] = False,
) -> None:
    pass


def _stub() -> None:
    """Stands for a command whose module is not imported yet."""


for _name, _help in _HELP.items():
    app.command(_name, help=_help)(_stub)


def main() -> None:
    """Run the command line on `sys.argv`."""
    app(prog_name="streampack")


def _load(name: str) -> Any:  # Any: typer's commands moved between its releases
    """Import a command's module and make the command of its function."""
    loaded = typer.Typer(add_completion=False, rich_markup_mode="rich")
    loaded.command(name, context_settings=_SETTINGS)(getattr(importlib.import_module(_MODULES[name]), name))
    return typer.main.get_command(loaded)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    from streampack.cli.console import print_warning

    print_warning(str(message))
