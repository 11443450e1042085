"""A run whose reward waits or raises on request, and its processes: for tests of what a run does about faults."""

import subprocess

import psutil

from common.processes import descendants, role
from tests.conftest import ROOT
from tests.test_run_slow import SIZES


def start(folder, env, flags, steps, restarts, stall_seconds, *overrides, output=subprocess.PIPE):
    """Start a run that saves every second step and shows its data; `flags` is the folder that its reward looks into."""
    reward = "reward.custom_reward_function"
    sizes = [f"trainer.experiment_name={folder.name}", f"trainer.total_training_steps={steps}", "trainer.save_freq=2"]
    sizes += [f"{reward}.path=tests/stubborn_reward.py", f"+{reward}.reward_kwargs.folder={flags}"]
    sizes += [f"justrl.stall_seconds={stall_seconds}", f"trainer.rollout_data_dir={flags}/rollouts"]
    command = [".venv/bin/python", "-m", "recipe.train", "demo", "--restarts", str(restarts)]
    pipes = {"stdout": output, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *SIZES, *sizes, *overrides], cwd=ROOT, env=env, **pipes)


def find(run, name):
    """Return the run's process of this role, the one that was started last; None without."""
    found = [process for process in descendants(psutil.Process(run.pid)) if role(process) == name]
    return max(found, key=lambda process: process.pid, default=None)
