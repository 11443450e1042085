"""A run that meets with ten faults ends where an undisturbed one does, having seen the same data in the same order.

The order to compare with is drawn by the trainer's own code, without training.
"""

import contextlib
import io
import json
import random
import shutil
import signal
import subprocess
import time

import psutil
import pytest

from common.locks import lock_holder
from recipe.checkpoints import complete_checkpoints
from recipe.compose import compose
from recipe.monitor.metrics import has_training, read_metrics
from tests.conftest import HANGING_SECONDS, ROOT
from tests.slurm import missing
from tests.test_cluster_slow import submit, wait_for_step, warm_slurm
from tests.test_processes import wait_until
from tests.test_run_slow import SIZES, assert_nothing_is_left, experiment, logged_process

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("demo_data")]
NAME = "test_survival"
STEPS, SAVE_EVERY, KEPT = 60, 5, 3  # every second checkpoint ends an epoch


def data_loader():
    """Return verl's trainer with nothing of it made but its data loader."""
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    trainer = object.__new__(PPOTrainerSync)
    trainer.config, trainer.trainer_mode, trainer.parameter_sync_step = compose("demo", SIZES, "cpu"), "sync", 1
    trainer._init_tokenizer()
    trainer._init_dataloader()
    return trainer


def problems(trainer):
    """Return the prompts of the trainer's next batch, in order."""
    return [messages[0]["content"] for messages in trainer._fetch_one_gen_batch().get("raw_prompt").tolist()]


@pytest.fixture(scope="module")
def undisturbed(demo_data):
    """The batches of an undisturbed run."""
    trainer = data_loader()
    assert trainer.steps_per_epoch == 10
    return [problems(trainer) for _ in range(STEPS)]


def test_the_order_survives_a_resume_anywhere_in_an_epoch(undisturbed):
    """A loader continues from what the last one saved: in an epoch's middle, after its last batch and its first."""
    import torch

    trainer = data_loader()
    for step, expected in enumerate(undisturbed[:25], 1):
        assert problems(trainer) == expected, f"step {step}"
        if step in (3, 10, 11, 20, 24):
            saved = io.BytesIO()
            torch.save(trainer.train_dataloader.state_dict(), saved)
            trainer = data_loader()
            trainer.train_dataloader.load_state_dict(torch.load(io.BytesIO(saved.getvalue()), weights_only=False))


def overrides(folder):
    """Return what makes the demo this run."""
    saved = [f"trainer.save_freq={SAVE_EVERY}", f"trainer.max_actor_ckpt_to_keep={KEPT}"]
    lengths = [f"trainer.total_training_steps={STEPS}", *saved]
    return [f"trainer.experiment_name={NAME}", *SIZES, *lengths, f"trainer.rollout_data_dir={folder}/rollouts"]


def start(folder, env):
    """Start the run on this machine, or continue it."""
    train = [".venv/bin/python", "-m", "recipe.train", "demo", *overrides(folder)]
    return subprocess.Popen(train, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def victim(folder, kind, since):
    """Return the living process of the run that a fault kills; None before it is there.

    Its log is read from the byte `since`: before, other runs wrote, on Slurm with the process ids of another namespace.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        if kind in LOGGED:
            return logged_process(folder, LOGGED[kind], since)
        for process in psutil.process_iter():  # of other runs there are raylets too
            if process.name() == "raylet" and f"{folder}/" in process.environ().get("VERL_FILE_LOGGER_PATH", ""):
                return process
    return None


SIGNALS = {"kill -9": signal.SIGKILL, "SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}
LOGGED = {"a killed vLLM engine": "EngineCore", "a lost worker": "WorkerDict"}  # to its name in train.log
KILLED = [*LOGGED, "a killed raylet"]


def strike(run, kind, folder, since):
    """Do to a run, whose log begins at the byte `since`, what clusters do to runs; wait until it has ended."""
    ballast = folder / "checkpoints" / "ballast"
    # It hears signals now, and has looked at the free space.
    wait_until(lambda: lock_holder(folder).text.startswith(f"process {run.pid} "), run)
    if kind in KILLED:
        wait_until(lambda: victim(folder, kind, since), run)
        victim(folder, kind, since).kill()
    elif kind == "a full disk":
        wait_until(lambda: fill(ballast) or run.poll() is not None)
    else:
        run.send_signal(SIGNALS[kind])
    output, _ = run.communicate(timeout=HANGING_SECONDS)
    if kind == "a full disk":
        ballast.unlink()
        assert f"(no space left in outputs/{NAME}/checkpoints; earlier checkpoints are kept)" in output
    if kind in ("SIGINT", "SIGTERM"):
        assert f"interrupted by {kind}; the same command continues from the last checkpoint" in output
    assert run.returncode == (-signal.SIGKILL if kind == "kill -9" else 1), output


def fill(ballast):
    """Append to a file until its disk is full: again and again, for retention frees what an old checkpoint held."""
    with contextlib.suppress(OSError), open(ballast, "ab", buffering=0) as file:
        while file.write(bytes(1 << 20)):
            pass


@pytest.fixture
def small_disk():
    """The run's folder, empty, with the checkpoints on a disk that holds ten of them."""
    if reason := missing():
        pytest.skip(reason)
    folder = experiment(NAME)
    (folder / "checkpoints").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", folder / "checkpoints"], check=True)
    yield folder
    saved = folder / "saved"
    shutil.copytree(folder / "checkpoints", saved)
    subprocess.run(["umount", "-l", folder / "checkpoints"], check=True)
    (folder / "checkpoints").rmdir()
    saved.rename(folder / "checkpoints")


def test_ten_faults_at_random_moments_change_neither_the_steps_nor_the_data(
    undisturbed, small_disk, fork_server, tmp_path, tmp_path_factory
):
    folder, moments = small_disk, random.Random(5)
    metrics = folder / "metrics.jsonl"
    steps = sorted(moments.sample(range(1, STEPS - 20), 10))  # the last ones run on for some steps
    kinds = [*SIGNALS, *KILLED, "a full disk"]
    moments.shuffle(kinds)
    with warm_slurm(tmp_path_factory.mktemp("slurm"), 1) as slurm:
        job = submit(slurm, tmp_path / "out", *overrides(folder))
        for number, step in enumerate(steps[:3]):
            slurm.wait(job, "RUNNING")
            wait_for_step(slurm, job, folder, step)
            assert slurm.job(job)["JobState"] == "RUNNING", (tmp_path / "out").read_text()
            time.sleep(moments.uniform(0, 5))
            slurm.client(*(["scancel"] if number == 2 else ["scontrol", "requeue"]), job)
            print(f"step {max(read_metrics(metrics))}, checkpoints {checkpoints(folder)}: requeued or cancelled")
            if number < 2:
                slurm.restart_now(job)
        slurm.wait(job, "CANCELLED")
    recorded = {}
    for step, kind in zip(steps[3:], kinds, strict=True):
        since = (folder / "train.log").stat().st_size
        run = start(folder, fork_server)
        # A step that an earlier life has reached is no wait at all: that fault hits the start.
        wait_until(lambda: step in read_metrics(metrics) or run.poll() is not None)  # noqa: B023
        time.sleep(moments.uniform(0, 5))
        assert run.poll() is None, run.stdout.read()
        with contextlib.suppress(FileNotFoundError):  # it had not started any
            recorded |= json.loads((folder / "processes.json").read_text())["processes"]
        strike(run, kind, folder, since)
        print(f"step {max(read_metrics(metrics))}, checkpoints {checkpoints(folder)}: {kind}")
    run = start(folder, fork_server)
    output, _ = run.communicate(timeout=HANGING_SECONDS)
    assert run.returncode == 0, output

    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1)), "no gap and no step twice"
    assert all(has_training(line["data"]) and line["data"]["training/global_step"] == line["step"] for line in lines)
    assert [seen(folder, step) for step in range(1, STEPS + 1)] == [sorted(batch) for batch in undisturbed]
    assert optimizer_steps(folder) == {STEPS}
    assert checkpoints(folder) == [f"global_step_{step}" for step in (50, 55, 60)]
    assert_nothing_is_left(recorded, folder)


def checkpoints(folder):
    """Return the names of the folders beside verl's tracker file."""
    return sorted(path.name for path in (folder / "checkpoints").glob("*") if path.is_dir())


def seen(folder, step):
    """Return the problems that a step was trained on, from verl's dump of its responses (two each)."""
    rows = [json.loads(line) for line in (folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()]
    prompts = sorted(row["input"].removeprefix("user\n").removesuffix("\nassistant\n") for row in rows)
    assert prompts[::2] == prompts[1::2]
    return prompts[::2]


def optimizer_steps(folder):
    """Return the numbers of updates that the last checkpoint's optimizer counts."""
    import torch

    path = folder / "checkpoints" / f"global_step_{STEPS}" / "actor" / "optim_world_size_1_rank_0.pt"
    states = torch.load(path, weights_only=False)["state"].values()
    return {int(state["step"]) for state in states}


def test_every_kept_checkpoint_can_be_exported_and_an_interrupted_export_again():
    folder = ROOT / "outputs" / NAME
    if complete_checkpoints(folder / "checkpoints") != [50, 55, 60]:
        pytest.skip("needs the run of the test above")
    export = [".venv/bin/python", "-m", "recipe.export", f"outputs/{NAME}", "--step"]
    first = subprocess.Popen([*export, "55"], cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_until(lambda: psutil.Process(first.pid).children())
    merger = psutil.Process(first.pid).children()[0]
    second = subprocess.run([*export, "60"], cwd=ROOT, capture_output=True, text=True, timeout=HANGING_SECONDS)
    assert (second.returncode, second.stdout) == (2, "")
    assert "in progress" in second.stderr
    first.kill()
    first.wait()
    wait_until(lambda: not merger.is_running())
    for step in (50, 55, 60):
        done = subprocess.run([*export, str(step)], cwd=ROOT, capture_output=True, text=True, timeout=HANGING_SECONDS)
        assert done.returncode == 0, done.stderr
        assert (folder / "export" / f"step_{step}" / "model.safetensors").is_file()
    gone = subprocess.run([*export, "45"], cwd=ROOT, capture_output=True, text=True, timeout=HANGING_SECONDS)
    assert gone.returncode == 2
    assert gone.stderr.endswith("has no complete checkpoint of step 45; there are 50, 55, 60\n")
