"""The script as a batch job on a real Slurm of two nodes; a stub stands in for Ray and for the training alone."""

import os
import re
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.slurm import slurm  # noqa: F401
from tests.test_processes import wait_until
from tests.test_run_slow import experiment

pytestmark = pytest.mark.usefixtures("demo_data")

# In place of the training: notes where and with what it runs, then ends as the file `plan` says, or when it is asked
# to save and end. Everything else of the script is itself.
PYTHON = """\
#!/usr/bin/env bash
[ "$2" = recipe.train ] || exec {python} "$@"
{{ hostname; echo "$@"; env | grep -E '^(RAY|JUSTRL|SLURM_RESTART)_' | sort; echo; }} >>{folder}/trained
trap 'echo terminated >>{folder}/trained; exit 1' TERM
while :; do
  [ ! -f {folder}/plan ] || exit "$(cat {folder}/plan)"
  [ ! -f {run}/stop ] || {{ echo saved >>{folder}/trained; rm {run}/stop; exit 1; }}
  sleep 0.1
done
"""
# In place of `ray symmetric-run`: the node with the head's address runs the command; the other ends with it.
RAY = """\
#!/usr/bin/env bash
echo "$(hostname) $*" >>{folder}/started
ended={folder}/ended.$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}
if [[ " $(hostname -I)" != *" ${{3%:*}} "* ]]; then
  until [ -f "$ended" ]; do sleep 0.1; done
  exit
fi
while [ "$1" != -- ]; do shift; done
"${{@:2}}"
touch "$ended"
echo "symmetric-run hides the status $?"
"""
COMMAND = [str(ROOT / "run_justrl.sh"), "demo", "--only", "train", "trainer.experiment_name=test_slurm"]


@pytest.fixture
def stub(tmp_path):
    """The folder in which the stubs lie and write, and the environment in which the script finds them."""
    run = experiment("test_slurm")
    for name, text in (("python", PYTHON), ("ray", RAY)):
        (tmp_path / name).write_text(text.format(folder=tmp_path, run=run, python=sys.executable))
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    return tmp_path, {"JUSTRL_SETUP": "0", "JUSTRL_DEVICE": "cpu", "PATH": path}


def submit(slurm, stub, *options):  # noqa: F811
    """Submit the script to both nodes; return the job's id and its output file."""
    folder, variables = stub
    job = slurm.sbatch("--nodes=2", f"--output={folder}/out", *options, *COMMAND, cwd=ROOT, **variables)
    return job, folder / "out"


def test_the_training_runs_once_on_the_first_node_of_two(slurm, stub):  # noqa: F811
    folder, _ = stub
    (folder / "plan").write_text("0")
    job, out = submit(slurm, stub)
    shown = slurm.wait(job, "COMPLETED", "FAILED")
    assert (shown["JobState"], shown["ExitCode"]) == ("COMPLETED", "0:0"), out.read_text()
    said = out.read_text()
    assert said.splitlines()[0].startswith("== environment")
    assert f"Slurm job {job} on n[1-2], requeued 0 times" in said
    assert [line.split()[0] for line in said.splitlines() if re.match(r"\s*n\d ", line)] == ["n1", "n2"], said
    trained = (folder / "trained").read_text().splitlines()
    assert trained[:2] == ["n1", "-m recipe.train demo trainer.experiment_name=test_slurm"]
    variables = dict(line.split("=", 1) for line in trained[2:] if line)
    assert variables["JUSTRL_NODES"] == "2"
    assert variables["RAY_ADDRESS"] == f"10.77.0.11:{20000 + int(job)}"
    assert variables["RAY_AUTH_MODE"] == "token"
    assert re.fullmatch("[0-9a-f]{32}", variables["RAY_AUTH_TOKEN"])
    started = sorted((folder / "started").read_text().splitlines())
    expected = f"symmetric-run --address 10.77.0.11:{20000 + int(job)} --min-nodes 2 --num-cpus 8"
    assert [line.split(" --num-gpus", 1)[0] for line in started] == [f"n1 {expected}", f"n2 {expected}"]


def test_a_failed_training_fails_the_job_though_symmetric_run_ends_with_0(slurm, stub):  # noqa: F811
    (stub[0] / "plan").write_text("2")
    shown = slurm.wait(submit(slurm, stub)[0], "COMPLETED", "FAILED")
    assert (shown["JobState"], shown["ExitCode"]) == ("FAILED", "2:0")


def test_without_a_word_from_the_training_the_job_fails(slurm, stub):  # noqa: F811
    (stub[0] / "ray").write_text("#!/usr/bin/env bash\n")
    job, out = submit(slurm, stub)
    assert slurm.wait(job, "COMPLETED", "FAILED")["ExitCode"] == "1:0"
    assert "a node or Ray was lost" in out.read_text()


def test_before_the_time_limit_it_saves_and_goes_back_into_the_queue(slurm, stub):  # noqa: F811
    folder, _ = stub
    job, out = submit(slurm, stub)
    wait_until(lambda: (folder / "trained").exists())
    slurm.client("scancel", "--batch", "--signal=USR1", job)
    wait_until(lambda: "saved" in (folder / "trained").read_text())
    slurm.wait(job, "PENDING")
    (folder / "plan").write_text("0")
    slurm.restart_now(job)
    shown = slurm.wait(job, "COMPLETED", "FAILED")
    assert (shown["JobState"], shown["Restarts"]) == ("COMPLETED", "1"), out.read_text()
    assert (folder / "trained").read_text().count("-m recipe.train") == 2
    said = out.read_text()
    assert "the time limit is near" in said
    assert f"Slurm job {job} on n[1-2], requeued 1 times" in said


@pytest.mark.parametrize("slurm", [20], indirect=True)
def test_when_its_first_node_dies_the_job_is_requeued_and_finds_the_node_at_another_address(slurm, stub):  # noqa: F811
    folder, _ = stub
    job, out = submit(slurm, stub)
    trained = folder / "trained"
    wait_until(lambda: trained.exists() and "RAY_ADDRESS=" in trained.read_text())
    slurm.end_node("n1")
    slurm.wait(job, "PENDING")  # by Slurm itself, when it has noticed
    slurm.move_node("n1", "10.77.0.99")
    (folder / "plan").write_text("0")
    slurm.start_node("n1")
    slurm.restart_now(job)
    shown = slurm.wait(job, "COMPLETED", "FAILED")
    assert (shown["JobState"], shown["Restarts"]) == ("COMPLETED", "1"), out.read_text()
    addresses = re.findall(r"RAY_ADDRESS=(.*):", trained.read_text())
    assert addresses == ["10.77.0.11", "10.77.0.99"]
    assert f"Slurm job {job} on n[1-2], requeued 1 times" in out.read_text()


def test_other_versions_on_one_node_stop_the_job_before_anything_starts(slurm, stub):  # noqa: F811
    folder, _ = stub
    metadata = next(Path(sys.prefix).glob("lib/python*/site-packages/ray-*.dist-info/METADATA"))
    other = folder / "METADATA"
    other.write_text(re.sub(r"(?m)^Version: .*$", "Version: 1.2.3", metadata.read_text(), count=1))
    slurm.on("n2", "mount", "--bind", str(other), str(metadata))
    job, out = submit(slurm, stub)
    assert slurm.wait(job, "COMPLETED", "FAILED")["ExitCode"] == "2:0"
    assert "recipe.nodes: n2: ray 1.2.3, and n1 has 2." in out.read_text()
    assert not (folder / "trained").exists()


LISTEN = "import socket, time; s = socket.socket(); s.bind(('', 21000)); s.listen(); time.sleep(3600)"
TAKE_PORT = (
    f'{sys.executable} -c "{LISTEN}" >/dev/null 2>&1 & '
    "until (exec 3<>/dev/tcp/127.0.0.1/21000) 2>/dev/null; do sleep 0.1; done"
)


@pytest.mark.parametrize(
    ("node", "command", "variables", "message"),
    [
        ("n1", TAKE_PORT, {"JUSTRL_RAY_PORT": "21000"}, "n1: the port of Ray's head is taken; set JUSTRL_RAY_PORT"),
        ("n2", "mount -t tmpfs -o size=9m tmpfs /dev/shm", {}, "n2: 0.01 GB free in /dev/shm, 1 GB needed"),
        ("n2", f"mount -t tmpfs tmpfs {ROOT}/reward", {}, "n2: has other code than n1"),
        ("n2", f"mount -t tmpfs tmpfs {ROOT}/outputs", {}, "n2: does not see the run's folder"),
    ],
)
def test_a_wrong_set_up_is_one_line_and_status_2(slurm, tmp_path, node, command, variables, message):  # noqa: F811
    slurm.on(node, "bash", "-c", command)
    check = f"{sys.executable} -m recipe.nodes demo"
    job = slurm.sbatch(
        "--nodes=2",
        "--ntasks-per-node=1",
        f"--output={tmp_path}/out",
        f"--wrap={check}",
        cwd=ROOT,
        **({"JUSTRL_DEVICE": "cpu", "JUSTRL_NODES": "2"} | variables),
    )
    shown, out = slurm.wait(job, "COMPLETED", "FAILED"), (tmp_path / "out").read_text()
    assert shown["ExitCode"] == "2:0", out
    said = [line for line in out.splitlines() if line.startswith("recipe.nodes:")]
    assert len(said) == 1, out
    assert message in said[0]
