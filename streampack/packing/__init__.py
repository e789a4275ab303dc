"""Token ids of documents as packs. Pure functions and NumPy only."""

__all__ = ["blocks", "buffer", "options", "packer", "packs", "policies"]
