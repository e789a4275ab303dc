"""PackedDataset: arguments checked once, then a frozen record of them."""

__all__ = ["dataset", "iteration", "wrappers"]
