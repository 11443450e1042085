"""The quantities by which a run is watched, and warnings when one of them goes where it should not."""

import json
import math
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from recipe.curves import band, has_bands
from recipe.progress import REWARD, SMOOTHED_STEPS, has_training, validation_accuracy, validation_scores

UNSCORED = "val-aux/unscored/mean"  # this project's own, beside verl's keys in metrics.jsonl

# These three lines are this project's; the paper states none. Its runs stay above an entropy of 1.0, its arms with
# an over-long penalty at 0.5-0.6. Before training, the backbones are cut off or boxless in up to half of AIME.
ENTROPY_FLOOR = 0.6
TRUNCATED_LIMIT = 0.5
UNSCORED_LIMIT = 0.5


class Quantity(NamedTuple):
    """A number of each step: verl's key, a name with the unit, a format."""

    key: str
    label: str
    form: str


QUANTITIES = {
    "reward": Quantity(REWARD, "mean reward", "+.3f"),
    "entropy": Quantity("actor/entropy", "policy entropy (nats)", ".3f"),
    "length": Quantity("response_length/mean", "mean response length (tokens)", ",.0f"),
    "truncated": Quantity("response_length/clip_ratio", "share of responses truncated", ".3f"),
    "clipped": Quantity("actor/pg_clipfrac", "share of tokens clipped", ".4f"),
    "gradient": Quantity("actor/grad_norm", "gradient norm", ".3f"),
    "mismatch": Quantity("training/rollout_probs_diff_mean", "rollout-trainer mismatch (probability)", ".5f"),
    "rate": Quantity("perf/throughput", "tokens a second and rank, prompts included", ",.0f"),
    "unscored": Quantity(UNSCORED, "share of validation responses unscored", ".3f"),
}


def quantities(metrics: dict, response_limit: int) -> dict[str, float]:
    """Return the quantities that a step's metrics have; NaN for one that verl's logger wrote as null.

    verl 0.9 measures `response_length/clip_ratio` against the longest response of the batch, not against the limit:
    it is the truncated share only where the longest response reached the limit, and the share is 0 elsewhere.
    """
    found = {name: metrics[q.key] for name, q in QUANTITIES.items() if q.key in metrics}
    found = {name: math.nan if value is None else value for name, value in found.items()}
    if "truncated" in found and metrics["response_length/max"] < response_limit:
        found["truncated"] = 0.0
    return found


def series(by_step: dict[int, dict], config: DictConfig) -> dict[str, dict[int, float]]:
    """Return name to values by step: the quantities that a run has, in order, then its validation sets."""
    found: dict[str, dict[int, float]] = {name: {} for name in QUANTITIES}
    for step, metrics in sorted(by_step.items()):
        values = quantities(metrics, config.data.max_response_length) | validation_scores(metrics)
        for name, value in values.items():
            found.setdefault(name, {})[step] = value
    return {name: values for name, values in found.items() if values}


def unscored_share(step: int, metrics: dict, config: DictConfig) -> dict[str, float]:
    """Return {UNSCORED: share of a step's validation responses that got no score}, or {} without a validation.

    Unscored is a response without an answer (`pred`: no closed box where the reward looks), or one whose answer
    `reward/robust.py` could not judge. verl's metrics leave strings out, so its dump of the responses is read.
    """
    folder = config.trainer.validation_data_dir
    if validation_accuracy(metrics) is None or not folder or not (dump := Path(folder, f"{step}.jsonl")).is_file():
        return {}
    # verl's thread that writes it starts before the metrics are computed, but may not have ended: a torn last line
    with open(dump, encoding="utf-8", errors="replace") as file:
        responses = (json.loads(line) for line in file if line.endswith("\n"))
        unscored = [not r.get("pred") or any(map(r.get, ("timed_out", "crashed"))) for r in responses]
    return {UNSCORED: sum(unscored) / len(unscored)} if unscored else {}


class Rule(NamedTuple):
    """Bounds of a quantity at a step, what they are, and what it may mean to be below or above them."""

    quantity: str
    bounds: Callable[[int], tuple[float, float]]
    source: str
    below: str
    above: str
    window: int = SMOOTHED_STEPS  # steps (or validations) whose mean is judged


PAPER = "the paper's band"
ENTROPY_FALL = Rule(
    "entropy",
    lambda step: (ENTROPY_FLOOR, math.inf),
    "the floor",
    "exploration may be collapsing, as in the paper's arms with an over-long penalty, which end 5 to 10 points lower",
    "",
)
RULES = (
    Rule(
        "reward",
        partial(band, "reward"),
        PAPER,
        "learning may have stopped, or data, prompt or reward differ from the paper's",
        "the reward may be more generous, or the problems easier, than the paper's",
    ),
    Rule(
        "length",
        partial(band, "length"),
        PAPER,
        "responses may be losing their reasoning",
        "responses may be running away or repeating themselves",
    ),
    Rule(
        "entropy",
        partial(band, "entropy"),
        PAPER,
        "exploration is narrowing",
        "the policy may be turning into noise; see the gradient norm and the mismatch",
    ),
    ENTROPY_FALL,
    Rule(
        "truncated",
        lambda step: (0, TRUNCATED_LIMIT),
        "the limit",
        "",
        "most responses are cut off before their answer, and score as wrong",
    ),
    Rule(
        "unscored",
        lambda step: (0, UNSCORED_LIMIT),
        "the limit",
        "",
        "most responses are cut off, end without a box, or cannot be judged by the reward",
        window=1,
    ),
)


class Warnings:
    """Judges the steps of a run as they arrive.

    A rule warns when the mean of its window leaves the bounds, and again only after a whole window within them. The
    entropy floor is for every run, but one that starts below it has not fallen: outside the paper's runs it warns
    only after a window above it (the demo's tiny model starts at 0.26).
    """

    def __init__(self, config: DictConfig):
        papers = has_bands(config)
        self.rules = [rule for rule in RULES if papers or rule.source != PAPER]
        self.response_limit = config.data.max_response_length
        self.recent = [deque(maxlen=rule.window) for rule in self.rules]
        self.inside = [rule.window if papers or rule is not ENTROPY_FALL else 0 for rule in self.rules]

    def add(self, step: int, metrics: dict) -> list[str]:
        """Take the next step's metrics and return a line for each warning that starts with it."""
        if not has_training(metrics):
            return []  # a validation before training says nothing about the run
        started = []
        values = quantities(metrics, self.response_limit)
        for i, rule in enumerate(self.rules):
            if rule.quantity not in values:
                continue
            self.recent[i].append(values[rule.quantity])
            mean = sum(self.recent[i]) / len(self.recent[i])
            low, high = rule.bounds(step)
            if low <= mean <= high:
                self.inside[i] += 1
            elif len(self.recent[i]) == rule.window:
                if self.inside[i] >= rule.window:
                    started.append(warning_line(rule, step, mean))
                self.inside[i] = 0
        return started


def warning_line(rule: Rule, step: int, mean: float) -> str:
    """Return a line like "step 812: policy entropy (nats) 0.553, mean of 5, is below the floor (0.600): ..."."""
    _, label, form = QUANTITIES[rule.quantity]
    low, high = rule.bounds(step)
    side, meaning = ("above", rule.above) if mean > high else ("below", rule.below)
    if math.isnan(mean):
        side, meaning = "no number, so outside", "look for the first overflow in the log"
    limits = [format(bound, form) for bound, text in ((low, rule.below), (high, rule.above)) if text]
    over = f", mean of {rule.window}," if rule.window > 1 else ""
    return f"step {step}: {label} {mean:{form}}{over} is {side} {rule.source} ({' to '.join(limits)}): {meaning}"


def warnings(by_step: dict[int, dict], config: DictConfig) -> list[str]:
    """Return every warning of a run in order, each once, at the step where it started."""
    judge = Warnings(config)
    return [line for step in sorted(by_step) for line in judge.add(step, by_step[step])]
