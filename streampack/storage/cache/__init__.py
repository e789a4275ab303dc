"""Shards of a remote storage kept on a local disk, for all processes of the node.

    ranges -> reader -> blockfile     what is there comes from the disk
                     -> relay         what is not there comes from a backend, to the reader and to the disk

    reader       `CachedObject`, a `RangeReader` around a backend's
    relay        one answer of the backend on its way
    blockfile    a file of 8 MiB with a digest of each of its chunks
    blocknames   what the files are called
    folder       all files: the budget, the order in which they are removed, a failing disk

Never: an error because of the disk; bytes of two versions of an object in one reading.
"""

__all__ = ["blockfile", "blocknames", "folder", "reader", "relay"]
