"""The demo's real training on two nodes: on a real Slurm, and on a Ray cluster that is there."""

import contextlib
import json
import shlex
import socket
import subprocess
import sys

import psutil
import pytest

from common.processes import end
from recipe.checkpoints import complete_checkpoints
from recipe.monitor.events import read_events
from recipe.monitor.memory_growth import FULLEST_TOTAL, FULLEST_USED
from recipe.monitor.metrics import has_training, read_metrics
from tests.conftest import HANGING_SECONDS, ROOT, fork_server_command
from tests.slurm import ENDED, Slurm, missing
from tests.test_processes import wait_until
from tests.test_run_slow import SIZES, experiment

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("demo_data")]
FORK = "/dev/shm/fork"  # a node's own


def logged(folder):
    """Return the steps of a run's metrics, line by line."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(has_training(line["data"]) for line in lines)
    return [line["step"] for line in lines]


@contextlib.contextmanager
def warm_slurm(folder, nodes):
    """A Slurm of nodes with imported Python each: cold ones would import for minutes on two cores."""
    if reason := missing():
        pytest.skip(reason)
    start = f"cd {ROOT}; {shlex.join(fork_server_command(FORK))} &"
    with Slurm(folder, nodes, before=start) as cluster:
        for name in cluster.names:
            wait_until(lambda name=name: cluster.on(name, "test", "-e", FORK).returncode == 0, pause=0.5)
        yield cluster


def submit(slurm, out, *arguments):
    """Submit the demo's training to all nodes and return the job's id."""
    script = [str(ROOT / "run_justrl.sh"), "demo", "--only", "train", *arguments]
    variables = {"JUSTRL_FORK_SERVER": FORK, "JUSTRL_PYTHON": sys.executable, "JUSTRL_DEVICE": "cpu"}
    return slurm.sbatch(f"--nodes={len(slurm.names)}", f"--output={out}", *script, cwd=ROOT, **variables)


def wait_for_step(slurm, job, folder, step):
    """Wait until a job's run has logged a step."""
    metrics = folder / "metrics.jsonl"
    wait_until(lambda: step in read_metrics(metrics) or slurm.job(job)["JobState"] in ENDED, pause=0.5)


def test_a_run_on_two_nodes_restarts_within_its_job_and_near_the_time_limit_goes_back_into_the_queue(
    tmp_path, tmp_path_factory
):
    """A worker on the second node is stopped first. Then the signal of the time limit comes."""
    name, steps = "test_two_nodes", ["trainer.total_training_steps=8", "trainer.save_freq=8"]
    steps += ["justrl.stall_seconds=60", "--restarts", "1"]
    folder, out = experiment(name), tmp_path / "out"
    with warm_slurm(tmp_path_factory.mktemp("slurm"), 2) as slurm:
        job = submit(slurm, out, f"trainer.experiment_name={name}", *SIZES, *steps)
        wait_for_step(slurm, job, folder, 1)
        assert slurm.on(slurm.names[1], "pkill", "-STOP", "-f", "ray::WorkerDict").returncode == 0
        wait_until(lambda: slurm.job(job)["JobState"] in ENDED or read_events(folder)[1:], pause=0.5)
        restart = read_events(folder)[1]
        assert (restart["event"], restart["kind"]) == ("restart", "stalled"), out.read_text()
        assert "stopped: WorkerDict (process " in restart["cause"]
        wait_until(lambda: slurm.job(job)["JobState"] in ENDED or read_events(folder)[2:], pause=0.5)
        wait_for_step(slurm, job, folder, 2)
        assert slurm.job(job)["JobState"] == "RUNNING", out.read_text()
        slurm.client("scancel", "--batch", "--signal=USR1", job)
        slurm.restart_now(job)
        (saved,) = complete_checkpoints(folder / "checkpoints")
        shown = slurm.wait(job, "COMPLETED", "FAILED")
        for node in slurm.names:
            left = slurm.on(node, "ps", "-eo", "comm=").stdout.split()
            assert sorted(left) == ["bash", "ps", "python", "slurmd"], "the python is the fork server"
            assert slurm.on(node, "ls", "/dev/shm").stdout.split() == ["fork"]
    assert (shown["JobState"], shown["Restarts"]) == ("COMPLETED", "1"), out.read_text()
    assert f"stopped on request, saved at step {saved}" in out.read_text()
    assert f"from step {saved}\n" in out.read_text(), "no step was lost"
    assert logged(folder) == list(range(1, 9))
    for metrics in read_metrics(folder / "metrics.jsonl").values():
        assert 0 < metrics[FULLEST_USED] < metrics[FULLEST_TOTAL], "each step has the node that has least left"
    assert complete_checkpoints(folder / "checkpoints") == [saved, 8]
    shards = [path.name for path in (folder / "checkpoints" / "global_step_8" / "actor").glob("model_*.pt")]
    assert sorted(shards) == ["model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"]


SEEDED = [*SIZES, "actor_rollout_ref.rollout.agent.agent_loop_config_path=tests/seeded_rollout.yaml"]
SEEDED += ["trainer.total_training_steps=3", "trainer.save_freq=-1"]
# Groups of the demo's size and length, so that some answers are right; one update a step, which is all of a batch:
# verl cuts mini-batches from each rank's share (`_balance_batch`), so with several they hold other rows on two ranks.
SEEDED += ["actor_rollout_ref.rollout.n=8", "data.max_response_length=32"]


@pytest.fixture
def one_rank(fork_server):
    """The metrics of three steps on one rank."""
    folder = experiment("test_one_rank")
    train = [sys.executable, "-m", "recipe.train", "demo", "trainer.experiment_name=test_one_rank", *SEEDED]
    done = subprocess.run(train, cwd=ROOT, env=fork_server, capture_output=True, text=True, timeout=HANGING_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return read_metrics(folder / "metrics.jsonl")


@pytest.fixture
def ray_cluster(fork_server, tmp_path):
    """A Ray cluster of two nodes on this machine: the environment, its address and its dashboard's."""
    port, dashboard, client = (free_port() for _ in range(3))
    env = fork_server | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32, "RAY_USAGE_STATS_ENABLED": "0"}
    env |= {"RAY_START_HOOK": "common.ray_start.prepare_ray_start", "PYTHONPATH": str(ROOT)}
    ray = [str(ROOT / ".venv" / "bin" / "ray"), "start", "--block", "--num-cpus=8", "--num-gpus=1"]
    head = [f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    nodes = []
    try:
        for options in (["--head", *head], [f"--address=127.0.0.1:{port}"]):
            # As in real life, not started in the repository's folder.
            agent = f"--dashboard-agent-listen-port={free_port()}"  # the default is that of any other Ray here
            nodes.append(subprocess.Popen([*ray, *options, agent], cwd=tmp_path, env=env, start_new_session=True))
            wait_until(lambda: is_listening(port), *nodes)
        wait_until(lambda: is_listening(dashboard), *nodes)
        yield env, f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
    finally:
        for node in reversed(nodes):
            started = psutil.Process(node.pid).children(recursive=True)
            node.terminate()
            node.wait(timeout=HANGING_SECONDS)
            end(started)


# What a run keeps on a cluster while it lives, and the look at the nodes of a second one.
BESIDE_A_RUN = """
import ray, subprocess, sys
ray.init(namespace="transfer_queue", log_to_driver=False)
actor = ray.remote(num_cpus=0)(type("Controller", (), {})).options(name="TransferQueueController").remote()
subprocess.run([sys.executable, "-m", "recipe.nodes", "demo"])
"""


def free_port():
    """Return a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def is_listening(port):
    """Return whether somebody listens on a port of this machine."""
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_two_ranks_of_a_ray_cluster_learn_what_one_rank_learns(ray_cluster, one_rank):
    """The job is submitted to the cluster; with the same responses the losses are the same."""
    env, address, dashboard = ray_cluster
    folder = experiment("test_two_ranks")
    overrides = ["trainer.experiment_name=test_two_ranks", "trainer.nnodes=2", *SEEDED]
    job = [str(ROOT / "run_justrl.sh"), "demo", "--only", "train", *overrides]
    submit = [str(ROOT / ".venv" / "bin" / "ray"), "job", "submit", f"--address={dashboard}", "--", *job]
    done = subprocess.run(submit, env=env, capture_output=True, text=True, timeout=HANGING_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert logged(folder) == [1, 2, 3]
    second = [sys.executable, "-c", BESIDE_A_RUN]
    done = subprocess.run(second, cwd=ROOT, env=env | {"RAY_ADDRESS": address}, capture_output=True, text=True)
    assert "another run is on this cluster" in done.stderr
    two_ranks = read_metrics(folder / "metrics.jsonl")
    assert all(one["actor/grad_norm"] > 0 for one in one_rank.values()), "there is something to compare"
    for step, one in one_rank.items():
        two = two_ranks[step]
        assert two["critic/score/mean"] == one["critic/score/mean"]
        assert two["response_length/mean"] == one["response_length/mean"]
        assert two["actor/pg_loss"] == pytest.approx(one["actor/pg_loss"], rel=1e-6)
        # Gradients are in bfloat16, and Adam's first update goes by their signs, the least of which rounding turns.
        assert two["actor/grad_norm"] == pytest.approx(one["actor/grad_norm"], rel=1e-3 if step == 1 else 1e-2)
