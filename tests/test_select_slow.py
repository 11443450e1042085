"""A sanity set of the demo, from samples of its model to a training whose accuracy on it must rise above 95 %."""

import subprocess

import pytest

from data_prep.demo import problems
from data_prep.rows import open_rows, write_rows
from recipe.monitor.metrics import read_metrics
from tests.conftest import HANGING_SECONDS, ROOT
from tests.test_run_slow import experiment, trained

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("demo_data")]
SAMPLED, STEPS = 32, 50  # problems, training steps
RATE = 3e-4  # six times the demo's: few steps are to bring what many would
LAST = 5  # steps, whose mean counts


@pytest.fixture(scope="module")
def sanity_set(fork_server, tmp_path_factory):
    """The file of the demo's training problems that its model solves 20 to 80 % of the time."""
    place = tmp_path_factory.mktemp("sanity")
    problems.write(place / "all")
    rows = open_rows(place / "all" / "train.parquet").read().to_pylist()[:SAMPLED]
    write_rows(place / "bench" / "train.parquet", rows, {})
    sampling = "--tasks train --samples 8 --prompt training --temperature 1 --top-p 1 --max-tokens 64".split()
    generate = ["eval.generate", "--model", "models/demo", "--bench", place / "bench", "--output", place / "samples"]
    select = ["eval.select", place / "samples", "--bench", place / "bench", "--output", place / "train.parquet"]
    for arguments in ([*generate, *sampling], select):
        done = subprocess.run(
            [".venv/bin/python", "-m", *map(str, arguments)],
            cwd=ROOT,
            env=fork_server,
            capture_output=True,
            text=True,
            timeout=HANGING_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return place / "train.parquet"


def test_training_accuracy_on_a_sanity_set_rises_above_95_percent(sanity_set, fork_server):
    overrides = [
        f"data.train_files={sanity_set}",
        f"data.val_files={sanity_set}",
        "data.train_batch_size=16",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        f"actor_rollout_ref.actor.optim.lr={RATE}",
        f"trainer.total_training_steps={STEPS}",
        f"trainer.test_freq={STEPS}",
        "trainer.save_freq=-1",
    ]
    metrics = read_metrics(trained(fork_server, experiment("test_sanity"), *overrides) / "metrics.jsonl")
    accuracy = [(1 + metrics[step]["critic/score/mean"]) / 2 for step in range(1, STEPS + 1)]
    assert 0.2 < accuracy[0] < 0.8
    assert sum(accuracy[-LAST:]) / LAST > 0.95
