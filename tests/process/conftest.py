"""What jobs of several ranks read, and what they must hand out; once for all test files that a worker runs."""

import pytest
from support.ranks import References, write_corpora


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> References:
    return References(write_corpora(tmp_path_factory.mktemp("corpora")))
