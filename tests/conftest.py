"""Shared paths and the data folder that only some machines have."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    """The folder with the real benchmarks and one block of DAPO-Math-17k."""
    if not SHARED.is_dir():
        pytest.skip("the real data is not beside this checkout (../shared/data)")
    return SHARED
