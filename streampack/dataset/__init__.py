"""PackedDataset: arguments checked once, then a frozen record of them.

    arguments --assembly---> pipeline, what is done with bytes  |
    data ------shardlist---> table, where the bytes are         |  dataset --iteration--> packs of one worker

Besides iteration, `PackedDataset` has what the loader needs to make lanes, and to write and check a state.
"""

__all__ = ["arguments", "assembly", "dataset", "iteration", "shardlist", "wrappers"]
