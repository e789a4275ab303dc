"""`streampack trace`: where the documents of a pack come from."""
