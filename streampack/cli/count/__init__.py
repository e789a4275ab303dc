"""`streampack count`: documents, bytes and tokens of shards, and how well they pack."""
