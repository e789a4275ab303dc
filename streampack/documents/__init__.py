"""Samples as documents: which member, what is in it, what a transform makes of it.

sample --members, compression, lines--> records --contents, jsonrecords, conversations, npy--> document
                                                                         --transform--> documents
"""

__all__ = [
    "compression",
    "contents",
    "conversations",
    "draws",
    "excluded",
    "fields",
    "jsonrecords",
    "lines",
    "members",
    "npy",
    "reader",
    "split",
    "transform",
]
