"""A run's `metrics.jsonl`: reading it, what a step's numbers mean, and a line per step for the terminal."""

import json
import math
import re
from pathlib import Path
from statistics import fmean

from common.json_lines import Line, lines
from common.progress import duration

REWARD = "critic/score/mean"
SMOOTHED_STEPS = 5
LARGEST_STEP = 2**31
LARGEST = 1e100  # of five the mean is still a float's; verl's logger writes infinity as null


def read_metrics(path: Path) -> dict[int, dict]:
    """Return step to metrics, without damaged lines; nothing if there is no file."""
    return read_log(path)[0]


def read_log(path: Path) -> tuple[dict[int, dict], list[Line]]:
    """Return step to metrics, and the damaged lines; nothing if there is no file."""
    found = [checked(line) for line in lines(path)] if path.exists() else []
    steps = [line.record["step"] if line.record else None for line in found]
    by_step, damaged, misplaced = {}, [], out_of_order(steps)
    for i, line in enumerate(found):
        if line.record and i not in misplaced and steps[i] not in by_step:
            by_step[line.record["step"]] = line.record["data"]
        else:
            damaged.append(line._replace(record=None, problem=line.problem or f"step {steps[i]} is out of order"))
    return dict(sorted(by_step.items())), damaged


def checked(line: Line) -> Line:
    """Return a line without its record if that is no step's metrics: numbers by name, or null for NaN."""
    if line.record is None:
        return line
    step, data = line.record.get("step"), line.record.get("data")
    if type(step) is not int or not 0 <= step < LARGEST_STEP:
        return line._replace(record=None, problem="has no step")
    if not isinstance(data, dict):
        return line._replace(record=None, problem="has no metrics")
    # NaN is no larger than anything.
    numbers = {key for key, value in data.items() if isinstance(value, (int, float)) and not abs(value) > LARGEST}
    wrong = [key for key, value in data.items() if value is not None and key not in numbers]
    return line._replace(record=None, problem=f"{wrong[0]!r} is no number") if wrong else line


def out_of_order(steps: list[int | None]) -> set[int]:
    """Find the lines (by index) whose step does not ascend: one changed digit makes a step another one.

    A line beside the one of the step before or after is right; the others are to fit between those.
    """
    there = {i: step for i, step in enumerate(steps) if step is not None}
    right = {i: step for i, step in there.items() if there.get(i - 1) == step - 1 or there.get(i + 1) == step + 1}
    rest = there.keys() - right.keys()
    return {i for i in rest if any(step == there[i] or (j < i) != (step < there[i]) for j, step in right.items())}


def format_metrics(by_step: dict[int, dict]) -> str:
    """Format metrics as JSON lines, as verl's file logger does."""
    return "".join(json.dumps({"step": step, "data": by_step[step]}) + "\n" for step in sorted(by_step))


def number(metrics: dict, key: str, missing: float = math.nan) -> float:
    """Look up a metric; `missing` for one that is absent, NaN, or that verl's logger wrote as null."""
    value = metrics.get(key)
    return missing if value is None or math.isnan(value) else value


def validation_scores(metrics: dict) -> dict[str, float]:
    """Return the accuracies (0 to 1) of a step's validation sets, named like "AIME24 avg@32"."""
    found = {key: re.fullmatch(r"val-core/(.+)/acc/mean@([1-9]\d*)", key) for key in metrics}
    scores = {f"{match[1]} avg@{match[2]}": number(metrics, key) for key, match in found.items() if match}
    return {name: value for name, value in scores.items() if not math.isnan(value)}


def validation_accuracy(metrics: dict) -> float | None:
    """Return a step's mean accuracy (0 to 1) over the validation sets, None if it was not validated."""
    values = validation_scores(metrics).values()
    return fmean(values) if values else None


def has_training(metrics: dict) -> bool:
    """Tell metrics of an update from those of a validation alone."""
    return REWARD in metrics


def step_seconds(metrics: dict) -> float:
    """Return how long a step took, its validation included; 0 where that is not logged."""
    return number(metrics, "timing_s/step", 0.0) + number(metrics, "timing_s/testing", 0.0)


def seconds_left(seconds: list[float], steps_left: int) -> float:
    """Estimate how long `steps_left` steps will take if they are like the last few."""
    return steps_left * fmean(seconds[-SMOOTHED_STEPS:])


def format_metric(metrics: dict, key: str, form: str = "+.3f") -> str:
    """Format a metric; "nan" without a number."""
    value = number(metrics, key)
    return "nan" if math.isnan(value) else format(value, form)


class StepLines:
    """Formats steps as they arrive and estimates the time left from the last few."""

    def __init__(self, total_steps: int):
        self.total_steps = total_steps
        self.seconds: list[float] = []

    def line(self, step: int, metrics: dict) -> str:
        accuracy = validation_accuracy(metrics)
        validated = "" if accuracy is None else f"  val acc {accuracy:.3f}"
        if not has_training(metrics):
            return f"  step {step:>4}/{self.total_steps}{validated}"
        self.seconds.append(step_seconds(metrics))
        left = seconds_left(self.seconds, self.total_steps - step)
        return (
            f"  step {step:>4}/{self.total_steps}  reward {format_metric(metrics, REWARD)}"
            f"  length {format_metric(metrics, 'response_length/mean', '.0f')}"
            f"  entropy {format_metric(metrics, 'actor/entropy', '.3f')}"
            f"  {format_metric(metrics, 'timing_s/step', '.1f')} s/step  {duration(left)} left{validated}"
        )
