"""For tests of your own: small shards, a byte tokenizer, a check of resumes, storage faults, tests for a storage."""

from streampack.testing.conformance import StorageConformance
from streampack.testing.faults import Fault, FaultyFileSystem
from streampack.testing.resume import ResumableLoader, assert_resumes_exactly
from streampack.testing.shards import write_shards
from streampack.tokenizers.bytes import ByteTokenizer

__all__ = [
    "ByteTokenizer",
    "Fault",
    "FaultyFileSystem",
    "ResumableLoader",
    "StorageConformance",
    "assert_resumes_exactly",
    "write_shards",
]
