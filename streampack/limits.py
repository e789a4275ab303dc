"""What compressed bytes from anywhere may become, for all that decompresses."""

MAX_RATIO = 200
"""Bytes out for one byte in, above the free ones. Text comes to 3 or 4, token ids to about 2, the same line for ever to
thousands."""
FREE_BYTES = 1 << 26
"""For which the ratio does not matter."""
MAX_WINDOW_BYTES = 1 << 27
"""Of zstd: what `zstd --long` writes, and reads without being asked for more."""
