"""A sanity set of the demo, from samples of its model to a training that brings the accuracy on it above 95 %."""

import pytest

from data_prep.demo import problems
from data_prep.rows import open_rows, write_rows
from recipe.monitor.metrics import read_metrics
from tests.test_run_slow import experiment, succeed, trained

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("demo_data")]
SAMPLED, STEPS = 192, 20  # problems, training steps


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
        succeed(fork_server, ".venv/bin/python", "-m", *arguments)
    return place / "train.parquet"


def test_accuracy_on_a_sanity_set_rises_above_95_percent(sanity_set, fork_server):
    """As validation samples it: at temperature 1 so small a model errs in one or two of ten."""
    overrides = [
        f"data.train_files={sanity_set}",
        f"data.val_files={sanity_set}",
        f"trainer.total_training_steps={STEPS}",
        f"trainer.test_freq={STEPS}",
        "trainer.save_freq=-1",
    ]
    metrics = read_metrics(trained(fork_server, experiment("test_sanity"), *overrides) / "metrics.jsonl")
    accuracy = "val-core/sanity/acc/mean@4"
    assert 0.2 < metrics[0][accuracy] < 0.8
    assert metrics[STEPS][accuracy] > 0.95
