"""Shards of a remote storage kept on a local disk, for all processes of the node."""

__all__ = ["blockfile", "folder", "names", "objects", "relay"]
