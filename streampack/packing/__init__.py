"""Token ids of documents as packs. Pure functions and NumPy only.

documents -> packer.Packer -> packs.PackRows -> blocks.stack -> packs.PackBlock -> blocks.expand_block -> arrays
"""

__all__ = ["blocks", "buffer", "counting", "edges", "options", "pack_ends", "packer", "packs", "policies", "public"]
