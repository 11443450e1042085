"""What nodes report, and the problems of nodes that do not fit a run; tests/test_slurm.py has real nodes."""

import json
import os
import socket
import subprocess
import sys

import pytest

from common import machine, patience
from recipe.compose import compose
from recipe.nodes import ask_by_srun, describe, is_free, problems
from tests.conftest import HANGING_SECONDS, ROOT
from tests.test_machine import Stub


@pytest.fixture(scope="module")
def config():
    return compose("justrl_deepseek", ["trainer.nnodes=2", "data.train_files=x", "data.val_files=x"], "cuda")


def reports(**second):
    """Make the reports of two nodes with all that the config needs, the second one with something else."""
    node = {"node": "n1", "code": "c", "packages": {"ray": "2.60.0", "torch": "2.11.0"}, "gpus": 8, "free_gpus": 8}
    node |= {"cpus": 64, "shared": True, "unseen": [], "lacks": [], "free": {"/tmp": 9.0}, "port_free": True}
    return [node, node | {"node": "n2"} | second]


def test_nodes_that_fit_have_no_problem(config):
    assert problems(reports(), config) == []


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"code": "d"}, "n2: has other code than n1; put the repository on a shared file system"),
        ({"packages": {"torch": "2.11.0"}}, "n2: ray no version, and n1 has 2.60.0 (1 packages differ)"),
        ({"packages": {"ray": "2.59.0", "torch": "2.10.0"}}, "n2: ray 2.59.0, and n1 has 2.60.0 (2 packages differ)"),
        ({"lacks": ["the run wants 8 GPUs and there are 7"]}, "n2: the run wants 8 GPUs and there are 7"),
        ({"shared": False}, "n2: does not see the run's folder"),
        ({"unseen": ["/models/m"]}, "n2: does not see /models/m; put it on a file system that all nodes share"),
        ({"cpus": 23}, "n2: 23 CPUs, and 8 ranks need 24; give the job more (on Slurm --exclusive"),
    ],
)
def test_a_problem_is_one_line_with_its_fix(config, second, message):
    (problem,) = problems(reports(**second), config)
    assert problem.startswith(message)
    assert "\n" not in problem


def test_too_few_nodes_and_a_taken_port(config):
    (problem,) = problems(reports()[:1], config)
    assert problem == "1 nodes have 8 free GPUs, and the run needs 2; wait, or set trainer.nnodes"
    taken = reports()
    taken[0]["port_free"] = False
    assert problems(taken, config) == ["n1: the port of Ray's head is taken; set JUSTRL_RAY_PORT to another"]


def test_enough_cpus_for_each_node_may_be_too_few_for_the_run():
    """A rank on each of two nodes holds 3 CPUs; TransferQueue and task set-up need 3 more somewhere."""
    config = compose("demo", ["trainer.nnodes=2"], "cpu")
    nodes = reports(cpus=4)
    nodes[0]["cpus"] = 4
    assert problems(nodes, config) == ["8 CPUs on all nodes, and the run needs 9; give the job more"]


def test_a_node_describes_itself(tmp_path):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
        wanted = {
            "root": str(ROOT),
            "token": str(tmp_path),
            "paths": [str(tmp_path), "/no/such"],
            "port": port,
            "demand": None,
            "others": False,
        }
        found = describe(wanted)
    assert (found["unseen"], found["shared"], found["port_free"]) == (["/no/such"], False, False)
    assert found["packages"]["ray"] == __import__("ray").__version__
    assert found["code"] == describe(wanted)["code"]
    assert found["code"] != describe(wanted | {"root": str(tmp_path)})["code"]
    done = subprocess.run(
        [sys.executable, "-m", "recipe.nodes", "--describe", json.dumps(wanted | {"port": None})],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANGING_SECONDS,
    )
    assert json.loads(done.stdout)["port_free"]


SRUN = """\
#!/usr/bin/env bash
case "$*" in
  *--nodelist=n1*) echo '{{}}' ;;
  *) {second} ;;
esac
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Ask the nodes n1 and n2 of a job by a stand-in for srun; n2 does what is said."""

    def ask(second):
        for name, text in (("scontrol", "#!/bin/sh\necho n1\necho n2\n"), ("srun", SRUN)):
            (tmp_path / name).write_text(text.format(second=second))
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
        return ask_by_srun({})

    return ask


def test_a_slow_node_is_waited_for(job):
    assert job("sleep 2; echo '{}'") == [{}, {}]


def test_a_silent_node_is_named_when_the_others_have_answered(job, monkeypatch):
    monkeypatch.setattr(patience, "SILENT_SECONDS", 3)
    with pytest.raises(ValueError, match=r"^n2: no answer in 3 s; leave it out \(on Slurm by --exclude\)$"):
        job("exec sleep 3600")


def test_a_node_that_cannot_run_the_check_is_named_with_sruns_reason(job):
    with pytest.raises(ValueError, match=r"^n2: cannot run .* is it on a shared disk[?] slurmstepd: no such file$"):
        job("echo slurmstepd: no such file >&2; exit 1")


def test_a_cluster_that_does_not_answer_is_one_line_and_status_2():
    env = os.environ | {"RAY_ADDRESS": "127.0.0.1:1", "JUSTRL_DEVICE": "cpu"}
    command = [sys.executable, "-m", "recipe.nodes", "demo"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=HANGING_SECONDS)
    assert done.returncode == 2
    assert done.stderr == "recipe.nodes: RAY_ADDRESS=127.0.0.1:1: [Errno 111] Connection refused; is it a cluster's?\n"


def test_a_node_says_what_its_gpus_lack(monkeypatch, tmp_path):
    """Also of a node whose CUDA_VISIBLE_DEVICES Ray has emptied for a task that takes no GPU."""
    monkeypatch.setitem(sys.modules, "pynvml", Stub(count=2, free={0: 1}))
    monkeypatch.setattr(machine, "wheel_cuda", lambda: (13, 0))
    monkeypatch.setattr(machine, "compiler_lacks", list)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    wanted = {"root": str(tmp_path), "token": str(tmp_path), "paths": [], "port": None, "others": True}
    demand = machine.Demand(2, 0.5, any_gpus=True)
    found = describe(wanted | {"demand": demand._asdict()})
    assert (found["gpus"], found["free_gpus"]) == (2, 1)
    assert found["lacks"][0].startswith("GPU 0: 1.0 of 80.0 GiB are free, and vLLM takes 50%")
    assert describe(wanted | {"demand": demand._asdict(), "others": False})["lacks"] == []
    assert describe(wanted | {"demand": demand._replace(gpus=1)._asdict()})["lacks"] == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    assert describe(wanted | {"demand": demand._asdict()})["lacks"][0].startswith("CUDA_VISIBLE_DEVICES=MIG-1: a run")
