"""Each ablation arm trains for two real steps by the run's own command, and what it changes shows in the metrics."""

import subprocess

import pytest

from recipe.resume import read_metrics
from tests.conftest import ROOT
from tests.test_run_slow import SECONDS, experiment

pytestmark = pytest.mark.slow

SMALL = [
    "actor_rollout_ref.model.path=models/demo",
    "data.train_files=data/demo/train.parquet",
    "data.val_files=data/demo/test.parquet",
    "data.train_batch_size=32",
    "data.max_prompt_length=64",
    "data.max_response_length=24",
    "actor_rollout_ref.actor.ppo_mini_batch_size=8",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=8192",
    "actor_rollout_ref.rollout.max_num_seqs=256",
    "trainer.total_training_steps=2",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
    "trainer.save_freq=-1",
]
PENALTY = "reward.reward_kwargs.overlong_buffer_cfg.len=12"


def train(arm, *overrides):
    """Return the metrics of step 2 of an arm, shrunk."""
    folder = experiment(f"test_{arm}")
    command = [".venv/bin/python", "-m", "recipe.train", arm, "--allow", "*", f"trainer.experiment_name=test_{arm}"]
    done = subprocess.run([*command, *SMALL, *overrides], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return read_metrics(folder / "metrics.jsonl")[2]


@pytest.fixture(scope="module", autouse=True)
def demo_data():
    subprocess.run(["./run_justrl.sh", "demo", "--only", "data"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_the_over_long_penalty_lowers_the_reward_of_long_responses():
    metrics = train("ablation_overlong", PENALTY)
    assert 0 < metrics["reward/overlong"] <= 1
    assert -1 <= metrics["reward/overlong_reward"] < 0
    assert metrics["critic/score/min"] < -1, "the penalty adds to the verifier's -1"
    assert metrics["critic/score/mean"] == pytest.approx(
        metrics["reward/score"] + metrics["reward/overlong_reward"], abs=1e-5
    )


def test_the_verifier_says_why_a_response_is_wrong():
    metrics = train("ablation_verifier")
    reasons = [metrics[f"reward/{reason}"] for reason in ("wrong", "no_box", "unparsable", "timed_out", "crashed")]
    assert sum(reasons) + metrics["reward/refused"] == pytest.approx(1 - metrics["reward/acc"])
    assert metrics["reward/acc"] >= metrics["reward/strict"]
    assert metrics["critic/score/min"] == -1
    assert "reward/overlong" not in metrics


def test_both_together():
    metrics = train("ablation_overlong_verifier", PENALTY)
    assert metrics["reward/overlong"] > 0
    assert "reward/no_box" in metrics
    assert metrics["critic/score/min"] < -1
