"""The quantities by which a run is watched, and warnings when one of them goes where it should not."""

import json
import math
from collections import deque
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from recipe.curves import band, has_bands
from recipe.progress import REWARD, SMOOTHED_STEPS, has_training, validation_accuracy, validation_scores

UNSCORED = "val-aux/unscored/mean"  # this project's own, beside verl's keys in metrics.jsonl

QUANTITIES = {  # verl's key, a name with its unit, a format
    "reward": (REWARD, "mean reward", "+.3f"),
    "entropy": ("actor/entropy", "policy entropy (nats)", ".3f"),
    "length": ("response_length/mean", "mean response length (tokens)", ",.0f"),
    "truncated": ("response_length/clip_ratio", "share of responses truncated", ".3f"),
    "clipped": ("actor/pg_clipfrac", "share of tokens clipped", ".4f"),
    "gradient": ("actor/grad_norm", "gradient norm", ".3f"),
    "mismatch": ("training/rollout_probs_diff_mean", "rollout-trainer mismatch (probability)", ".5f"),
    "rate": ("perf/throughput", "tokens a second and rank, prompts included", ",.0f"),
    "unscored": (UNSCORED, "share of validation responses unscored", ".3f"),
}


class Rule(NamedTuple):
    """What a quantity's mean over a window may mean outside its bounds: the paper's band, or limits of every run."""

    quantity: str
    below: str
    above: str
    limits: tuple[float, float] | None = None
    window: int = SMOOTHED_STEPS  # steps, or validations


# The limits are this project's. The paper's runs keep an entropy above 1.0, its arms with an over-long penalty 0.5-0.6.
FALL = Rule("entropy", "collapsing, as in the paper's arms with an over-long penalty?", "", (0.6, math.inf))
RULES = (
    Rule("reward", "has learning stopped, do data, prompt or reward differ?", "is the reward too generous?"),
    Rule("length", "are responses losing their reasoning?", "are responses running away, or repeating themselves?"),
    Rule("entropy", "is exploration narrowing?", "is the policy turning into noise?"),
    FALL,
    Rule("truncated", "", "most responses are cut off before their answer, and score as wrong", (0, 0.5)),
    Rule("unscored", "", "most responses are cut off, have no box, or cannot be judged by the reward", (0, 0.5), 1),
)


def quantities(metrics: dict, response_limit: int) -> dict[str, float]:
    """Return the quantities that a step's metrics have; NaN for one that verl's logger wrote as null.

    verl 0.9 measures `response_length/clip_ratio` against the longest response of the batch, not against the limit:
    it is the truncated share only where the longest response reached the limit, and the share is 0 elsewhere.
    """
    found = {name: metrics[key] for name, (key, _, _) in QUANTITIES.items() if key in metrics}
    if "truncated" in found and metrics["response_length/max"] < response_limit:
        found["truncated"] = 0.0
    return {name: math.nan if value is None else value for name, value in found.items()}


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


class Warnings:
    """Judges the steps of a run as they arrive.

    A rule warns when the mean of its window leaves the bounds, and again only after a whole window within them. A run
    that starts below the entropy limit has not fallen: outside the paper's runs that rule waits for a window above it
    (the demo's tiny model starts at 0.26).
    """

    def __init__(self, config: DictConfig):
        papers, self.response_limit = has_bands(config), config.data.max_response_length
        self.rules = [rule for rule in RULES if papers or rule.limits]
        self.recent = [deque(maxlen=rule.window) for rule in self.rules]
        self.inside = [0 if rule is FALL and not papers else rule.window for rule in self.rules]

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
            elif len(self.recent[i]) == rule.window:
                if self.inside[i] >= rule.window:
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
    over = f", mean of {rule.window}," if rule.window > 1 else ""
    return f"step {step}: {label} {mean:{form}}{over} is {side} the {against}: {meaning}"


def warnings(by_step: dict[int, dict], config: DictConfig) -> list[str]:
    """Return every warning of a run in order, each once, at the step where it started."""
    judge = Warnings(config)
    return [line for step in sorted(by_step) for line in judge.add(step, by_step[step])]
