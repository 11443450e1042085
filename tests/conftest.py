"""Shared paths, imported Python to fork runs from, and the data folder that only some machines have."""

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from common.processes import LIBC, PR_SET_CHILD_SUBREAPER, RAY_PATIENCE

ROOT = Path(__file__).resolve().parent.parent
# A loaded machine may stall in the middle of an example; no test asserts wall-clock time.
settings.register_profile("loaded", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("loaded")

# As run_justrl.sh does: compiling what is imported takes half of each process's start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

os.environ.update(RAY_PATIENCE | {"JUSTRL_RESTARTS": "0"} | os.environ)  # a test that expects a failure expects one
# Ends a test that hangs; no wait of a test is shorter. A loaded machine may be ten times slower than an idle one.
HANGING_SECONDS = 3600
ENDING_SECONDS = 300  # of processes that were killed

SHARED = ROOT.parent / "shared" / "data"


LONGEST_FIRST = (
    "test_hangs_slow",
    "test_survival_slow",
    "test_run_slow",
    "test_cluster_slow",
    "test_generate_slow",
    "test_slurm",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slow files first, so that no worker of pytest is left alone with one at the end."""

    def order(item: pytest.Item) -> tuple[int, bool]:
        place = LONGEST_FIRST.index(item.path.stem) if item.path.stem in LONGEST_FIRST else len(LONGEST_FIRST)
        return place, item.get_closest_marker("slow") is None

    items.sort(key=order)


@pytest.fixture(autouse=True)
def no_subreaper():
    """Leave to init what a test leaves behind, where it made this process a subreaper: a zombie looks alive."""
    yield
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 0)


@pytest.fixture(scope="session")
def demo_data() -> None:
    """The demo's data and model, made by the run's own command; another worker of pytest waits until they are there."""
    (ROOT / "outputs").mkdir(exist_ok=True)
    with open(ROOT / "outputs" / ".test-data.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(["./run_justrl.sh", "demo", "--only", "data"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def fork_server_command(socket: str) -> list[str]:
    """Return the command of a server that runs on the CPU are forked from; it listens when it has imported."""
    return [sys.executable, "-m", "recipe.cpu.environment", socket]


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory) -> dict[str, str]:
    """The environment in which runs are forked from a server that outlives them: saves each of them 20 s of imports.

    A run that dies must leave nothing that was forked from it either, which is looked at when all have ended. The
    server is no child of this process, since a run that a test makes in this process ends all its descendants.
    """
    import psutil

    socket = str(tmp_path_factory.mktemp("fork") / "socket")
    subprocess.run(["setsid", "--fork", *fork_server_command(socket)], cwd=ROOT, check=True)
    (server,) = (process for process in psutil.process_iter(["cmdline"]) if socket in (process.info["cmdline"] or ()))
    while not os.path.exists(socket):
        assert server.status() != psutil.STATUS_ZOMBIE, "the fork server ended"
        time.sleep(0.2)
    yield os.environ | {"JUSTRL_FORK_SERVER": socket, "JUSTRL_PYTHON": sys.executable, "JUSTRL_DEVICE": "cpu"}
    _, left = psutil.wait_procs(server.children(), timeout=ENDING_SECONDS)
    server.kill()
    assert not left


@pytest.fixture
def no_pictures(monkeypatch) -> None:
    """For tests of a report's numbers: drawing takes most of its time."""
    from common.files import write_text
    from eval import report

    for name in ("draw_scores", "draw_pass_at_k", "draw_lengths"):
        monkeypatch.setattr(
            report, name, lambda _, path: [write_text(path.with_suffix(s), "") for s in (".png", ".svg")]
        )


@pytest.fixture
def shared_data() -> Path:
    """The folder with the real benchmarks and one block of DAPO-Math-17k."""
    if not SHARED.is_dir():
        pytest.skip("the real data is not beside this checkout (../shared/data)")
    return SHARED


@pytest.fixture
def impatient(monkeypatch) -> None:
    """Wait for milliseconds where requests to servers wait for seconds."""
    from eval import answering, endpoint

    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr(answering, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(endpoint, "PROBE_SECONDS", 0.01)
    monkeypatch.setattr(endpoint, "RESTART_SECONDS", 5)


@pytest.fixture(scope="module")
def queue():
    """A TransferQueue with one storage unit, on a Ray of its own."""
    import ray
    import transfer_queue
    from ray._private import node, services

    from common.ray_start import prepare_ray_start
    from recipe.compose import compose

    with pytest.MonkeyPatch.context() as unchanged:  # `prepare_ray_start` is for one start of a process
        unchanged.setattr(services, "get_node", services.get_node)
        for name in ("start_raylet", "start_api_server", "start_monitor"):
            unchanged.setattr(node.Node, name, getattr(node.Node, name))
        prepare_ray_start()
        ray.init(address="local", num_cpus=3, include_dashboard=False)
    transfer_queue.init(compose("demo", [], "cpu").transfer_queue)
    yield transfer_queue
    transfer_queue.close()
    ray.shutdown()
