"""`streampack verify`: are the shards whole, and can a run read every document in them?"""
