"""Token ids of documents as packs. Pure functions and NumPy only.

documents -> packer.Packer, best_fit.BestFitPacker -> packs.PackRows -> blocks.stack -> packs.PackBlock
                                                                     blocks.expand_block -> arrays
"""

__all__ = [
    "best_fit",
    "blocks",
    "buffer",
    "counting",
    "edges",
    "half_out",
    "making",
    "options",
    "pack_ends",
    "packer",
    "packs",
    "placing",
    "policies",
    "public",
    "rest",
    "window",
]
