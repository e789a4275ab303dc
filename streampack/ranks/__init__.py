"""Which rank this process is, and the small exchanges between ranks."""

__all__ = ["carrier", "exchange", "groups", "topology", "torch_private"]
