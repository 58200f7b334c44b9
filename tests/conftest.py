import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data that FIREBOX_DATA names; tests that need it are skipped without."""
    folder = os.environ.get("FIREBOX_DATA")
    if not folder:
        pytest.skip("FIREBOX_DATA is not set")
    return Path(folder)
