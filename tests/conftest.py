"""Shared paths and the data folder that only some machines have."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
# A loaded machine may stall in the middle of an example; no test asserts wall-clock time.
settings.register_profile("loaded", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("loaded")

SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def demo_data() -> None:
    """The demo's data and model, made by the run's own command."""
    subprocess.run(["./run_justrl.sh", "demo", "--only", "data"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def shared_data() -> Path:
    """The folder with the real benchmarks and one block of DAPO-Math-17k."""
    if not SHARED.is_dir():
        pytest.skip("the real data is not beside this checkout (../shared/data)")
    return SHARED
