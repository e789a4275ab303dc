"""The options of a command that can be done in parts; those that do not fit together are refused.

In: the command line. Out: a `Division`.
"""

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import typer

from streampack.corpus.parts import as_part
from streampack.errors import ConfigError

PartOption = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="I/N",
        help="Read the shards of part I of N (0 to N-1) only; `streampack merge` adds the parts up.",
        show_default="all shards",
    ),
]
PartsFolderOption = Annotated[
    str | None,
    typer.Option(
        "--parts",
        metavar="DIR",
        help="With --part or --ray: the folder, a path or a URL, that keeps what each part has found. A part that is "
        "there is not read again.",
        show_default=False,
    ),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Read the shards on a Ray cluster (extra `ray`): host:port, ray://host:port, or, without an address, the "
        "cluster of RAY_ADDRESS or of this machine.",
        show_default=False,
    ),
]

_ADDRESS = re.compile(r"auto|local|ray://\S+|[^\s/@]+:\d+")


def with_address(args: Iterable[str]) -> list[str]:
    """A command line in which each --ray has an address, "auto" where it was given none.

    >>> with_address(["verify", "corpus/", "--ray"])
    ['verify', 'corpus/', '--ray=auto']

    Raises:
        typer.BadParameter: what follows it is no address, so it may be a shard.
    """
    found: list[str] = []
    left = deque(args)
    while left:
        arg = left.popleft()
        if arg == "--":  # all that follows are shards
            return [*found, arg, *left]
        option, separator, address = arg.partition("=")
        if option != "--ray":
            found.append(arg)
            continue
        if not separator and left and not left[0].startswith("-"):
            address = left.popleft()
        if address and not _ADDRESS.fullmatch(address):
            raise typer.BadParameter(
                f"{address} is no address of a Ray cluster: give host:port or ray://host:port; without an address put "
                "--ray at the end of the line, or write --ray=auto",
                param_hint="--ray",
            )
        found.append(f"--ray={address or 'auto'}")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """How the work is divided, as it was asked for."""

    part: str | None
    parts: str | None
    ray: str | None
    workers: int | None

    def check(self) -> None:
        """Refuse what does not fit together, before any shard is listed."""
        if self.part is not None and self.ray is not None:
            raise ConfigError("--part and --ray: a Ray cluster makes all parts; give one of the two")
        if self.part is not None:
            as_part(self.part)
            if self.parts is None:
                raise ConfigError(
                    f"--part {self.part}: give --parts DIR as well, a folder that is the same for all parts: what each "
                    "has found is kept there, and `streampack merge DIR` adds it up"
                )
        elif self.ray is None and self.parts is not None:
            raise ConfigError(f"--parts {self.parts}: say which part with --part I/N, or give --ray for all of them")

    @property
    def is_asked_for(self) -> bool:
        """Whether there are parts."""
        return self.part is not None or self.ray is not None
