"""The demo's model learns from a teacher alone, on verl's trainer with a second vLLM for the teacher."""

import pytest

from data_prep.demo import model
from recipe.distillation import TEACHER
from recipe.monitor.metrics import read_metrics
from tests.test_run_slow import experiment, trained

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("demo_data")]
STEPS = 8


@pytest.fixture(scope="module")
def metrics(fork_server, tmp_path_factory):
    """The metrics by step of a run whose teacher works every sum out."""
    teacher = tmp_path_factory.mktemp("distillation") / "teacher"
    model.write(teacher, model.SETTINGS | {"worked": 1.0})
    overrides = [
        f"trainer.total_training_steps={STEPS}",
        f"trainer.test_freq={STEPS}",
        "trainer.save_freq=-1",
        f"{TEACHER}.model_path={teacher}",
    ]
    folder = trained(fork_server, experiment("test_distillation"), "+arms=distillation", *overrides)
    return read_metrics(folder / "metrics.jsonl")


def test_accuracy_rises_and_the_two_log_probs_come_together(metrics):
    accuracy = "val-core/demo_arithmetic/acc/mean@4"
    assert metrics[STEPS][accuracy] > metrics[0][accuracy] + 0.2
    assert metrics[STEPS]["actor/distillation/abs_loss"] < metrics[1]["actor/distillation/abs_loss"]
