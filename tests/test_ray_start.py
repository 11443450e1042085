"""Ray starts on a machine that is too slow for its own time limits; it fails at once where its raylet dies."""

import os
import subprocess
import sys

import psutil
import pytest

from common.processes import RAY_PATIENCE, end
from tests.conftest import HANGING_SECONDS, ROOT
from tests.test_processes import wait_until

START = """
import sys
from common.ray_start import prepare_ray_start
prepare_ray_start()
import ray
ray.init(address="local", include_dashboard=False, num_cpus=1, log_to_driver=False)
print(ray.get(ray.remote(lambda: "an answer").remote()), flush=True)
ray.shutdown()
"""


@pytest.fixture
def starting(tmp_path):
    """A process that starts Ray and asks it something."""
    env = os.environ | RAY_PATIENCE | {"RAY_USAGE_STATS_ENABLED": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", START], cwd=ROOT, env=env, **pipes)
    yield process
    if process.poll() is None:
        end([*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)])


def descendant(process, name):
    """Return a process's descendant by a part of its command, when it is there."""

    def found():
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if any(word.endswith(name) for word in child.cmdline()[:3])]

    wait_until(found, process)
    return found()[0]


def test_it_starts_before_its_agents_do(starting):
    """They are held up until the node has answered: for longer than 15 s its raylet would not wait for them."""
    agents = [descendant(starting, name) for name in ("dashboard/agent.py", "runtime_env/agent/main.py")]
    for agent in agents:
        agent.suspend()
    assert starting.stdout.readline() == "an answer\n"
    for agent in agents:
        agent.resume()
    _, errors = starting.communicate(timeout=HANGING_SECONDS)
    assert starting.returncode == 0, errors


def test_a_raylet_that_dies_while_it_starts_ends_the_start(starting):
    descendant(starting, "raylet/raylet").kill()
    _, errors = starting.communicate(timeout=HANGING_SECONDS)
    assert starting.returncode == 1
    assert "RaySystemError: " in errors
    assert "Ray's raylet died while it started" in errors
