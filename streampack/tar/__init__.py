"""The bytes of one shard as samples. No IO."""

__all__ = ["codecs", "cuts", "format", "grouping", "headers", "links", "reader", "scan", "seams"]
