"""Validation responses beyond training's limit, in a real run."""

import json
import subprocess

import pytest
from transformers import AutoTokenizer

from recipe.resume import read_metrics
from tests.conftest import ROOT
from tests.test_run_slow import SECONDS, command, experiment

pytestmark = pytest.mark.slow
TRAINING_TOKENS = 8  # a worked answer of the demo has 21 to 24 tokens, a guess 6 or 7


def dumped(path):
    """Return the responses that verl dumped at a step: their numbers of tokens and their rows."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "demo")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(len(tokenizer(row["output"])["input_ids"]), row) for row in rows]


def test_validation_responses_pass_the_training_limit_and_are_scored():
    subprocess.run(["./run_justrl.sh", "demo", "--only", "data"], cwd=ROOT, check=True, timeout=SECONDS)
    folder = experiment("test_validation")
    train = [".venv/bin/python", "-m", "recipe.train", *command("test_validation", 1)[1:], "trainer.save_freq=-1"]
    train += ["trainer.test_freq=-1", f"data.max_response_length={TRAINING_TOKENS}"]
    train += ["actor_rollout_ref.rollout.custom.validation_response_length=64"]
    train += ["actor_rollout_ref.rollout.agent.agent_loop_manager_class=recipe.agent_loops.AgentLoopManager"]
    train += [f"trainer.rollout_data_dir={folder}/rollouts"]
    done = subprocess.run(train, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr

    validated, trained = dumped(folder / "validation" / "0.jsonl"), dumped(folder / "rollouts" / "1.jsonl")
    assert max(length for length, _ in validated) > TRAINING_TOKENS
    assert max(length for length, _ in trained) <= TRAINING_TOKENS
    metrics = read_metrics(folder / "metrics.jsonl")
    assert metrics[1]["response_length/max"] == TRAINING_TOKENS
    assert metrics[1]["response_length/clip_ratio"] > 0, "some training responses were cut"
    beyond = [row for length, row in validated if length > TRAINING_TOKENS and row["acc"] == 1]
    assert beyond, "boxes beyond the training limit are found"
    accuracy = sum(row["acc"] for _, row in validated) / len(validated)
    assert metrics[0]["val-core/demo_arithmetic/acc/mean@4"] == pytest.approx(accuracy)
