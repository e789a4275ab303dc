"""Which shards there are, and who reads which of their bytes.

what the user wrote --resolve (braces, manifest, sizes)--> table --epochs--> an order --partition, blocks--> pieces
pieces --sections--> what a lane reads: its share of an epoch, or leftovers of a run that had other lanes
parts: a table divided among machines, for commands over all shards
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
