"""Token ids of documents as packs. Pure functions and NumPy only."""

__all__ = ["buffer", "options", "packer", "policies"]
