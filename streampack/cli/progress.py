"""How far a command has got, through shards or packs: a bar on stderr; nothing where stderr is not a terminal."""

from collections.abc import Callable
from typing import Self

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from streampack.cli.console import format_bytes, messages


class _SpeedColumn(ProgressColumn):
    """Rich's own has decimal units."""

    def render(self, task: Task) -> Text:
        return Text(f"{format_bytes(task.speed)}/s" if task.speed else "", justify="right")


def _over_bytes(items: str) -> list[ProgressColumn]:
    return [TextColumn(f"{{task.fields[{items}]}} {items}"), DownloadColumn(binary_units=True), _SpeedColumn()]


class _Bars:
    """Bars on stderr, where that is a terminal, which are gone at the end."""

    def __init__(self, what: str, *columns: ProgressColumn) -> None:
        console = messages()
        self._progress = Progress(
            TextColumn(what),
            BarColumn(bar_width=None),
            *columns,
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
            transient=True,
            expand=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class ShardProgress(_Bars):
    """A bar on stderr over the bytes of shards."""

    def __init__(self, doing: str, num_shards: int, num_bytes: int) -> None:
        super().__init__(doing, *_over_bytes("shards"))
        self._num_shards = num_shards
        self._task = self._progress.add_task("", total=num_bytes, shards=f"0/{num_shards:,}")

    def advance(self, bytes_done: int, shards_done: int) -> None:
        """So many bytes and shards are done."""
        # Started as late as here: it has a thread, and the processes are forked before.
        self._progress.start()
        self._progress.update(self._task, completed=bytes_done, shards=f"{shards_done:,}/{self._num_shards:,}")


class BytesProgress(_Bars):
    """Bars over passes with so many bytes, or of an unknown size; called where a pass begins."""

    def __init__(self) -> None:
        super().__init__("{task.description}", *_over_bytes("parts"))

    def __call__(self, doing: str, num_items: int, num_bytes: int | None) -> Callable[[int, int], None]:
        """A bar for a pass; call what it returns with (bytes done, parts done)."""
        self._progress.stop()
        task = self._progress.add_task(doing, total=num_bytes, parts=f"0/{num_items:,}")

        def advance(bytes_done: int, items_done: int) -> None:
            self._progress.start()  # as late as here: it has a thread, and the processes are forked before
            self._progress.update(task, completed=bytes_done, parts=f"{items_done:,}/{num_items:,}")

        return advance


class PackProgress(_Bars):
    """A bar over packs that are made."""

    def __init__(self, doing: str, num_packs: int) -> None:
        super().__init__(doing, MofNCompleteColumn(), TextColumn("packs"))
        self._task = self._progress.add_task("", total=num_packs)

    def __enter__(self) -> Self:
        self._progress.start()
        return super().__enter__()

    def advance(self) -> None:
        """One more is made."""
        self._progress.advance(self._task)
