"""Which shards there are, and who reads which of their bytes: the table, the epochs, the lanes."""

__all__ = ["epochs", "partition", "table"]
