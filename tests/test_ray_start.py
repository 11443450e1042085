"""Ray starts on a machine that is too slow for its own time limits; it fails at once where its raylet dies."""

import os
import subprocess
import sys

import psutil
import pytest

from common.processes import end
from tests.conftest import HANGING_SECONDS, ROOT
from tests.test_processes import wait_until

START = """
import sys
from common.ray_start import prepare_ray_start
prepare_ray_start()
import ray
from ray._private.node import Node
if sys.argv[1:] == ["dies"]:
    start = Node.start_raylet
    def start_and_kill(node, *arguments):
        start(node, *arguments)
        node.all_processes["raylet"][0].process.kill()
    Node.start_raylet = start_and_kill
ray.init(address="local", include_dashboard=False, num_cpus=1, log_to_driver=False)
print(ray.get(ray.remote(lambda: "an answer").remote()), flush=True)
ray.shutdown()
"""


@pytest.fixture
def start():
    """Start a process that starts Ray and asks it something."""
    started = []

    def run(*arguments):
        env = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([sys.executable, "-c", START, *arguments], cwd=ROOT, env=env, **pipes))
        return started[0]

    yield run
    if started[0].poll() is None:
        end([*psutil.Process(started[0].pid).children(recursive=True), psutil.Process(started[0].pid)])


def descendant(process, name):
    """Return a process's descendant by a part of its command, when it is there."""

    def found():
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if any(word.endswith(name) for word in child.cmdline()[:3])]

    wait_until(found, process)
    return found()[0]


def test_it_starts_before_its_agents_do(start):
    """They are held up until the node has answered: for longer than 15 s its raylet would not wait for them."""
    starting = start()
    agents = [descendant(starting, name) for name in ("dashboard/agent.py", "runtime_env/agent/main.py")]
    for agent in agents:
        agent.suspend()
    assert starting.stdout.readline() == "an answer\n"
    for agent in agents:
        agent.resume()
    _, errors = starting.communicate(timeout=HANGING_SECONDS)
    assert starting.returncode == 0, errors


def test_a_raylet_that_dies_while_it_starts_ends_the_start(start):
    starting = start("dies")
    _, errors = starting.communicate(timeout=HANGING_SECONDS)
    assert starting.returncode == 1
    assert errors.endswith("RaySystemError: System error: Ray's raylet died while it started\n"), errors
