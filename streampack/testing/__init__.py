"""For tests of your own training code: small shards, a tokenizer without a model, and the check of a resume."""

from streampack.testing.resume import ResumableLoader, assert_resumes_exactly
from streampack.testing.shards import write_shards
from streampack.tokenizers.bytes import ByteTokenizer

__all__ = ["ByteTokenizer", "ResumableLoader", "assert_resumes_exactly", "write_shards"]
