"""Samples as documents: which member, what is in it, what a transform makes of it."""

__all__ = ["contents", "reader", "split"]
