"""What a subclass of `StorageConformance` may leave out is said to be skipped, and not passed."""

import unittest

import pytest

from streampack.testing import StorageConformance


def test_a_storage_that_lists_nothing_skips_the_test_of_listings() -> None:
    class Unlisted(StorageConformance):
        lists = False

    with pytest.raises(unittest.SkipTest, match="lists = False: the storage cannot list folders"):
        Unlisted().test_a_glob_and_a_directory_are_listed_with_sizes()
