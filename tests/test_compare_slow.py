"""One command trains a baseline and an arm with the same seed, and reports what the arm changed."""

import subprocess

import pytest

from recipe.monitor.metrics import read_metrics
from tests.conftest import HANGING_SECONDS, ROOT
from tests.test_run_slow import experiment

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("demo_data")]

SIZES = [
    "trainer.total_training_steps=2",
    "trainer.test_freq=2",
    "trainer.save_freq=2",
    "trainer.val_before_train=false",
]


def test_baseline_and_arm_are_trained_and_compared_and_a_second_call_trains_nothing(fork_server):
    folders = [experiment(f"test_compare{arm}_seed1") for arm in ("", "_overlong")]
    report = experiment("test_compare") / "arms" / "report.json"
    name = "trainer.experiment_name=test_compare"
    command = ["./run_justrl.sh", "--compare", "demo", "overlong", "--seeds", "1", name, *SIZES]
    for trained in (True, False):
        done = subprocess.run(
            command, cwd=ROOT, env=fork_server, capture_output=True, text=True, timeout=HANGING_SECONDS
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("training already finished" in done.stdout) != trained
        assert report.exists()
        report.unlink()
    baseline, arm = (read_metrics(folder / "metrics.jsonl") for folder in folders)
    assert list(baseline) == list(arm) == [1, 2]
    assert "reward/overlong" in arm[1]
    assert "reward/overlong" not in baseline[1]
