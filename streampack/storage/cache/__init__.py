"""Shards of a remote storage kept on a local disk, for all processes of the node.

    ranges -> reader -> blockfile     what is there comes from the disk
                     -> relay         what is not there comes from a backend, to the reader and to the disk

    reader       `CachedObject`, a `RangeReader` around a backend's
    relay        one answer of the backend on its way
    blockfile    a file of 8 MiB whose chunks prove themselves
    blocknames   what the files are called
    folder       all files: the budget, what is removed first, a failing disk

Never: an error because of the disk; a byte of another version than the reading's.
"""

__all__ = ["blockfile", "blocknames", "folder", "reader", "relay"]
