"""What goes wrong in a worker, in a module that workers import at no cost: a test file would bring torch.

In:  what is to be done as a transform is loaded. Out: an exception and a transform for `dataset`.
"""

from typing import Any


class LostConnectionError(Exception):
    """An exception that needs more than a message."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"{host}:{port}")
        self.host, self.port = host, port


class Unready:
    """A transform whose copy does something as it is loaded, in a worker's process."""

    def __init__(self, do: Any) -> None:
        self.do = do

    def __reduce__(self) -> Any:
        return load_unready, (self.do,)

    def __call__(self, document: Any, rng: Any) -> Any:
        return document


def load_unready(do: Any) -> Unready:
    do()
    return Unready(do)
