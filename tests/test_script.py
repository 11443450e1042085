"""The shell script's own logic: arguments, wrong use, and the commands' --help."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import HANGING_SECONDS, ROOT
from tests.test_processes import wait_until

SCRIPT = str(ROOT / "run_justrl.sh")
COMMANDS = [
    "data_prep.demo",
    "data_prep.benchmarks",
    "data_prep.dapo",
    "data_prep.gsm8k",
    "eval.generate",
    "eval.grade",
    "eval.report",
    "eval.select",
    "recipe.compose",
    "recipe.export",
    "recipe.nodes",
    "recipe.train",
    "recipe.verl_recipe.generate",
    "recipe.watch",
]


def run(*arguments):
    """Run a command in the repository's root to its end."""
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=HANGING_SECONDS)


def test_another_system_is_told_of_the_container(tmp_path):
    (tmp_path / "uname").write_text("#!/bin/sh\necho Darwin\n")
    (tmp_path / "uname").chmod(0o755)
    done = run("env", f"PATH={tmp_path}:{os.environ['PATH']}", SCRIPT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "run_justrl.sh: needs Linux, or Docker: see docs/install.md\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demoo"], "unknown config 'demoo'; there are demo "),
        (["demo", "justrl"], "more than one config"),
        (["--fast"], "unknown option --fast"),
        (["demo", "--seeds", "3"], "--seeds is for --compare"),
        (["--compare", "demo", "--seeds", "few"], "--seeds takes a number of at least 1"),
        (["--compare", "demo", "--only", "train"], "--compare has no stages"),
        (["--only", "everything"], "--only takes data, train, eval or report"),
        (["demo", "+trainer.totl=3"], "unknown key trainer.totl"),
        (["", "--only", "report"], "an argument is empty; is a variable unset?"),
        (["demo", "--allow", ""], "--allow takes a key"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(arguments, message):
    done = run(SCRIPT, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    done = run(sys.executable, "-m", command, "--help")
    assert done.returncode == 0
    assert f"python -m {command}" in done.stdout


def test_the_script_has_help():
    assert "examples: ./run_justrl.sh" in run(SCRIPT, "--help").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["recipe.train", "demo", "data.train_files=absent.parquet"],
        ["recipe.export", "outputs/absent"],
        ["eval.generate", "--model", "models/absent", "--bench", "data", "--output", "outputs/absent"],
        ["eval.grade", "outputs/absent"],
        ["eval.report", "outputs/absent"],
        ["eval.select", "outputs/absent", "--bench", "data", "--output", "outputs/absent.parquet"],
        ["recipe.watch", "outputs/absent"],
        ["data_prep.dapo", "--source", "absent.parquet", "--output", "outputs/absent.parquet"],
    ],
)
def test_every_command_answers_missing_input_with_one_line_and_status_2(arguments):
    done = run(sys.executable, "-m", *arguments)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval.report", "a", "b", "--output", ""], "argument --output: is empty; give a value, or leave"),
        (["eval.report", "a", "--published", ""], "argument --published: is empty"),
        (["eval.generate", "--model", "m", "--bench", "", "--output", "o"], "argument --bench: is empty"),
        (["eval.grade", "a", "--judge", ""], "argument --judge: is empty"),
        (["eval.grade", "a", "--endpoint", ""], "argument --endpoint: is empty"),
        (["eval.select", "", "--bench", "b", "--output", "o.parquet"], "argument DIR: is empty"),
        (["recipe.compare", "demo", ""], "argument arm | key=value: is empty"),
        (["recipe.compose", "demo", "--get", ""], "argument --get: is empty"),
        (["eval.grade", "a", "--endpoint", "http://x/v1"], "--endpoint is for a judge; add --judge, or leave it out"),
        (["eval.grade", "a", "--audit", "0.5"], "--audit is for a judge"),
        (["eval.report", "a", "--page", "README.md"], "README.md: not a .md file, or not written by eval.report"),
        (["eval.report", "a", "--page", "a/scores.json"], "argument --page: a/scores.json: not a .md file"),
        (["eval.report", "a", "--page", "docs"], "argument --page: docs: not a .md file"),
    ],
)
def test_an_empty_or_misplaced_value_is_refused_before_any_work(arguments, message):
    done = run(sys.executable, "-m", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr.splitlines()[-1]


# Stand-ins for Slurm, Ray and the training, which note how they are called. Everything else is itself.
ON_PATH = {
    "scontrol": "printf 'n1\\nn2\\n'",
    "hostname": "echo 10.0.0.1 10.0.0.2",
    "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
    "ray": 'while [ "$1" != -- ]; do shift; done; shift; "$@"',
    "python": f'[ "$2" = recipe.train ] && exit "$STATUS"; exec {sys.executable} "$@"',
}


@pytest.fixture
def on_slurm(tmp_path):
    """Run the script's training as in a job of two nodes; return what it did and the calls it made."""
    folder = ROOT / "outputs" / "test_fake_slurm"
    shutil.rmtree(folder, ignore_errors=True)
    for name, does in ON_PATH.items():
        note = f'echo "{name} $*" >>{tmp_path}/calls'
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{note}\n{does}\n")
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    slurm = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
    slurm |= {"SLURM_CPUS_ON_NODE": "16", "SLURM_GPUS_ON_NODE": "1", "JUSTRL_SETUP": "0", "JUSTRL_DEVICE": "cpu"}

    def run(status="0", **variables):
        command = [SCRIPT, "demo", "--only", "train", "trainer.experiment_name=test_fake_slurm"]
        env = os.environ | slurm | {"PATH": path, "STATUS": status} | variables
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HANGING_SECONDS)
        return done, (tmp_path / "calls").read_text().splitlines()

    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_the_script_alone_reaches_what_it_runs(tmp_path, number):
    stub = f'#!/usr/bin/env bash\n[ "$2" = recipe.train ] || exec {sys.executable} "$@"\necho $$ >{tmp_path}/pid\n'
    (tmp_path / "python").write_text(stub + "exec sleep 3600\n")
    (tmp_path / "python").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "JUSTRL_SETUP": "0"}
    command = [SCRIPT, "demo", "--only", "train", "trainer.experiment_name=test_signal"]
    script = subprocess.Popen(command, env=env, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), script)
    script.send_signal(number)
    assert script.wait(HANGING_SECONDS) == 128 + number
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


# In place of every stage: notes what it is and its fork server. The server's stand-in listens or fails.
STAGES = """\
#!/usr/bin/env bash
[ "$1" = -m ] || shift # common/forked_python.py
case "$2" in
  recipe.compose | recipe.check) exec {python} "$@" ;;
  recipe.cpu.environment) echo $$ >{folder}/pid; [ -n "$LISTENS" ] && exec {python} -c '{listen}' "$3" ;;
  *) echo "$2 ${{JUSTRL_FORK_SERVER:-none}}" >>{folder}/stages ;;
esac
"""
LISTEN = "import socket, sys, time; socket.socket(socket.AF_UNIX).bind(sys.argv[1]); time.sleep(3600)"


@pytest.mark.parametrize("listens", ["yes", ""])
def test_all_stages_share_a_fork_server_that_ends_with_the_script(tmp_path, listens):
    (tmp_path / "python").write_text(STAGES.format(python=sys.executable, folder=tmp_path, listen=LISTEN))
    (tmp_path / "python").chmod(0o755)
    env = {name: value for name, value in os.environ.items() if name != "JUSTRL_FORK_SERVER"}
    env |= {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "JUSTRL_SETUP": "0", "JUSTRL_DEVICE": "cpu"}
    command = [SCRIPT, "demo", "trainer.experiment_name=test_stages"]
    done = subprocess.run(
        command, env=env | {"LISTENS": listens}, capture_output=True, text=True, timeout=HANGING_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    stages = dict(line.split() for line in (tmp_path / "stages").read_text().splitlines())
    server = stages["recipe.train"]
    assert server == stages["eval.generate"] == stages["eval.report"]
    assert server.endswith("/socket") if listens else server == "none"
    assert not Path(server).parent.exists() or not listens
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_on_slurm_the_training_runs_under_srun_and_symmetric_run(on_slurm):
    done, calls = on_slurm()
    assert done.returncode == 0, done.stdout + done.stderr
    head = [call for call in calls if call.startswith("srun") and call.endswith("hostname -I")]
    assert head == ["srun --nodes=1 --ntasks=1 --nodelist=n1 hostname -I"]
    (started,) = [call for call in calls if call.startswith("srun --ntasks-per-node=1 ")]
    assert "bash -c exec ray symmetric-run" in started
    (ray,) = [call for call in calls if call.startswith("ray ")]
    assert ray.startswith("ray symmetric-run --address 10.0.0.1:23456 --min-nodes 2 --num-cpus 16 --num-gpus 1 -- ")
    assert calls[-1] == "python -m recipe.train demo trainer.experiment_name=test_fake_slurm"


def test_the_status_is_the_trainings_own(on_slurm):
    assert on_slurm("2")[0].returncode == 2


def test_a_head_address_can_be_given(on_slurm):
    calls = on_slurm(JUSTRL_HEAD_ADDRESS="10.9.9.9", JUSTRL_RAY_PORT="7000")[1]
    assert not [call for call in calls if call.endswith("hostname -I")]
    assert [call for call in calls if call.startswith("ray symmetric-run --address 10.9.9.9:7000 ")]
