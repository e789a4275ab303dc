"""Which shards there are, and who reads which of their bytes.

what the user wrote --resolve (braces, manifest)--> table --epochs--> an order --partition--> pieces of a lane
"""

__all__ = ["braces", "epochs", "kinds", "manifest", "partition", "resolve", "table", "urls"]
