"""The demo's model learns from a teacher alone, on verl's trainer with a second vLLM for the teacher."""

import subprocess

import pytest

from data_prep.demo import model
from recipe.distillation import TEACHER
from recipe.monitor.metrics import read_metrics
from tests.conftest import HANGING_SECONDS, ROOT
from tests.test_run_slow import experiment

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("demo_data")]
STEPS = 8


@pytest.fixture(scope="module")
def metrics(fork_server, tmp_path_factory):
    """The metrics by step of a run whose teacher works every sum out."""
    folder, place = experiment("test_distillation"), tmp_path_factory.mktemp("distillation")
    model.write(place / "teacher", model.SETTINGS | {"worked": 1.0})
    overrides = [
        f"trainer.experiment_name={folder.name}",
        f"trainer.total_training_steps={STEPS}",
        f"trainer.test_freq={STEPS}",
        "trainer.save_freq=-1",
        f"{TEACHER}.model_path={place / 'teacher'}",
    ]
    done = subprocess.run(
        [".venv/bin/python", "-m", "recipe.train", "demo", "+arms=distillation", *overrides],
        cwd=ROOT,
        env=fork_server,
        capture_output=True,
        text=True,
        timeout=HANGING_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return read_metrics(folder / "metrics.jsonl")


def test_accuracy_rises_and_the_two_log_probs_come_together(metrics):
    accuracy = "val-core/demo_arithmetic/acc/mean@4"
    assert metrics[STEPS][accuracy] > metrics[0][accuracy] + 0.2
    assert metrics[STEPS]["actor/distillation/abs_loss"] < metrics[1]["actor/distillation/abs_loss"]
