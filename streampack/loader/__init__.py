"""The lanes of a rank as its batches, in the global order."""

__all__ = [
    "agreement",
    "commits",
    "consistency",
    "dealing",
    "loader",
    "messages",
    "parcels",
    "passes",
    "restarts",
    "rounds",
    "trainers",
    "workers",
]
