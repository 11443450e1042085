"""Quantities from verl's metrics, the paper's bands, and warnings that start once and not for noise."""

import json
import math
import random

import pytest
from omegaconf import OmegaConf

from recipe.compose import compose
from recipe.monitor.curves import aime24, band, has_bands
from recipe.monitor.health import RULES, UNSCORED, quantities, warnings
from recipe.monitor.metrics import read_metrics
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


def test_bands_do_not_apply_to_arms_or_other_lengths():
    assert has_bands(config())
    assert not has_bands(compose("justrl_deepseek", ["+arms=robust_verifier"], "cuda"))
    assert not has_bands(config(data__max_response_length=8192))
    assert not has_bands(config(reward__reward_kwargs__overlong_buffer_cfg__enable=True))
    assert not has_bands(config(reward__custom_reward_function__path="reward/robust.py"))


def test_neither_a_healthy_run_nor_one_noisy_step_warns():
    assert warnings(run_metrics(lambda step: {}), config()) == []
    assert warnings(run_metrics(lambda step: {"actor/entropy": 0.2 if step == 1030 else 1.3}), config()) == []


def test_falling_entropy_warns_once_at_the_band_and_once_at_the_limit():
    found = warnings(run_metrics(lambda step: {"actor/entropy": max(0.3, 1.3 - 0.02 * (step - 1000))}), config())
    assert len(found) == 2
    assert found[0].text.startswith(
        "step 1018: policy entropy (nats): 0.980, mean of 5, is below the paper's band, 1.000 to 2.4"
    )
    assert found[1].text.startswith(
        "step 1038: policy entropy (nats): 0.580, mean of 5, is below the limit of 0.600: collapsing"
    )


def test_the_entropy_limit_applies_to_every_run_that_starts_above_it():
    assert warnings(run_metrics(lambda step: {"actor/entropy": 0.25}), DEMO) == [], "the demo starts at 0.26"
    found = warnings(run_metrics(lambda step: {"actor/entropy": 0.9 if step < 1030 else 0.3}), DEMO)
    assert [line.text.split(":")[0] for line in found] == ["step 1032"]


def test_a_warning_returns_only_after_a_full_window_within_the_bounds():
    def jump(back_for):
        return lambda step: {"response_length/mean": 4500.0 if 1030 <= step < 1030 + back_for else 7000.0}

    assert len(warnings(run_metrics(jump(0)), config())) == 1
    assert len(warnings(run_metrics(jump(6)), config())) == 1, "in the band, but for less than a window of means"
    found = warnings(run_metrics(jump(20)), config())
    assert [line.text.split(":")[0] for line in found] == ["step 1005", "step 1051"]
    assert "above the paper's band, 4,000 to 5,000: are responses running" in found[0].text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"critic/score/mean": -0.9},
            "mean reward: -0.900, mean of 5, is below the paper's band, -0.571 to +0.600: has learning",
        ),
        (
            {"critic/score/mean": None},
            "step 1001: mean reward is not a number: see train.log",
        ),
        (
            {"response_length/mean": 900.0},
            "(tokens): 900, mean of 5, is below the paper's band, 4,000 to 5,000: are responses losing",
        ),
        (
            {"response_length/max": 15360.0, "response_length/clip_ratio": 0.7},
            "step 1005: fraction of responses truncated: 0.700, mean of 5, is above the limit of 0.500: most",
        ),
        (
            {"reward/pred_empty": 0.6, "reward/crashed": 0.2},
            "step 1005: fraction of responses unscored: 0.800, mean of 5, is above the limit of 0.500: most",
        ),
        (
            {"training/rollout_probs_diff_mean": 0.012},
            "step 1005: rollout-trainer mismatch (probability): 0.01200, mean of 5, is above the limit of 0.01000",
        ),
        (
            {"actor/grad_norm": 12.0},
            "step 1005: gradient norm: 12.000, mean of 5, is above the limit of 10.000: is training diverging?",
        ),
        (
            {"actor/grad_norm": None},
            "step 1001: gradient norm is not a number: verl skipped an update",
        ),
        (
            {"rollout/short_groups": 1},
            "step 1001: groups with fewer than n responses: 1 is above the limit of 0: some responses failed",
        ),
        (
            {"rollout/lost_prompts": 2},
            "step 1001: prompts without any response: 2 is above the limit of 0: all their responses failed",
        ),
        (
            {"rollout/preemptions": 0.3},
            "step 1005: KV-cache preemptions per response: 0.300, mean of 5, is above the limit of 0.100: the KV cache",
        ),
        (
            {"timing_s/gen_tail": 6.0, "timing_s/step": 10.0},
            "step 1005: fraction of the step spent waiting for the last tenth of responses: 0.600, mean of 5, is above",
        ),
    ],
)
def test_each_drift_is_one_warning_with_value_step_and_bounds(changes, text):
    found = warnings(run_metrics(lambda step: changes), config())
    assert len(found) == 1
    assert text in found[0].text


def test_truncated_and_unscored_apply_to_every_run_and_bands_do_not():
    changes = {
        "critic/score/mean": -1.0,
        "response_length/clip_ratio": 0.9,
        "response_length/max": 64.0,
        UNSCORED[0]: 0.9,
    }
    assert [line.text.split(": ")[1][:16] for line in warnings(run_metrics(lambda step: changes), DEMO)] == [
        "fraction of resp",
        "fraction of resp",
    ]


def test_a_validation_before_training_does_not_warn():
    assert warnings({0: REAL[0]["data"] | {UNSCORED[0]: 0.9}}, config()) == []


def test_all_warnings_of_a_rule_have_its_kind_and_read_as_their_text():
    assert len({rule.kind for rule in RULES}) == len(RULES)
    found = warnings(run_metrics(lambda step: {"rollout/lost_prompts": step in (1010, 1011, 1020)}), config())
    assert [(warning.kind, warning.text.split(":")[0]) for warning in found] == [
        ("lost limit", "step 1010"),
        ("lost limit", "step 1020"),
    ]
    assert f"{found[0]}" == found[0].text


def test_one_skipped_update_warns_at_once_and_spoils_no_mean():
    found = warnings(run_metrics(lambda step: {"actor/grad_norm": None if step == 1030 else 0.3}), config())
    assert [warning.kind for warning in found] == ["gradient finite"]


def test_a_mismatch_that_grows_to_three_times_that_of_the_first_steps_warns():
    def grows(step):
        return {"training/rollout_probs_diff_mean": 0.0004 * max(1, (step - 1000) / 50)}

    found = warnings(run_metrics(grows, range(1001, 1401)), DEMO)
    assert [warning.kind for warning in found] == ["mismatch drift"]
    assert found[0].text.startswith(
        "step 1153: rollout-trainer mismatch (probability): 0.00121, mean of 5, is above the limit of 0.00120, 3 times "
        "that of the first 20 steps: do engine and trainer drift apart?"
    )


def test_a_mismatch_as_measured_on_an_h100_does_not_warn():
    drawn = random.Random(0)
    noisy = run_metrics(lambda step: {"training/rollout_probs_diff_mean": drawn.uniform(0.0002, 0.0006)}, range(2000))
    assert warnings(noisy, DEMO) == []


def validations(accuracies, samples=32, sets=("AIME24", "AIME25", "AMC23")):
    """Return metrics of a validation every 50 steps, with the same accuracy on each set."""
    trained = {key: value for key, value in (STEP | HEALTHY).items() if not key.startswith("val-")}
    return {
        50 * i: trained | {f"val-core/{name}/acc/mean@{samples}": accuracy for name in sets}
        for i, accuracy in enumerate(accuracies)
    }


def fell(by_step, run=DEMO):
    return [warning.text for warning in warnings(by_step, run) if warning.kind == "validation fall"]


def test_an_accuracy_that_fell_three_times_by_more_than_its_noise_warns_once():
    falls = validations([0.5, 0.52, 0.50, 0.48, 0.46, 0.44, 0.50, 0.49])
    assert fell(falls) == [
        "step 200: validation accuracy 0.460 fell 3 times in a row, from 0.520, by more than its noise of 0.041: is the"
        " policy getting worse?"
    ]
    assert fell(validations([0.52, 0.51, 0.50, 0.49])) == [], "within the noise"
    assert len(fell(validations([0.52, 0.51, 0.50, 0.49, 0.48, 0.47]))) == 1, "a slow fall, once it is out of the noise"
    assert fell(validations([0.52, 0.46, 0.47, 0.40, 0.45])) == [], "never three times in a row"
    assert fell(validations([0.55, 0.50, 0.45, 0.40], samples=4, sets=["demo"])) == [], "within the noise of the demo"


@pytest.mark.parametrize("worst", [-1.0, 1.5])
def test_what_is_no_fraction_has_no_known_noise(worst):
    assert fell(validations([2.0, 1.5, 1.2, worst])) == []


def drawn_accuracy(drawn, accuracy, answers):
    return sum(drawn.random() < accuracy for _ in range(answers)) / answers


def test_the_papers_curve_with_the_noise_of_its_validation_never_warns():
    drawn = random.Random(0)
    expected = [aime24(step, config()) for step in range(0, 4380, 50)]
    for _ in range(10):
        found = validations([drawn_accuracy(drawn, value, 30 * 32) for value in expected], sets=["AIME24"])
        assert fell(found) == []


def test_a_demo_that_learns_no_more_never_warns_of_its_noise():
    drawn = random.Random(0)
    for accuracy in (0.5, 0.9, 0.99, 1.0):
        found = validations([drawn_accuracy(drawn, accuracy, 64 * 4) for _ in range(300)], samples=4, sets=["demo"])
        assert fell(found) == []


@pytest.mark.slow
@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_one_update_without_a_finite_norm_reaches_the_rule_through_verls_mean_and_logger(tmp_path, monkeypatch, norm):
    from verl.utils.metric import reduce_metrics
    from verl.utils.tracking import FileLogger

    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "metrics.jsonl"))
    logger = FileLogger("justrl", "test")
    logger.log(STEP | reduce_metrics({"actor/grad_norm": [0.3, norm, 0.2, 0.4]}), step=1)
    logger.finish()
    assert [warning.kind for warning in warnings(read_metrics(tmp_path / "metrics.jsonl"), DEMO)] == ["gradient finite"]
