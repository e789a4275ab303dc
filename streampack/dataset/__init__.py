"""PackedDataset: arguments checked once, then a frozen record of them.

    arguments --assembly---> pipelines, what is done with bytes  |
    sources ---shardlist---> tables, where the bytes are         |  runplan --iteration--> packs of one worker
    stages ---resolution---> schedule, which source a pack is of |

Besides iteration, `PackedDataset` has what the loader needs to make lanes, and to write and check a state.
"""

__all__ = [
    "arguments",
    "assembly",
    "cutting",
    "dataset",
    "excluding",
    "fixed",
    "iteration",
    "rank",
    "resolution",
    "runplan",
    "shardlist",
    "sources",
    "stages",
    "tokenizer",
    "wrappers",
]
