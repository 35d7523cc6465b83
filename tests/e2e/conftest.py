"""What whole runs have in common."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def files_looked_at_once(looked_at_once):
    """All of these are about what comes after."""
