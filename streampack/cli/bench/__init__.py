"""`streampack bench`: how fast streampack is on one's own shards and model."""
