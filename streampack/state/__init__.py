"""The positions of lanes as a checkpoint, and back."""

__all__ = [
    "box",
    "checkpoint",
    "cursors",
    "fingerprint",
    "forms",
    "joining",
    "reading",
    "relaning",
    "sharded",
    "stages",
]
