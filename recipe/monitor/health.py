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
# Watched by rules and not shown: what recipe/verl_plugins/replay_buffer.py counts, in the same form.
ALARMS = {
    "short": ("rollout/short_groups", "groups with fewer than n responses", ".0f"),
    "lost": ("rollout/lost_prompts", "prompts without any response", ".0f"),
    "preempted": ("rollout/preemptions", "KV-cache preemptions per response", ".3f"),
    "waiting": ("timing_s/gen_tail", "fraction of the step spent waiting for the last tenth of responses", ".3f"),
}
FIRST_STEPS = 20  # what a run drifts from
FINITE = (-math.inf, math.inf)
FALLS = 3  # validations in a row
# For the noise of a validation: the prompts of the smallest benchmark, and the range, in standard deviations, that
# four equal accuracies exceed in 1 % of cases (upper point of the studentized range).
FEWEST_PROMPTS, NOISE_RANGE = 30, 4.40


class Rule(NamedTuple):
    """What it may mean that a quantity's mean is outside the paper's band or, given `limits`, those of every run.

    With `after_health`, other runs than the paper's may start outside: the demo's entropy starts at 0.26. With `drift`,
    the limit is so many times the mean of the run's first steps. `window` is over how many steps the mean is.
    """

    quantity: str
    below: str
    above: str
    limits: tuple[float, float] | None = None
    after_health: bool = False
    window: int = SMOOTHED_STEPS
    drift: float = 0.0

    @property
    def kind(self) -> str:
        if self.limits == FINITE:
            return f"{self.quantity} finite"
        return f"{self.quantity} {'drift' if self.drift else 'limit' if self.limits else 'band'}"


class RuleWarning(NamedTuple):
    """A warning; all of one rule have the same `kind`, like "entropy limit"."""

    kind: str
    text: str

    def __str__(self) -> str:
        return self.text


OVERFLOW = "see train.log for the first overflow"
# docs/monitoring.md has the sources of the limits.
RULES = (
    Rule(
        "reward",
        "has learning stopped, or do data, prompt or reward differ from the paper's?",
        "is the reward too generous?",
    ),
    Rule("length", "are responses losing their reasoning?", "are responses running away, or repeating themselves?"),
    Rule("entropy", "is exploration narrowing?", "is the policy turning into noise?"),
    Rule("entropy", "collapsing, as with the paper's over-long penalty?", "", (0.6, math.inf), after_health=True),
    Rule("truncated", "", "most responses are cut off before their answer, and score as incorrect", (0, 0.5)),
    Rule("unscored", "", "most responses are cut off, have no box, or cannot be judged by the reward", (0, 0.5)),
    Rule("mismatch", "", "probably a problem of numerical precision in the engine (verl's FAQ)", (0, 0.01)),
    Rule("mismatch", "", "do engine and trainer drift apart? A restart loads the engine anew", drift=3.0),
    Rule("gradient", "", "is training diverging?", (0, 10.0)),
    Rule(
        "short",
        "",
        "some responses failed, and their groups are trained on without them; see train.log",
        (0, 0),
        window=1,
    ),
    Rule(
        "lost", "", "all their responses failed, and the step continues without them; see train.log", (0, 0), window=1
    ),
    Rule("preempted", "", "the KV cache is too small; raise gpu_memory_utilization or lower max_num_seqs", (0, 0.1)),
    Rule("waiting", "", "is one engine slow, or the reward?", (0, 0.5)),
    *(
        Rule(name, "", "verl skipped an update" if name == "gradient" else OVERFLOW, FINITE, window=1)
        for name in QUANTITIES
    ),
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


def watched(metrics: dict, response_limit: int) -> dict[str, float]:
    """Return what rules look at: the quantities, and those of ALARMS."""
    values = {name: number(metrics, key) for name, (key, _, _) in ALARMS.items() if key in metrics}
    if "waiting" in values:
        values["waiting"] /= number(metrics, "timing_s/step") or math.nan
    return quantities(metrics, response_limit) | values


def series(by_step: dict[int, dict], config: DictConfig) -> dict[str, dict[int, float]]:
    """Return name to values by step, first of the quantities that a run has, then of its validation sets."""
    curves: dict[str, dict[int, float]] = {name: {} for name in QUANTITIES}
    for step, metrics in sorted(by_step.items()):
        values = quantities(metrics, config.data.max_response_length) | validation_scores(metrics)
        for name, value in values.items():
            curves.setdefault(name, {})[step] = value
    return {name: values for name, values in curves.items() if values}


class RuleWatch:
    """Checks one rule, a step's value at a time."""

    def __init__(self, rule: Rule, papers: bool):
        self.rule = rule
        self.first: list[float] = []
        self.recent: deque[float] = deque(maxlen=rule.window)
        self.healthy_steps = 0 if rule.after_health and not papers else SMOOTHED_STEPS

    def bounds(self, step: int) -> tuple[float, float]:
        if not self.rule.drift:
            return self.rule.limits or band(self.rule.quantity, step) or FINITE
        return (0.0, self.rule.drift * fmean(self.first)) if len(self.first) == FIRST_STEPS else FINITE

    def add(self, step: int, value: float) -> str | None:
        """Take a step's value and return a message if the rule starts to warn."""
        if math.isnan(value) and self.rule.limits != FINITE:
            return None  # there is a rule for that
        low, high = self.bounds(step)
        if len(self.first) < FIRST_STEPS:
            self.first.append(value)
        self.recent.append(value)
        mean = fmean(self.recent)
        if low <= mean <= high:
            self.healthy_steps += 1
        elif len(self.recent) == self.rule.window:
            starts, self.healthy_steps = self.healthy_steps >= SMOOTHED_STEPS, 0
            return message(self.rule, step, mean, low, high) if starts else None
        return None


class ValidationWatch:
    """Looks for an accuracy that fell at three validations in a row or more, in all by more than its noise."""

    def __init__(self):
        self.falling: list[float] = []
        self.warned = False

    def add(self, step: int, scores: dict[str, float]) -> str | None:
        """Take a step's accuracies by set, none if it was not validated, and return a message if a warning starts."""
        if not scores:
            return None
        accuracy, noise = fmean(scores.values()), validation_noise(scores)
        if not self.falling or accuracy >= self.falling[-1]:
            self.falling, self.warned = [], False
        self.falling.append(accuracy)
        falls, start = len(self.falling) - 1, self.falling[0]
        if self.warned or falls < FALLS or start - accuracy <= noise:
            return None
        self.warned = True
        return (
            f"step {step}: validation accuracy {accuracy:.3f} fell {falls} times in a row, from {start:.3f}, by more "
            f"than its noise of {noise:.3f}: is the policy getting worse?"
        )


def validation_noise(scores: dict[str, float]) -> float:
    """Return how far apart four equal accuracies, means of these, are by chance in 1 % of cases; more for large sets.

    `scores` are by set and samples per prompt, like "AIME24 avg@32". One that is no fraction, as of a reward from -1 to
    1, has no known noise, and nothing exceeds it.
    """
    answers = {name: FEWEST_PROMPTS * int(name.rpartition("@")[2]) for name in scores}
    variances = [score * (1 - score) / answers[name] for name, score in scores.items()]
    return NOISE_RANGE * math.sqrt(sum(variances)) / len(scores) if min(variances) >= 0 else math.inf


class Warnings:
    """Checks the steps of a run as they arrive.

    A rule warns when the mean of the last steps leaves the bounds, and again only after as many steps within them.
    """

    def __init__(self, config: DictConfig):
        papers, self.response_limit = has_bands(config), config.data.max_response_length
        self.rules = [RuleWatch(rule, papers) for rule in RULES if papers or rule.limits or rule.drift]
        self.validation = ValidationWatch()

    def add(self, step: int, metrics: dict) -> list[RuleWarning]:
        """Take the next step's metrics and return a warning for each rule that starts to warn with it."""
        # A validation before training says nothing else about the run.
        values = watched(metrics, self.response_limit) if has_training(metrics) else {}
        texts = {
            watch.rule.kind: watch.add(step, values[watch.rule.quantity])
            for watch in self.rules
            if watch.rule.quantity in values
        }
        texts["validation fall"] = self.validation.add(step, validation_scores(metrics))
        return [RuleWarning(kind, text) for kind, text in texts.items() if text]


def message(rule: Rule, step: int, mean: float, low: float, high: float) -> str:
    """Return a message like "step 812: policy entropy (nats): 0.553, mean of 5, is below the limit of 0.600: ..."."""
    _, label, form = (QUANTITIES | ALARMS)[rule.quantity]
    if math.isnan(mean):
        return f"step {step}: {label} is not a number: {rule.above}"
    side, bound, meaning = ("above", high, rule.above) if mean > high else ("below", low, rule.below)
    if rule.drift:
        bounds = f"limit of {bound:{form}}, {rule.drift:g} times that of the first {FIRST_STEPS} steps"
    else:
        bounds = f"limit of {bound:{form}}" if rule.limits else f"paper's band, {low:{form}} to {high:{form}}"
    over = f", mean of {rule.window}," if rule.window > 1 else ""
    return f"step {step}: {label}: {mean:{form}}{over} is {side} the {bounds}: {meaning}"


def warnings(by_step: dict[int, dict], config: DictConfig) -> list[RuleWarning]:
    """Return every warning of a run, each once, at the step where it started."""
    watch = Warnings(config)
    return [warning for step in sorted(by_step) for warning in watch.add(step, by_step[step])]
