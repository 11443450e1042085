"""Notices a run in which nothing happens any more, by the signs of progress that its processes leave."""

import contextlib
import os
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

from common.patience import LOOK_SECONDS, Silence
from common.progress import duration
from recipe.heartbeat import SAVE, START, TRAINER, VALIDATION, read_heartbeats

# The longest silence of a healthy run is the end of a generation, until the last response is there.
LEAST_SECONDS = 600.0
STEPS_OF_SILENCE = 3  # of as many whole steps is a hang, however long a step takes
# Loading a model, compiling, validation's longer responses and a slow file server: none of them is in a step's time.
PATIENT_PHASES = (START, SAVE, VALIDATION)
PATIENT_FACTOR, PATIENT_SECONDS, START_SECONDS = 3, 1800.0, 3600.0
STEPS = 5  # the last ones, of which the longest counts
FIRST_DOING = {"phase": START, "step": 0}  # until verl's trainer writes its own


class Stall(NamedTuple):
    """A hang: what the trainer last did, as it wrote it, and how long nothing has happened since (seconds)."""

    doing: dict[str, Any]
    silent: float

    def __str__(self) -> str:
        where = "startup" if self.doing["phase"] == START else f"the {self.doing['phase']} of step {self.doing['step']}"
        done = f" ({self.doing['done']})" if "done" in self.doing else ""
        return f"no progress for {duration(self.silent)} during {where}{done}"


class Watchdog:
    """Looks at a run now and then, for as long as one start of it lasts.

    Progress is a finished step, a response, a micro-batch, the next phase of a step, and what a checkpoint grows by.

    Args:
        folder: the run's.
        checkpoints: the folder of `global_step_<N>`.
        seconds: of silence that are a hang; None takes them from the run's own steps, 0 never sees one. A start, a
            validation and a checkpoint have more.
    """

    def __init__(self, folder: Path, checkpoints: Path, seconds: float | None):
        self.folder, self.checkpoints, self.fixed = folder, checkpoints, seconds
        self.step_seconds: deque[float] = deque(maxlen=STEPS)
        self.silence = Silence()
        self.looked = time.monotonic()

    def add_step(self, seconds: float) -> None:
        """Take how long a finished step took."""
        self.step_seconds.append(seconds)

    def limit(self, phase: str) -> float:
        """Return the seconds of silence that are a hang in a phase."""
        own = max(LEAST_SECONDS, STEPS_OF_SILENCE * max(self.step_seconds, default=0.0))
        seconds = self.fixed or own
        if phase not in PATIENT_PHASES:
            return seconds
        least = START_SECONDS if phase == START else PATIENT_SECONDS if self.fixed is None else 0.0
        return max(least, PATIENT_FACTOR * seconds)

    def look(self) -> Stall | None:
        """Return the hang, if there is one; cheap to call often."""
        if self.fixed == 0 or time.monotonic() - self.looked < LOOK_SECONDS / 2:
            return None
        self.looked = time.monotonic()
        found = read_heartbeats(self.folder)
        doing = found.get(TRAINER, FIRST_DOING)
        saved = written(self.checkpoints / f"global_step_{doing['step']}") if doing["phase"] == SAVE else 0
        silent = self.silence.look((found, saved))
        return Stall(doing, silent) if silent >= self.limit(doing["phase"]) else None


def written(folder: Path) -> int:
    """Sum the bytes of a folder's files; those that are being renamed do not count."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.stat(os.path.join(parent, name)).st_size
    return size
