"""A run's `metrics.jsonl`: reading it, what a step's numbers mean, and a line per step for the terminal."""

import json
import re
from pathlib import Path
from statistics import fmean

from common.progress import duration

REWARD = "critic/score/mean"
SMOOTHED_STEPS = 5


def read_metrics(path: Path) -> dict[int, dict]:
    """Return step to metrics, without a truncated last line; nothing if there is no file."""
    by_step: dict[int, dict] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # the run died while it wrote this line
        by_step.setdefault(record["step"], {}).update(record["data"])
    return by_step


def format_metrics(by_step: dict[int, dict]) -> str:
    """Format metrics as JSON lines, as verl's file logger does."""
    return "".join(json.dumps({"step": step, "data": by_step[step]}) + "\n" for step in sorted(by_step))


def validation_scores(metrics: dict) -> dict[str, float]:
    """Return the accuracies (0 to 1) of a step's validation sets, named like "AIME24 avg@32"."""
    scores = {re.fullmatch(r"val-core/(.+)/acc/mean@(\d+)", key): value for key, value in metrics.items()}
    return {f"{match[1]} avg@{match[2]}": value for match, value in scores.items() if match and value is not None}


def validation_accuracy(metrics: dict) -> float | None:
    """Return a step's mean accuracy (0 to 1) over the validation sets, None if it was not validated."""
    values = validation_scores(metrics).values()
    return fmean(values) if values else None


def has_training(metrics: dict) -> bool:
    """Tell metrics of an update from those of a validation alone."""
    return REWARD in metrics


def step_seconds(metrics: dict) -> float:
    """Return how long a step took, its validation included."""
    return metrics["timing_s/step"] + metrics.get("timing_s/testing", 0.0)


def seconds_left(seconds: list[float], steps_left: int) -> float:
    """Estimate how long `steps_left` steps will take if they are like the last few."""
    return steps_left * fmean(seconds[-SMOOTHED_STEPS:])


def format_metric(metrics: dict, key: str, form: str = "+.3f") -> str:
    """Format a metric; "nan" for one that verl's logger wrote as null."""
    return "nan" if metrics.get(key) is None else format(metrics[key], form)


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
            f"  {metrics['timing_s/step']:.1f} s/step  {duration(left)} left{validated}"
        )
