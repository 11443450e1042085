"""The host memory of a run by step: at which step it ends, and whether the run should restart before."""

import math
import os
import time
from typing import NamedTuple

import numpy as np
import psutil
from omegaconf import DictConfig

from common import machine
from common.host_memory import Memory, by_role, node_memory, shared_memory
from common.machine import GIB
from common.processes import living_descendants
from recipe.checkpoints import STOP
from recipe.preflight import run_folder

USED, TOTAL, SHARED, ROLE = "memory/node_used_gb", "memory/node_total_gb", "memory/shm_gb", "memory/host_gb/"
# Of the node of a run with several that has least left; recipe/verl_plugins/node_memory.py measures it.
FULLEST_USED, FULLEST_TOTAL = "memory/fullest_node_used_gb", "memory/fullest_node_total_gb"
# Between looks at every process, which take 0.4 CPU seconds in the demo and 16 ms per GiB: 1% of a core at most.
ROLE_SECONDS, ROLE_COST = 30, 0.01
# Above this fraction of a node's memory Ray ends workers:
# https://docs.ray.io/en/latest/ray-core/scheduling/ray-oom-prevention.html
RAY_THRESHOLD, RAY_VARIABLE = 0.95, "RAY_memory_usage_threshold"
WARM_UP = 5  # first steps of an attempt, in which memory grows to its working level
FEWEST, MOST = 24, 200  # steps that are fitted; checkpoints and validations are 50 steps apart
SIGNIFICANT = 8  # standard errors of the slope; the noise of a flat use does not reach them
EVEN = 0.25  # smallest part of the growth beside the largest, of three parts; a jump leaves one of them at 0
HORIZON = 10  # times the fitted steps: how far ahead a forecast looks
RESTART_STEPS = 10  # before the expected end
LAST = 3  # steps that grow in a row, and as many left at the slowest of their paces: too soon for a fit
FULL = 0.95  # of what Ray leaves to the node: nothing to win by a restart that starts there
GROWN = 0.05  # of the same, since an attempt's first steps


def of_fullest(metrics: dict) -> dict:
    """Return a step's metrics of memory; if another node than this has less left, its use and nothing else."""
    used, total = metrics.get(FULLEST_USED), metrics.get(FULLEST_TOTAL)
    if used is not None and total - used < metrics[TOTAL] - metrics[USED]:
        return {USED: used, TOTAL: total}
    return {key: value for key, value in metrics.items() if key.startswith("memory/")}


class Forecast(NamedTuple):
    """The step at which a node's memory ends, its growth in GiB per step, and what grows most."""

    step: int
    slope: float
    grows: str


def limit_gb(metrics: dict) -> float:
    """Return the GiB in use at which Ray ends workers of this node."""
    return float(os.environ.get(RAY_VARIABLE) or RAY_THRESHOLD) * metrics[TOTAL]


def forecast(by_step: dict[int, dict]) -> Forecast | None:
    """Fit the metrics of one attempt, in order; None where memory does not end in the foreseeable steps.

    A growth that slows down is continued as slowing down, by the same factor over as many steps.
    """
    last = max(by_step, default=0)
    steps = [step for step in list(by_step)[WARM_UP:][-MOST:] if by_step[step][TOTAL] == by_step[last][TOTAL]]
    if len(steps) < FEWEST:
        return None
    steps = steps[len(steps) % 4 :]
    x, y = np.array(steps, float), np.array([by_step[step][USED] for step in steps])
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    growth = np.diff(y.reshape(4, -1).mean(axis=1))
    if slope <= SIGNIFICANT * math.sqrt(covariance[0, 0]) or growth.min() <= EVEN * growth.max():
        return None
    half = len(steps) // 2
    slowing = min(1.0, growth[2] / growth[0])  # over half of the steps
    pace = slope * slowing  # at the last step; the slope is that of the middle
    # The highest use, such as a checkpoint's, carried on to the last step.
    level = (y + pace * (x[-1] - x))[half:].max()
    ahead = steps_until(limit_gb(by_step[last]) - level, pace, slowing, half)
    if ahead > HORIZON * len(steps):
        return None
    return Forecast(last + round(ahead), float(slope), grows_most(by_step, steps[0]))


def steps_until(needed: float, pace: float, slowing: float, half: int) -> float:
    """Return in how many steps a growth of `pace` reaches `needed`, if each `half` steps slow it by a factor."""
    if needed <= 0:
        return 0
    if slowing >= 1:
        return needed / pace
    scale = half / -math.log(slowing)
    return -scale * math.log1p(-needed / (pace * scale)) if needed < pace * scale else math.inf


def grows_most(by_step: dict[int, dict], start: int) -> str:
    """Name the role, or /dev/shm, that has grown most since a step, if it explains a third of the growth."""
    known = [metrics for step, metrics in by_step.items() if step >= start and any(ROLE in key for key in metrics)]
    if len(known) < 2:
        return "unknown processes"
    first, last = known[0], known[-1]
    grown = {key: last[key] - first.get(key, 0.0) for key in last if key.startswith(ROLE) or key == SHARED}
    most = max(grown, key=lambda key: grown[key])
    if grown[most] < (last[USED] - first[USED]) / 3:
        return "outside this run's processes"
    return "/dev/shm" if most == SHARED else most.removeprefix(ROLE)


class MemoryWatch:
    """Measures memory during one attempt of a run, warns, and sets `full` when a restart would free what is needed.

    Each restart needs a new one: the working level must be seen anew.
    """

    def __init__(self, config: DictConfig):
        self.total_steps = config.trainer.total_training_steps or math.inf
        self.on_gpus, self.folder = config.trainer.device == "cuda", run_folder(config)
        self.by_step: dict[int, dict] = {}
        self.peak = Memory(0, 0)
        self.next_roles = -math.inf
        self.warned_left = math.inf  # steps that were left at the last warning
        self.full = False
        self.place = "this node"  # whose memory counts: that of the fullest

    def sample(self) -> None:
        """Look at the node, in well under a millisecond; Ray's monitor ends workers for a short peak too."""
        self.peak = max(self.peak, node_memory())

    def measure(self) -> dict[str, float]:
        """Return metrics in GiB: the highest use of the samples since the last call, the other values as of now."""
        self.sample()
        sizes = {USED: self.peak.used, TOTAL: self.peak.total, SHARED: shared_memory()}
        self.peak = Memory(0, 0)
        if time.monotonic() >= self.next_roles:
            began = time.process_time()
            processes = by_role([psutil.Process(), *living_descendants()])
            sizes |= {ROLE + name: size for name, size in processes.items()}
            pause = max(ROLE_SECONDS, (time.process_time() - began) / ROLE_COST)
            self.next_roles = time.monotonic() + pause
        if self.on_gpus and (gpus := machine.look().gpus):
            sizes["memory/gpu_gb/max"] = max(gpu.total - gpu.free for gpu in gpus)
        return {key: size / GIB for key, size in sizes.items()}

    def add(self, step: int, metrics: dict) -> list[str]:
        """Take the next step's metrics and return a message for each warning that starts with it."""
        if USED not in metrics:
            return []
        metrics = self.by_step[step] = of_fullest(metrics)
        self.place = "this node" if SHARED in metrics else "the fullest node"
        used, limit, seen = metrics[USED], limit_gb(metrics), list(self.by_step)
        start = min(self.by_step[early][USED] for early in seen[:WARM_UP])  # loading may have taken more
        state = f"step {step}: {used:.1f} of the {limit:.1f} GiB that Ray leaves to {self.place} are in use"
        if start >= FULL * limit:
            advice = "right after the start, so a restart frees nothing; end what else uses it, or lower the run's own"
            return [f"{state} {advice}"] if len(seen) == WARM_UP else []
        expected = forecast(self.by_step)
        if expected and expected.step >= self.total_steps:
            expected = None
        near = expected is not None and expected.step - step <= RESTART_STEPS
        was_full = self.full
        self.full = near or (used - start >= GROWN * limit and self.ends_at_once(limit))
        if self.full and not was_full:
            grown = f"{used - start:.1f} more than after the start, mostly {grows_most(self.by_step, seen[0])}"
            return [f"{state}, {grown}; a restart frees them"]
        return self.warn_early(step, expected) if expected and not self.full else []

    def ends_at_once(self, limit: float) -> bool:
        """Tell whether memory ends as soon as no fit can foresee; the peak of a checkpoint is one step alone."""
        if len(self.by_step) <= WARM_UP:
            return False
        last = [metrics[USED] for metrics in list(self.by_step.values())[-LAST - 1 :]]
        return last[-1] + LAST * np.diff(last).min() >= limit

    def warn_early(self, step: int, expected: Forecast) -> list[str]:
        left = expected.step - step
        if left > self.warned_left / 2:
            return []
        self.warned_left = left
        total = "" if self.total_steps == math.inf else f" of {self.total_steps:,}"
        return [
            f"step {step}: memory of {self.place} grows by {expected.slope:.2g} GiB per step, mostly {expected.grows}, "
            f"and runs out near step {expected.step:,}{total}; to free it, create {self.folder / STOP}, wait for the "
            "checkpoint, and run the same command again"
        ]
