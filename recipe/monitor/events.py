"""The record of what happened to a run: `events.jsonl`, one JSON object per line."""

import contextlib
import itertools
import time
from pathlib import Path
from typing import Any

from common.json_lines import Shape, format_line, read_lines, set_aside
from common.progress import duration

EVENTS = "events.jsonl"
RESTART, STARTED, FAILURE, END = "restart", "started", "failure", "end"
SECONDS = {"type": "number", "minimum": 0, "maximum": 1e9}  # 30 years
TIMES = {"seconds_lost": SECONDS, "start_seconds": SECONDS}
SHAPE = Shape({"required": ["time", "event"], "properties": {"event": {"type": "string"}, **TIMES}})


class Events:
    """Appends to the record of a run. A full disk loses the line, not the run."""

    def __init__(self, folder: Path):
        self.path = folder / EVENTS
        with contextlib.suppress(OSError):
            set_aside(self.path, [])  # ends a truncated last line

    def record(self, event: str, **details: Any) -> None:
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event} | details
        with contextlib.suppress(OSError), open(self.path, "a") as file:
            file.write(format_line(line))


def read_events(folder: Path) -> list[dict]:
    """Return a run's events in order, without damaged lines; none without a file."""
    path = folder / EVENTS
    return read_lines(path, SHAPE)[0] if path.exists() else []


def restarts(events: list[dict]) -> list[str]:
    """Describe each restart of a run in a line."""
    return [
        f"{event['time']}: {event.get('kind', 'ended')} after step {event.get('step', '?')}, "
        f"{duration(event.get('seconds_lost', 0.0))} lost: {event.get('cause', 'unknown')}"
        for event in events
        if event["event"] == RESTART
    ]


def seconds_lost(events: list[dict]) -> float:
    """Sum what restarts cost: work that is repeated, and the starts that follow them."""
    lost = [event.get("seconds_lost", 0.0) for event in events]
    lost += [
        after.get("start_seconds", 0.0) for before, after in itertools.pairwise(events) if before["event"] == RESTART
    ]
    return sum(lost)
