"""The real command, shrunk to a few steps, on verl's trainer, Ray, FSDP2 and vLLM: nothing stands in for them."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from common.processes import ProcessRecord, scratch_folder, start_ticks
from data_prep.prompt import DAPO_PREFIX, DAPO_SUFFIX
from recipe.monitor.metrics import has_training, read_metrics
from tests.conftest import HANGING_SECONDS, ROOT
from tests.test_processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("demo_data")]
# The smallest steps, 10 an epoch with 4 problems left out, and no validation.
SIZES = ["data.train_max_samples=84", "data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=8"]
SIZES += ["actor_rollout_ref.rollout.n=2", "data.max_response_length=8"]
SIZES += ["trainer.test_freq=-1", "trainer.val_before_train=false"]


def experiment(name):
    """Return the folder of a run of its own, empty."""
    folder = ROOT / "outputs" / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def succeed(env, *command):
    """Run a command that must end with status 0."""
    options = {"cwd": ROOT, "env": env, "capture_output": True, "text": True, "timeout": HANGING_SECONDS}
    done = subprocess.run(list(map(str, command)), **options)
    assert done.returncode == 0, done.stdout + done.stderr


def trained(env, folder, *arguments):
    """Train the demo into a folder of its own, and return the folder."""
    name = f"trainer.experiment_name={folder.name}"
    succeed(env, ".venv/bin/python", "-m", "recipe.train", "demo", name, *arguments)
    return folder


def command(name, steps, *overrides):
    """Return the script's command for a demo of a few steps under its own name."""
    sizes = [f"trainer.total_training_steps={steps}", "trainer.save_freq=2", "trainer.test_freq=2"]
    return ["./run_justrl.sh", "demo", f"trainer.experiment_name={name}", "data.val_max_samples=16", *sizes, *overrides]


def logged_process(folder, name, since=0):
    """Return the living process that a run's log last calls by this name, read from the byte `since`; None without."""
    log = (folder / "train.log").read_bytes()[since:].decode(errors="replace")
    pids = re.findall(rf"\({name} pid=(\d+)", log)
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(int(pids[-1])) if pids else None


def alive(pid, started):
    """Return whether a process is alive that started at this tick: its id may be another's by now."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return start_ticks(int(pid)) == started
    return False


def sockets(folder):
    """Return the sockets through which a run sends new weights."""
    run = hashlib.sha256(str(folder / "attempt.jsonl").encode()).hexdigest()[:8]
    return list(Path("/tmp").glob(f"rl-colocate-zmq-{run}-*"))


def assert_nothing_is_left(recorded, folder):
    """No process that the run recorded (id to start) is alive, and none of its sockets is there."""
    wait_until(lambda: not [pid for pid, started in recorded.items() if alive(pid, started)])
    assert not scratch_folder(folder).exists()
    assert not sockets(folder)


def test_kill_9_in_the_middle_then_the_same_command_finishes(fork_server):
    folder = experiment("test_kill")
    same = {"args": command("test_kill", 6), "cwd": ROOT, "env": fork_server | {"JUSTRL_EVAL": "--samples 1"}}
    ended = {"capture_output": True, "text": True, "timeout": HANGING_SECONDS}
    first = subprocess.Popen(**same, start_new_session=True, stdout=subprocess.DEVNULL)
    wait_until(lambda: 3 in read_metrics(folder / "metrics.jsonl"), first)
    logged_process(folder, "WorkerDict").suspend()  # or it would end while the second starts

    second = subprocess.run(**same, **ended)
    assert second.returncode == 2
    assert f"a run is in progress in {folder.relative_to(ROOT)}: process " in second.stderr
    assert first.poll() is None, "the second start must harm nothing"

    recorded = json.loads((folder / "processes.json").read_text())["processes"]
    assert len(recorded) > 8, "Ray, verl and vLLM are more processes than that"
    (training,) = psutil.Process(first.pid).children()
    first.kill()
    os.killpg(training.pid, signal.SIGKILL)
    first.wait()

    done = subprocess.run(**same, **ended)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "from step 2" in done.stdout or "from step 4" in done.stdout
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5, 6], "no gap and no step twice"
    assert all(has_training(line["data"]) for line in lines[1:])
    scores = json.loads((folder / "eval" / "step_6" / "scores.json").read_text())
    assert scores["tasks"]["test"]["problems"] == 256
    assert "| test (avg@1, 256 problems) |" in (folder / "report.md").read_text()
    assert not ProcessRecord(folder).path.exists()
    assert_nothing_is_left(recorded, folder)

    started = time.monotonic()
    again = subprocess.run(**same, **ended)
    assert again.returncode == 0
    assert "training already finished" in again.stdout
    assert again.stdout.count("all samples are there") == 2
    assert "step    1/6" not in again.stdout, f"a finished run was trained again ({time.monotonic() - started:.0f} s)"


def test_a_failing_run_names_its_cause(fork_server):
    experiment("test_failure")
    train = [".venv/bin/python", "-m", "recipe.train", *command("test_failure", 2)[1:]]
    train.append("actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes=1")
    done = subprocess.run(train, cwd=ROOT, env=fork_server, capture_output=True, text=True, timeout=HANGING_SECONDS)
    assert done.returncode == 1
    assert "training failed: ValueError" in done.stderr
    assert "KV cache" in done.stderr
    assert len(done.stderr.splitlines()) == 2, "the cause and the log's path, not 300 lines"


def test_of_two_runs_at_once_one_survives_the_others_lost_engine(fork_server):
    """The engine is killed while the actor learns: then nobody speaks to it until it is to have new weights."""
    folders = [experiment(name) for name in ("test_lost", "test_kept")]
    runs = []
    for folder in folders:
        train = [".venv/bin/python", "-m", "recipe.train", "demo", f"trainer.experiment_name={folder.name}", *SIZES]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        steps = "trainer.total_training_steps=16"
        runs.append(subprocess.Popen([*train, steps], cwd=ROOT, env=fork_server, **pipes))
    lost, kept = runs
    wait_until(lambda: 4 in read_metrics(folders[0] / "metrics.jsonl"), *runs)
    server, worker = (logged_process(folders[0], name) for name in ("vLLMHttpServer", "WorkerDict"))
    wait_until(lambda: worker.cmdline()[0].endswith("update_actor"), lost)
    server.kill()
    output, _ = lost.communicate(timeout=HANGING_SECONDS)
    assert lost.returncode == 1, output
    assert "training failed: ray.exceptions.ActorDiedError" in output
    output, _ = kept.communicate(timeout=HANGING_SECONDS)
    assert kept.returncode == 0, output
    assert max(read_metrics(folders[1] / "metrics.jsonl")) == 16


def test_an_engine_core_that_dies_while_it_takes_new_weights_ends_the_run(fork_server):
    """vLLM answers a call that was under way neither with a result nor with an error. It is held first, so that the
    kill comes while the worker sends to it."""
    folder = experiment("test_lost_core")
    train = [".venv/bin/python", "-m", "recipe.train", "demo", f"trainer.experiment_name={folder.name}", *SIZES]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    run = subprocess.Popen([*train, "trainer.total_training_steps=30"], cwd=ROOT, env=fork_server, **pipes)
    wait_until(lambda: 2 in read_metrics(folder / "metrics.jsonl"), run)
    core, worker = (logged_process(folder, name) for name in ("EngineCore", "WorkerDict"))
    wait_until(lambda: worker.cmdline()[0].endswith("update_actor"), run)
    core.suspend()
    wait_until(lambda: worker.cmdline()[0].endswith("update_weights"), run)
    wait_until(lambda: sockets(folder), run)
    time.sleep(1)  # the call, which the worker sent before it made its socket, is under way
    core.kill()
    output, _ = run.communicate(timeout=HANGING_SECONDS)
    assert run.returncode == 1, output
    assert "the vLLM engine died while it took new weights" in (folder / "train.log").read_text(errors="replace")


def test_a_rank_that_hangs_in_the_update_ends_the_run_after_nccl_timeout(fork_server):
    """The other rank waits for it in a collective, here gloo's, which fails; NCCL's would end the other's process."""
    folder = experiment("test_hanging_rank")
    ranks = ["trainer.n_gpus_per_node=2", "ray_kwargs.ray_init.num_gpus=2", "ray_kwargs.ray_init.num_cpus=9"]
    train = [".venv/bin/python", "-m", "recipe.train", "demo", f"trainer.experiment_name={folder.name}", *SIZES, *ranks]
    train += ["actor_rollout_ref.nccl_timeout=60", "trainer.total_training_steps=30"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    run = subprocess.Popen(train, cwd=ROOT, env=fork_server, **pipes)
    wait_until(lambda: 1 in read_metrics(folder / "metrics.jsonl"), run)
    worker = logged_process(folder, "WorkerDict")
    wait_until(lambda: worker.cmdline()[0].endswith("update_actor"), run, pause=0.005)
    worker.suspend()
    output, _ = run.communicate(timeout=HANGING_SECONDS)
    assert run.returncode == 1, output
    assert "training failed: RuntimeError: " in output
    assert "Timed out waiting 60000ms" in output


def write_released_layout(shared_data, path):
    """Write some rows of the training set with the template that the released file has."""
    import pandas as pd

    frame = pd.read_parquet(shared_data / "dapo-math-17k-one-block.parquet").head(2000)
    prompts = [[{"role": "user", "content": DAPO_PREFIX + p[0]["content"] + DAPO_SUFFIX}] for p in frame["prompt"]]
    frame.assign(prompt=prompts).to_parquet(path)


def test_the_papers_config_takes_the_real_data_through_every_stage(shared_data, fork_server, tmp_path):
    """The dry run: DAPO's rows with their template, AIME24, AIME25 and AMC23, by overrides alone."""
    write_released_layout(shared_data, tmp_path / "raw.parquet")
    folder = experiment("test_dry_run")
    overrides = [
        "trainer.experiment_name=test_dry_run",
        "trainer.total_training_steps=2",
        "trainer.save_freq=2",
        "trainer.test_freq=2",
        "actor_rollout_ref.model.path=models/demo",
        "actor_rollout_ref.rollout.val_kwargs.n=1",
        "actor_rollout_ref.rollout.max_num_seqs=64",
        "data.train_batch_size=8",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "data.max_response_length=32",
        "actor_rollout_ref.rollout.custom.validation_response_length=32",
    ]
    environment = fork_server | {
        "JUSTRL_DAPO": str(tmp_path / "raw.parquet"),
        "JUSTRL_BENCH": str(shared_data / "bench"),
        "JUSTRL_DATA": str(tmp_path / "data"),
        "JUSTRL_EVAL": "--tasks AIME24,AIME25,AMC23 --samples 2 --max-tokens 32",
    }
    succeed(environment, "./run_justrl.sh", "justrl_deepseek", "--allow", "*", *overrides)
    scores = json.loads((folder / "eval" / "step_2" / "scores.json").read_text())
    assert {task: values["problems"] for task, values in scores["tasks"].items()} == {
        "AIME24": 30,
        "AIME25": 30,
        "AMC23": 40,
    }
    metrics = read_metrics(folder / "metrics.jsonl")
    assert {f"val-core/{task}/acc/mean@1" for task in scores["tasks"]} <= set(metrics[0])
    if scores["mean"] == 0:
        assert "zero before and after" in (folder / "report.md").read_text()
