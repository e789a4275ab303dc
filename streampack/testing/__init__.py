"""For tests of your own training code: small shards from Python values, and a tokenizer without a model."""

from streampack.testing.shards import write_shards
from streampack.tokenizers.loading import ByteTokenizer

__all__ = ["ByteTokenizer", "write_shards"]
