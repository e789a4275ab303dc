"""`streampack peek`: packs of a run on the terminal."""
