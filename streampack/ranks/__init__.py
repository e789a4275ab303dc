"""Which rank this process is, and the small exchanges between ranks."""

__all__ = ["exchange", "groups", "topology", "torch_private"]
