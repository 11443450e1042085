"""Signs of progress that a run's processes leave for its supervisor: a file for each in `outputs/RUN/heartbeat`.

A file's text changes whenever its process has got something done, and at no other time. The supervisor compares texts
and times the silence itself, so the clocks of several machines do not matter.
"""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from common.files import write_text
from common.json_lines import read_json
from recipe.verl_plugins.run_file import RUN_FILE

FOLDER = "heartbeat"
EVERY_SECONDS = 1.0
TRAINER, ACTOR = "trainer", "actor"  # names of the files: verl's task runner, and the first rank of the actor
# Phases of a run that other code tells apart.
START, SAVE, VALIDATION = "start", "checkpoint", "validation"


class Heartbeat:
    """A process's file. Writing never fails: a full disk or lost file server shows in the process's own work."""

    def __init__(self, name: str):
        self.path = Path(os.environ[RUN_FILE]).parent / FOLDER / name
        self.state: dict[str, Any] = {}
        self.written = 0.0

    def set(self, **state: Any) -> None:
        """Write what the process does, such as phase="update" and step=7, if that is new."""
        if state != self.state:
            self.state = state
            self.write()

    def count(self) -> None:
        """Count one more piece of work that is done; written once a second at most."""
        self.state["count"] = self.state.get("count", 0) + 1
        if time.monotonic() - self.written > EVERY_SECONDS:
            self.write()

    def write(self) -> None:
        self.written = time.monotonic()
        with contextlib.suppress(OSError):
            write_text(self.path, json.dumps(self.state))


def read_heartbeats(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what each process of the run in `folder` last wrote, by its name."""
    found = {}
    for name in (TRAINER, ACTOR):
        with contextlib.suppress(ValueError, OSError):  # there is none, it is being replaced, or the file server fails
            found[name] = read_json(folder / FOLDER / name)
    return found
