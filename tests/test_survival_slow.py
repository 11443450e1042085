"""A run that is killed again and again ends where an undisturbed one does, having seen the same data in the same order.

The order to compare with is drawn by the trainer's own code, without training.
"""

import io
import json
import os
import random
import signal
import subprocess
import time

import psutil
import pytest

from recipe.compose import compose
from recipe.progress import has_training
from recipe.resume import complete_checkpoints, read_metrics
from tests.conftest import ROOT
from tests.test_processes import wait_until
from tests.test_run_slow import SECONDS, assert_nothing_is_left, experiment

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("demo_data")]
NAME = "test_survival"
STEPS, KILLS, SAVE_EVERY, KEPT = 60, 5, 5, 3
# 84 problems are 10 batches of 8 and 4 problems left out, so that every second checkpoint ends an epoch.
SIZES = ["data.train_max_samples=84", "data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=8"]
SIZES += ["actor_rollout_ref.rollout.n=2", "data.max_response_length=8"]


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


def start(folder):
    """Start the run, or continue it."""
    train = [".venv/bin/python", "-m", "recipe.train", "demo", f"trainer.experiment_name={NAME}", *SIZES]
    train += [f"trainer.total_training_steps={STEPS}", f"trainer.save_freq={SAVE_EVERY}", "trainer.test_freq=-1"]
    train += ["trainer.val_before_train=false", f"trainer.max_actor_ckpt_to_keep={KEPT}"]
    train += [f"trainer.rollout_data_dir={folder}/rollouts"]
    return subprocess.Popen(train, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_five_kills_at_random_moments_change_neither_the_steps_nor_the_data(undisturbed):
    folder = experiment(NAME)
    moments = random.Random(5)
    recorded = set()
    for step in sorted(moments.sample(range(1, STEPS), KILLS)):
        run = start(folder)
        # A step that an earlier life has reached is no wait at all: that kill hits the start.
        wait_until(lambda: step in read_metrics(folder / "metrics.jsonl") or run.poll() is not None, SECONDS)  # noqa: B023
        time.sleep(moments.uniform(0, 10))
        assert run.poll() is None, run.stdout.read()
        recorded |= json.loads((folder / "processes.json").read_text())["processes"].keys()
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        print(f"killed after step {max(read_metrics(folder / 'metrics.jsonl'))}, checkpoints {checkpoints(folder)}")
    run = start(folder)
    output, _ = run.communicate(timeout=SECONDS)
    assert run.returncode == 0, output

    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1)), "no gap and no step twice"
    assert all(has_training(line["data"]) and line["data"]["training/global_step"] == line["step"] for line in metrics)
    assert [seen(folder, step) for step in range(1, STEPS + 1)] == [sorted(batch) for batch in undisturbed]
    assert optimizer_steps(folder) == {STEPS}
    assert checkpoints(folder) == [f"global_step_{step}" for step in (50, 55, 60)]
    assert_nothing_is_left(recorded)


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
    wait_until(lambda: psutil.Process(first.pid).children(), SECONDS)
    merger = psutil.Process(first.pid).children()[0]
    second = subprocess.run([*export, "60"], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert (second.returncode, second.stdout) == (2, "")
    assert "in progress" in second.stderr
    first.kill()
    first.wait()
    wait_until(lambda: not merger.is_running(), SECONDS)
    for step in (50, 55, 60):
        done = subprocess.run([*export, str(step)], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stderr
        assert (folder / "export" / f"step_{step}" / "model.safetensors").is_file()
    gone = subprocess.run([*export, "45"], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert gone.returncode == 2
    assert gone.stderr.endswith("has no complete checkpoint of step 45; there are 50, 55, 60\n")
