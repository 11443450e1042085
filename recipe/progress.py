"""A line per training step from verl's metrics, and the cause of a failure from verl's log."""

import re
import time
from pathlib import Path

ANSI = re.compile(r"\x1b\[[0-9;]*m")
# "(Actor pid=1) (EngineCore pid=2) ERROR 11-22 10:11:56 [core.py:1346] " in any combination
PREFIX = re.compile(r"^(?:\((?:\w+ )?pid=[^)]*\) |(?:ERROR|WARNING|INFO) [\d-]+ [\d:]+ \[[^\]]*\] )+")
ERROR_LINE = re.compile(r"^\s*([\w.]*(?:Error|Exception|Interrupt|Exit))(?:\(.*?\))?: (\S.*)")
# Wrappers that repeat another process's error.
WRAPPERS = ("RayTaskError", "ActorDiedError", "Error executing job")
SMOOTHED_STEPS = 5
REWARD = "critic/score/mean"
WARNING = "warning: "  # begins a line of `recipe.health` in the log, which is no cause of a failure


def validation_scores(metrics: dict) -> dict[str, float]:
    """Return the accuracies (0 to 1) of a step's validation sets, named like "AIME24 avg@32"."""
    found = {re.fullmatch(r"val-core/(.+)/acc/mean@(\d+)", key): value for key, value in metrics.items()}
    return {f"{match[1]} avg@{match[2]}": value for match, value in found.items() if match and value is not None}


def validation_accuracy(metrics: dict) -> float | None:
    """Return the mean accuracy (0 to 1) over the validation sets of a step, None if it was not validated."""
    values = list(validation_scores(metrics).values())
    return sum(values) / len(values) if values else None


def has_training(metrics: dict) -> bool:
    """Return whether a step's metrics are of an update, not only of a validation."""
    return REWARD in metrics


def step_seconds(metrics: dict) -> float:
    """Return how long a step took, its validation included (seconds)."""
    return metrics["timing_s/step"] + metrics.get("timing_s/testing", 0.0)


def seconds_left(seconds: list[float], steps_left: int) -> float:
    """Return the time that `steps_left` steps will take if they are like the last few."""
    recent = seconds[-SMOOTHED_STEPS:]
    return steps_left * sum(recent) / len(recent)


def number(metrics: dict, key: str, form: str = "+.3f") -> str:
    """Return a metric formatted; "nan" for one that verl's logger wrote as null."""
    return "nan" if metrics.get(key) is None else format(metrics[key], form)


class StepLines:
    """Formats steps as they arrive and estimates the time left from the last few."""

    def __init__(self, total_steps: int):
        self.total_steps = total_steps
        self.seconds: list[float] = []

    def line(self, step: int, metrics: dict) -> str:
        """Return one line for the terminal."""
        accuracy = validation_accuracy(metrics)
        validated = "" if accuracy is None else f"  val acc {accuracy:.3f}"
        if not has_training(metrics):
            return f"  step {step:>4}/{self.total_steps}{validated}"
        self.seconds.append(step_seconds(metrics))
        left = seconds_left(self.seconds, self.total_steps - step)
        return (
            f"  step {step:>4}/{self.total_steps}  reward {number(metrics, REWARD)}"
            f"  length {number(metrics, 'response_length/mean', '.0f')}"
            f"  entropy {number(metrics, 'actor/entropy', '.3f')}"
            f"  {metrics['timing_s/step']:.1f} s/step  {duration(left)} left{validated}"
        )


def duration(seconds: float) -> str:
    """Return seconds as 45 s, 12 min or 3.4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def clean(line: str) -> str:
    """Return a line of Ray's and vLLM's output without colours and what they put before it."""
    return PREFIX.sub("", ANSI.sub("", line)).strip()


def cause(log: Path, offset: int = 0) -> str:
    """Return the error that ended a run, from its log after `offset` bytes: the first that is no wrapper, if any."""
    with open(log, errors="replace") as file:
        file.seek(offset)
        lines = [clean(line) for line in file]
    errors = [line for line in lines if ERROR_LINE.match(line)]
    if own := [line for line in errors if not any(word in line for word in WRAPPERS)]:
        return own[0][:500]
    if errors:  # a process that was killed says nothing itself: Ray's last word names what died
        died = [f" ({line})" for line in lines if line.startswith("class_name: ")]
        return errors[-1][:500] + (died[-1] if died else "")
    return next((line[:500] for line in reversed(lines) if line and not line.startswith(WARNING)), "no output")


class WaitingLine:
    """Says now and then that something slow is still going on."""

    def __init__(self, what: str, every_seconds: float = 20):
        self.what, self.every_seconds = what, every_seconds
        self.started = self.last = time.monotonic()

    def tick(self) -> None:
        """Print a line if the last one is old enough."""
        if time.monotonic() - self.last >= self.every_seconds:
            self.last = time.monotonic()
            print(f"  {self.what} ... {self.last - self.started:.0f} s", flush=True)
