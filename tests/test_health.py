"""Quantities from verl's metrics, the paper's bands, and warnings that start once and not for noise."""

import json
import math

import pytest
from omegaconf import OmegaConf

from recipe.compose import compose
from recipe.monitor.curves import aime24, band, has_bands
from recipe.monitor.health import UNSCORED, quantities, warnings
from tests.conftest import ROOT

# Two lines of a real run of the demo on verl 0.9.1: the validation before training, and a step with a validation.
REAL = [json.loads(line) for line in (ROOT / "tests" / "cases" / "metrics.jsonl").read_text().splitlines()]
STEP = REAL[1]["data"]
PAPER = {
    "actor_rollout_ref": {"model": {"path": "/weights/DeepSeek-R1-Distill-Qwen-1.5B"}},
    "data": {"max_response_length": 15360},
    "reward": {"custom_reward_function": {"path": "/somewhere/reward/justrl.py"}},
}
HEALTHY = {"actor/entropy": 1.3, "critic/score/mean": 0.1, "response_length/mean": 4500.0}


def config(**changes):
    """Return the paper's config with some keys changed; "__" stands for a dot."""
    made = OmegaConf.create(PAPER)
    for key, value in changes.items():
        OmegaConf.update(made, key.replace("__", "."), value)
    return made


DEMO = config(actor_rollout_ref__model__path="models/demo", data__max_response_length=64)


def run_metrics(changes, steps=range(1001, 1061)):
    """Return healthy metrics by step, as of the paper's runs, updated with `changes(step)`."""
    return {step: STEP | HEALTHY | changes(step) for step in steps}


def test_the_truncated_fraction_is_measured_against_the_limit_not_the_longest_response_of_the_batch():
    assert STEP["response_length/max"] == 25
    assert STEP["response_length/clip_ratio"] == pytest.approx(0.171875), "verl's figure, with a limit of 64"
    assert quantities(STEP, 64)["truncated"] == 0
    assert quantities(STEP, 25)["truncated"] == pytest.approx(0.171875)


def test_a_validation_alone_has_no_training_quantities_and_null_is_nan():
    assert quantities(REAL[0]["data"], 64) == {}
    assert math.isnan(quantities(STEP | {"actor/grad_norm": None}, 64)["gradient"])


def test_published_bands_and_scores():
    assert band("entropy", 2000) == (1.0, 2.4)
    assert band("length", 0) == (4000, 8000)
    assert band("length", 500) == (4000, 6500)
    assert band("length", 4000) == (4000, 5000)
    assert band("reward", 0)[0] == -0.8
    assert band("gradient", 5) is None
    assert aime24(750, config()) == pytest.approx(0.415)
    assert aime24(5000, config()) is None


@pytest.mark.parametrize(
    ("name", "published"), [("justrl_deepseek", 0.285), ("justrl_nemotron", 0.563), ("demo", None)]
)
def test_bands_apply_to_the_shipped_configs_of_the_paper(name, published):
    shipped = compose(name, [], "cuda")
    assert has_bands(shipped) == (published is not None)
    assert aime24(0, shipped) == published


def test_bands_do_not_apply_to_the_ablation_arms_or_other_lengths():
    assert has_bands(config())
    assert not has_bands(config(data__max_response_length=8192))
    assert not has_bands(config(reward__reward_kwargs__overlong_buffer_cfg__enable=True))
    assert not has_bands(config(reward__custom_reward_function__path="reward/robust.py"))


def test_neither_a_healthy_run_nor_one_noisy_step_warns():
    assert warnings(run_metrics(lambda step: {}), config()) == []
    assert warnings(run_metrics(lambda step: {"actor/entropy": 0.2 if step == 1030 else 1.3}), config()) == []


def test_falling_entropy_warns_once_at_the_band_and_once_at_the_limit():
    found = warnings(run_metrics(lambda step: {"actor/entropy": max(0.3, 1.3 - 0.02 * (step - 1000))}), config())
    assert len(found) == 2
    assert found[0].startswith(
        "step 1018: policy entropy (nats) 0.980, mean of 5, is below the paper's band, 1.000 to 2.4"
    )
    assert found[1].startswith(
        "step 1038: policy entropy (nats) 0.580, mean of 5, is below the limit of 0.600: collapsing"
    )


def test_the_entropy_limit_applies_to_every_run_that_starts_above_it():
    assert warnings(run_metrics(lambda step: {"actor/entropy": 0.25}), DEMO) == [], "the demo starts at 0.26"
    found = warnings(run_metrics(lambda step: {"actor/entropy": 0.9 if step < 1030 else 0.3}), DEMO)
    assert [line.split(":")[0] for line in found] == ["step 1032"]


def test_a_warning_returns_only_after_a_full_window_within_the_bounds():
    def jump(back_for):
        return lambda step: {"response_length/mean": 4500.0 if 1030 <= step < 1030 + back_for else 7000.0}

    assert len(warnings(run_metrics(jump(0)), config())) == 1
    assert len(warnings(run_metrics(jump(6)), config())) == 1, "in the band, but for less than a window of means"
    found = warnings(run_metrics(jump(20)), config())
    assert [line.split(":")[0] for line in found] == ["step 1005", "step 1051"]
    assert "above the paper's band, 4,000 to 5,000: are responses running" in found[0]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"critic/score/mean": -0.9},
            "mean reward -0.900, mean of 5, is below the paper's band, -0.571 to +0.600: has learning",
        ),
        (
            {"critic/score/mean": None},
            "step 1005: mean reward is not a number; see the log",
        ),
        (
            {"response_length/mean": 900.0},
            "(tokens) 900, mean of 5, is below the paper's band, 4,000 to 5,000: are responses losing",
        ),
        (
            {"response_length/max": 15360.0, "response_length/clip_ratio": 0.7},
            "step 1005: fraction of responses truncated 0.700, mean of 5, is above the limit of 0.500: most",
        ),
        (
            {"reward/pred_empty": 0.6, "reward/crashed": 0.2},
            "step 1005: fraction of responses unscored 0.800, mean of 5, is above the limit of 0.500: most",
        ),
    ],
)
def test_each_drift_is_one_warning_with_value_step_and_bounds(changes, text):
    found = warnings(run_metrics(lambda step: changes), config())
    assert len(found) == 1
    assert text in found[0]


def test_truncated_and_unscored_apply_to_every_run_and_bands_do_not():
    changes = {
        "critic/score/mean": -1.0,
        "response_length/clip_ratio": 0.9,
        "response_length/max": 64.0,
        UNSCORED[0]: 0.9,
    }
    assert [line.split(": ")[1][:16] for line in warnings(run_metrics(lambda step: changes), DEMO)] == [
        "fraction of resp",
        "fraction of resp",
    ]


def test_a_validation_before_training_does_not_warn():
    assert warnings({0: REAL[0]["data"] | {UNSCORED[0]: 0.9}}, config()) == []
