"""One lane, from a position on: all stages of the pipeline in a row, inside a memory budget."""

__all__ = ["pipeline", "pool", "reader", "stream"]
