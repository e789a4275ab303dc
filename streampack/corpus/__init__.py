"""Which shards there are, and who reads which of their bytes.

what the user wrote --resolve (braces, manifest)--> table --epochs--> an order --partition, blocks--> pieces of a lane
writing/: documents in other files --> shards and their manifest, the way that comes before all of this
weights of sources --shares--> the source of a pack;  stages --schedule--> where each begins, where the run ends
"""

__all__ = [
    "blocks",
    "braces",
    "epochs",
    "kinds",
    "leftovers",
    "manifest",
    "options",
    "partition",
    "parts",
    "processes",
    "resolve",
    "schedule",
    "sections",
    "shares",
    "sizes",
    "spans",
    "table",
    "urls",
    "writing",
]
