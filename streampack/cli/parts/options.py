"""The options of a command that can be done in parts, and what of them does not fit together.

In: the command line. Out: a `Division`.
"""

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
