"""Which shards there are, and who reads which of their bytes.

what the user wrote --resolve (braces, manifest)--> table --epochs--> an order --partition, blocks--> pieces of a lane
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
    "table",
    "urls",
]
