"""The positions of lanes as a checkpoint, and back."""

__all__ = ["checkpoint", "fingerprint"]
