"""The quantities by which a run is watched, and warnings when one of them leaves its bounds."""

import math
from collections import deque
from statistics import fmean
from typing import NamedTuple

from omegaconf import DictConfig

from recipe.monitor.curves import band, has_bands
from recipe.monitor.metrics import REWARD, SMOOTHED_STEPS, has_training, number, validation_scores

# Fractions of responses that the replay buffer logs: no answer where the reward looks (all that the strict reward
# can have), and answers that could not be judged.
UNSCORED = ("reward/pred_empty", "reward/timed_out", "reward/crashed")

QUANTITIES = {  # verl's key, a label with its unit, a number format
    "reward": (REWARD, "mean reward", "+.3f"),
    "entropy": ("actor/entropy", "policy entropy (nats)", ".3f"),
    "length": ("response_length/mean", "mean response length (tokens)", ",.0f"),
    "truncated": ("response_length/clip_ratio", "fraction of responses truncated", ".3f"),
    "clipped": ("actor/pg_clipfrac", "fraction of tokens clipped", ".4f"),
    "gradient": ("actor/grad_norm", "gradient norm", ".3f"),
    "mismatch": ("training/rollout_probs_diff_mean", "rollout-trainer mismatch (probability)", ".5f"),
    "rate": ("perf/throughput", "tokens per second per rank, prompts included", ",.0f"),
    "unscored": (UNSCORED[0], "fraction of responses unscored", ".3f"),
    "memory": ("memory/node_used_gb", "host memory in use on the supervisor's node (GiB)", ".1f"),
}


class Rule(NamedTuple):
    """What it may mean that a quantity's mean is outside the paper's band or, given `limits`, those of every run.

    With `after_health`, other runs than the paper's may start outside: the demo's entropy starts at 0.26.
    """

    quantity: str
    below: str
    above: str
    limits: tuple[float, float] | None = None
    after_health: bool = False


# The limits are this project's. Entropy stays above 1.0 in the paper's runs, and is 0.5-0.6 with an over-long penalty.
RULES = (
    Rule("reward", "has learning stopped, do data, prompt or reward differ?", "is the reward too generous?"),
    Rule("length", "are responses losing their reasoning?", "are responses running away, or repeating themselves?"),
    Rule("entropy", "is exploration narrowing?", "is the policy turning into noise?"),
    Rule("entropy", "collapsing, as with the paper's over-long penalty?", "", (0.6, math.inf), after_health=True),
    Rule("truncated", "", "most responses are cut off before their answer, and score as incorrect", (0, 0.5)),
    Rule("unscored", "", "most responses are cut off, have no box, or cannot be judged by the reward", (0, 0.5)),
)


def quantities(metrics: dict, response_limit: int) -> dict[str, float]:
    """Return the quantities that a step's metrics have; NaN for one without a number.

    verl 0.9 measures `response_length/clip_ratio` against the longest response of the batch, not against the limit.
    So it is the fraction truncated where the longest response reached the limit; elsewhere none was truncated.
    """
    values = {name: number(metrics, key) for name, (key, _, _) in QUANTITIES.items() if key in metrics}
    if "truncated" in values and number(metrics, "response_length/max", 0.0) < response_limit:
        values["truncated"] = 0.0
    if "unscored" in values:
        values["unscored"] = sum(number(metrics, key, 0.0) for key in UNSCORED)
    return values


def series(by_step: dict[int, dict], config: DictConfig) -> dict[str, dict[int, float]]:
    """Return name to values by step, first of the quantities that a run has, then of its validation sets."""
    curves: dict[str, dict[int, float]] = {name: {} for name in QUANTITIES}
    for step, metrics in sorted(by_step.items()):
        values = quantities(metrics, config.data.max_response_length) | validation_scores(metrics)
        for name, value in values.items():
            curves.setdefault(name, {})[step] = value
    return {name: values for name, values in curves.items() if values}


class Warnings:
    """Checks the steps of a run as they arrive.

    A rule warns when the mean of the last steps leaves the bounds, and again only after as many steps within them.
    """

    def __init__(self, config: DictConfig):
        papers, self.response_limit = has_bands(config), config.data.max_response_length
        rules = [rule for rule in RULES if papers or rule.limits]
        self.recent: dict[Rule, deque[float]] = {rule: deque(maxlen=SMOOTHED_STEPS) for rule in rules}
        self.healthy_steps = {rule: 0 if rule.after_health and not papers else SMOOTHED_STEPS for rule in rules}

    def add(self, step: int, metrics: dict) -> list[str]:
        """Take the next step's metrics and return a message for each warning that starts with it."""
        if not has_training(metrics):
            return []  # a validation before training says nothing about the run
        values, messages = quantities(metrics, self.response_limit), []
        for rule, recent in self.recent.items():
            if rule.quantity not in values:
                continue
            recent.append(values[rule.quantity])
            mean = fmean(recent)
            low, high = rule.limits or band(rule.quantity, step) or (-math.inf, math.inf)
            if low <= mean <= high:
                self.healthy_steps[rule] += 1
            elif len(recent) == SMOOTHED_STEPS:
                if self.healthy_steps[rule] >= SMOOTHED_STEPS:
                    messages.append(warning(rule, step, mean, low, high))
                self.healthy_steps[rule] = 0
        return messages


def warning(rule: Rule, step: int, mean: float, low: float, high: float) -> str:
    """Return a message like "step 812: policy entropy (nats) 0.553, mean of 5, is below the limit of 0.600: ..."."""
    _, label, form = QUANTITIES[rule.quantity]
    if math.isnan(mean):
        return f"step {step}: {label} is not a number; see the log for the first overflow"
    side, bound, meaning = ("above", high, rule.above) if mean > high else ("below", low, rule.below)
    bounds = f"limit of {bound:{form}}" if rule.limits else f"paper's band, {low:{form}} to {high:{form}}"
    return f"step {step}: {label} {mean:{form}}, mean of {SMOOTHED_STEPS}, is {side} the {bounds}: {meaning}"


def warnings(by_step: dict[int, dict], config: DictConfig) -> list[str]:
    """Return every warning of a run, each once, at the step where it started."""
    watched = Warnings(config)
    return [message for step in sorted(by_step) for message in watched.add(step, by_step[step])]
