"""The lanes of a rank as its batches, in the global order."""

__all__ = [
    "agreement",
    "claims",
    "commits",
    "consistency",
    "dealing",
    "formatting",
    "loader",
    "messages",
    "parcels",
    "passes",
    "restarts",
    "rounds",
    "stats",
    "workers",
]
