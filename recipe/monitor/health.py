"""The quantities by which a run is watched, and warnings when one of them goes where it should not."""

import math
from collections import deque
from typing import NamedTuple

from omegaconf import DictConfig

from recipe.monitor.curves import band, has_bands
from recipe.monitor.metrics import REWARD, SMOOTHED_STEPS, has_training, validation_scores

# What the replay buffer logs of a response without an answer where the reward looks, or with one that it could not
# judge; the strict reward has the first alone.
UNSCORED = ("reward/pred_empty", "reward/timed_out", "reward/crashed")

QUANTITIES = {  # verl's key, a name with its unit, a format
    "reward": (REWARD, "mean reward", "+.3f"),
    "entropy": ("actor/entropy", "policy entropy (nats)", ".3f"),
    "length": ("response_length/mean", "mean response length (tokens)", ",.0f"),
    "truncated": ("response_length/clip_ratio", "share of responses truncated", ".3f"),
    "clipped": ("actor/pg_clipfrac", "share of tokens clipped", ".4f"),
    "gradient": ("actor/grad_norm", "gradient norm", ".3f"),
    "mismatch": ("training/rollout_probs_diff_mean", "rollout-trainer mismatch (probability)", ".5f"),
    "rate": ("perf/throughput", "tokens a second and rank, prompts included", ",.0f"),
    "unscored": (UNSCORED[0], "share of responses unscored", ".3f"),
}


class Rule(NamedTuple):
    """What a quantity's mean over a window may mean outside its bounds: the paper's band, or limits of every run."""

    quantity: str
    below: str
    above: str
    limits: tuple[float, float] | None = None


# The limits are this project's. The paper's runs keep an entropy above 1.0, its arms with an over-long penalty 0.5-0.6.
FALL = Rule("entropy", "collapsing, as in the paper's arms with an over-long penalty?", "", (0.6, math.inf))
RULES = (
    Rule("reward", "has learning stopped, do data, prompt or reward differ?", "is the reward too generous?"),
    Rule("length", "are responses losing their reasoning?", "are responses running away, or repeating themselves?"),
    Rule("entropy", "is exploration narrowing?", "is the policy turning into noise?"),
    FALL,
    Rule("truncated", "", "most responses are cut off before their answer, and score as wrong", (0, 0.5)),
    Rule("unscored", "", "most responses are cut off, have no box, or cannot be judged by the reward", (0, 0.5)),
)


def quantities(metrics: dict, response_limit: int) -> dict[str, float]:
    """Return the quantities that a step's metrics have; NaN for one that verl's logger wrote as null.

    verl 0.9 measures `response_length/clip_ratio` against the longest response of the batch, not against the limit:
    it is the truncated share only where the longest response reached the limit, and the share is 0 elsewhere.
    """
    found = {name: metrics[key] for name, (key, _, _) in QUANTITIES.items() if key in metrics}
    if "truncated" in found and (metrics.get("response_length/max") or 0) < response_limit:
        found["truncated"] = 0.0
    if "unscored" in found:
        found["unscored"] = sum(metrics.get(key) or 0.0 for key in UNSCORED)
    return {name: math.nan if value is None else value for name, value in found.items()}


def series(by_step: dict[int, dict], config: DictConfig) -> dict[str, dict[int, float]]:
    """Return name to values by step: the quantities that a run has, in order, then its validation sets."""
    found: dict[str, dict[int, float]] = {name: {} for name in QUANTITIES}
    for step, metrics in sorted(by_step.items()):
        values = quantities(metrics, config.data.max_response_length) | validation_scores(metrics)
        for name, value in values.items():
            found.setdefault(name, {})[step] = value
    return {name: values for name, values in found.items() if values}


class Warnings:
    """Judges the steps of a run as they arrive.

    A rule warns when the mean of its window leaves the bounds, and again only after a whole window within them. A run
    that starts below the entropy limit has not fallen: outside the paper's runs that rule waits for a window above it
    (the demo's tiny model starts at 0.26).
    """

    def __init__(self, config: DictConfig):
        papers, self.response_limit = has_bands(config), config.data.max_response_length
        self.rules = [rule for rule in RULES if papers or rule.limits]
        self.recent = [deque(maxlen=SMOOTHED_STEPS) for rule in self.rules]
        self.inside = [0 if rule is FALL and not papers else SMOOTHED_STEPS for rule in self.rules]

    def add(self, step: int, metrics: dict) -> list[str]:
        """Take the next step's metrics and return a line for each warning that starts with it."""
        if not has_training(metrics):
            return []  # a validation before training says nothing about the run
        values, started = quantities(metrics, self.response_limit), []
        for i, rule in enumerate(self.rules):
            if rule.quantity not in values:
                continue
            self.recent[i].append(values[rule.quantity])
            mean = sum(self.recent[i]) / len(self.recent[i])
            low, high = rule.limits or band(rule.quantity, step)
            if low <= mean <= high:
                self.inside[i] += 1
            elif len(self.recent[i]) == SMOOTHED_STEPS:
                if self.inside[i] >= SMOOTHED_STEPS:
                    started.append(warning_line(rule, step, mean, low, high))
                self.inside[i] = 0
        return started


def warning_line(rule: Rule, step: int, mean: float, low: float, high: float) -> str:
    """Return a line like "step 812: policy entropy (nats) 0.553, mean of 5, is below the limit of 0.600: ..."."""
    _, label, form = QUANTITIES[rule.quantity]
    if math.isnan(mean):
        return f"step {step}: {label} is no number: see the log for the first overflow"
    side, bound, meaning = ("above", high, rule.above) if mean > high else ("below", low, rule.below)
    against = f"limit of {bound:{form}}" if rule.limits else f"paper's band, {low:{form}} to {high:{form}}"
    return f"step {step}: {label} {mean:{form}}, mean of {SMOOTHED_STEPS}, is {side} the {against}: {meaning}"


def warnings(by_step: dict[int, dict], config: DictConfig) -> list[str]:
    """Return every warning of a run in order, each once, at the step where it started."""
    judge = Warnings(config)
    return [line for step in sorted(by_step) for line in judge.add(step, by_step[step])]
