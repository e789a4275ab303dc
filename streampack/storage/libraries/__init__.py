"""Private names of other libraries: one module per library, with the versions it was tried with.

Of storage's modules only these touch a name of another library that begins with `_`, or rely on how a library names its
own modules. Each has `TRIED`, the versions that the tests passed with; tests/unit/storage/test_libraries.py says which
name a release has taken away.
"""

__all__ = ["aiohttp", "botocore", "fsspec", "gcsfs"]
