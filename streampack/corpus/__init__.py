"""Which shards there are, and who reads which of their bytes.

what the user wrote --resolve (braces, manifest)--> table --epochs--> an order --partition, blocks--> pieces of a lane
weights of sources --shares--> the source of a pack;  stages --schedule--> where each begins, where the run ends
"""

__all__ = [
    "blocks",
    "braces",
    "epochs",
    "kinds",
    "manifest",
    "options",
    "partition",
    "resolve",
    "schedule",
    "shares",
    "spans",
    "table",
    "urls",
]
