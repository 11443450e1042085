"""The demo's real training on two nodes: on a real Slurm, and on a Ray cluster that is there."""

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys

import psutil
import pytest

from recipe.processes import end
from recipe.progress import has_training
from recipe.resume import complete_checkpoints, read_metrics
from recipe.train import CPU_ENVIRONMENT, WARM_MODULES
from tests.conftest import ROOT
from tests.slurm import Slurm, missing
from tests.test_processes import wait_until
from tests.test_run_slow import SECONDS, experiment

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("demo_data")]
SIZES = ["data.train_max_samples=84", "data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=8"]
SIZES += ["actor_rollout_ref.rollout.n=2", "data.max_response_length=8", "trainer.test_freq=-1"]
SIZES += ["trainer.val_before_train=false", "trainer.save_freq=2"]
WARM = "/dev/shm/warm"  # a node's own
WARM_PYTHON = ["env", *(f"{k}={v}" for k, v in CPU_ENVIRONMENT.items()), sys.executable, "-m", "recipe.warm_python"]


def logged(folder):
    """Return the steps of a run's metrics, line by line."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(has_training(line["data"]) for line in lines)
    return [line["step"] for line in lines]


@pytest.fixture
def warm_slurm(tmp_path_factory):
    """Two nodes, each with imported Python to fork from: cold ones would import for minutes on two cores."""
    if reason := missing():
        pytest.skip(reason)
    start = f"cd {ROOT}; {shlex.join([*WARM_PYTHON, WARM, *WARM_MODULES])} &"
    with Slurm(tmp_path_factory.mktemp("slurm"), before=start) as cluster:
        for name in cluster.names:
            wait_until(lambda name=name: cluster.on(name, "test", "-e", WARM).returncode == 0, SECONDS)
        yield cluster


def test_a_run_on_two_nodes_is_requeued_and_continues(warm_slurm, tmp_path):
    name = "test_two_nodes"
    folder = experiment(name)
    overrides = [f"trainer.experiment_name={name}", "trainer.total_training_steps=6", *SIZES]
    script = [str(ROOT / "run_justrl.sh"), "demo", "--only", "train", *overrides]
    variables = {"JUSTRL_WARM_PYTHON": WARM, "JUSTRL_PYTHON": sys.executable, "JUSTRL_DEVICE": "cpu"}
    job = warm_slurm.sbatch("--nodes=2", f"--output={tmp_path}/out", *script, cwd=ROOT, **variables)
    out = tmp_path / "out"
    ended = ("COMPLETED", "FAILED", "TIMEOUT")
    wait_until(lambda: 3 in read_metrics(folder / "metrics.jsonl") or warm_slurm.job(job)["JobState"] in ended, SECONDS)
    assert warm_slurm.job(job)["JobState"] == "RUNNING", out.read_text()
    warm_slurm.client("scontrol", "requeue", job)
    warm_slurm.restart_now(job)
    shown = warm_slurm.wait(job, *ended, seconds=SECONDS)
    assert (shown["JobState"], shown["Restarts"]) == ("COMPLETED", "1"), out.read_text()
    assert "from step 2" in out.read_text()
    assert logged(folder) == [1, 2, 3, 4, 5, 6]
    assert complete_checkpoints(folder / "checkpoints") == [2, 4, 6]
    shards = [path.name for path in (folder / "checkpoints" / "global_step_6" / "actor").glob("model_*.pt")]
    assert sorted(shards) == ["model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"]
    for node in warm_slurm.names:
        left = warm_slurm.on(node, "ps", "-eo", "comm=").stdout.split()
        assert sorted(left) == ["bash", "ps", "python", "slurmd"], "the python is the warm one"
        assert warm_slurm.on(node, "ls", "/dev/shm").stdout.split() == ["warm"]


@pytest.fixture(scope="module")
def warm_python(tmp_path_factory):
    """The environment in which a run's processes are forked from a server that outlives the run."""
    path = str(tmp_path_factory.mktemp("warm") / "socket")
    server = subprocess.Popen([*WARM_PYTHON, path, *WARM_MODULES], cwd=ROOT, start_new_session=True)
    wait_until(lambda: os.path.exists(path) or server.poll() is not None, SECONDS)
    yield os.environ | {"JUSTRL_WARM_PYTHON": path, "JUSTRL_PYTHON": sys.executable, "JUSTRL_DEVICE": "cpu"}
    server.kill()
    server.wait()


SEEDED = [*SIZES, "actor_rollout_ref.rollout.agent.agent_loop_config_path=tests/seeded_rollout.yaml"]
SEEDED += ["trainer.total_training_steps=3", "trainer.save_freq=-1"]


@pytest.fixture
def one_rank(warm_python):
    """The metrics of three steps on one rank."""
    folder = experiment("test_one_rank")
    train = [sys.executable, "-m", "recipe.train", "demo", "trainer.experiment_name=test_one_rank", *SEEDED]
    done = subprocess.run(train, cwd=ROOT, env=warm_python, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return read_metrics(folder / "metrics.jsonl")


@pytest.fixture
def ray_cluster(warm_python):
    """A Ray cluster of two nodes on this machine: the environment that leads to it, and the dashboard's address."""
    port, dashboard, client = (free_port() for _ in range(3))
    env = warm_python | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32, "RAY_USAGE_STATS_ENABLED": "0"}
    ray = [str(ROOT / ".venv" / "bin" / "ray"), "start", "--block", "--num-cpus=8", "--num-gpus=1"]
    head = [f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    nodes = []
    try:
        for options in (["--head", *head], [f"--address=127.0.0.1:{port}"]):
            nodes.append(subprocess.Popen([*ray, *options], cwd=ROOT, env=env, start_new_session=True))
            wait_until(lambda: is_listening(port), 120)
        wait_until(lambda: is_listening(dashboard), 120)
        yield env, f"http://127.0.0.1:{dashboard}"
    finally:
        for node in reversed(nodes):
            started = psutil.Process(node.pid).children(recursive=True)
            node.terminate()
            node.wait(timeout=60)
            end(started)


def free_port():
    """Return a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def is_listening(port):
    """Return whether somebody listens on a port of this machine."""
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_two_ranks_of_a_ray_cluster_learn_what_one_rank_learns(ray_cluster, one_rank):
    """The job is submitted to the cluster; with the same responses, losses and gradients are the same."""
    env, dashboard = ray_cluster
    folder = experiment("test_two_ranks")
    overrides = ["trainer.experiment_name=test_two_ranks", "trainer.nnodes=2", *SEEDED]
    job = [str(ROOT / "run_justrl.sh"), "demo", "--only", "train", *overrides]
    submit = [str(ROOT / ".venv" / "bin" / "ray"), "job", "submit", f"--address={dashboard}", "--", *job]
    done = subprocess.run(submit, env=env, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert logged(folder) == [1, 2, 3]
    two_ranks = read_metrics(folder / "metrics.jsonl")
    for step, one in one_rank.items():
        two = two_ranks[step]
        assert two["critic/score/mean"] == one["critic/score/mean"]
        assert two["response_length/mean"] == one["response_length/mean"]
        for quantity in ("actor/pg_loss", "actor/grad_norm", "actor/entropy"):
            assert two[quantity] == pytest.approx(one[quantity], rel=1e-4, abs=1e-6), (step, quantity)
