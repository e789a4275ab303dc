"""How far a benchmark has got: a bar on stderr."""

from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from streampack.cli.console import messages

if TYPE_CHECKING:
    from collections.abc import Callable


class MeasureProgress:
    """A bar on stderr, one measure after the other; nothing where stderr is not a terminal."""

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
            auto_refresh=False,  # a thread of its own would disturb what is timed, and be there when workers are forked
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
