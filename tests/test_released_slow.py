"""The arm `as_released` trains for real steps of the demo, and what it changes shows in the metrics."""

import json

import pytest

from recipe.monitor.metrics import read_metrics
from tests.test_run_slow import experiment, trained

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("demo_data")]


@pytest.fixture(scope="module")
def run(fork_server):
    """The folder of a run of two steps on two ranks, whose micro-batches hold some twenty responses each."""
    overrides = [
        "trainer.total_training_steps=2",
        "trainer.save_freq=-1",
        "data.val_max_samples=16",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=1024",
        "trainer.n_gpus_per_node=2",
    ]
    return trained(fork_server, experiment("test_as_released"), "+arms=as_released", *overrides)


def test_training_is_scored_by_the_strict_box_and_validation_by_math_verify(run):
    metrics = read_metrics(run / "metrics.jsonl")[2]
    assert (metrics["critic/score/min"], metrics["critic/score/max"]) == (-1, 1)
    assert metrics["val-core/demo_arithmetic/acc/mean@4"] == metrics["val-aux/demo_arithmetic/reward/mean@4"] > 0
    lines = [json.loads(line) for line in (run / "validation" / "2.jsonl").read_text().splitlines()]
    assert {line["score"] for line in lines} == {0, 1}


def test_the_entropy_of_verl_0_4_is_logged_beside_the_correct_one(run):
    for step in (1, 2):
        metrics = read_metrics(run / "metrics.jsonl")[step]
        assert 0 < metrics["actor/entropy_as_released"] < 0.99 * metrics["actor/entropy"]


def test_the_loss_is_finite_and_moves_the_weights(run):
    metrics = read_metrics(run / "metrics.jsonl")[2]
    assert metrics["actor/pg_loss"] == pytest.approx(0, abs=1)
    assert metrics["actor/grad_norm"] > 0
