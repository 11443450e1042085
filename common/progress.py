"""Progress of slow work on the terminal, and the cause of a failure from a long log."""

import re
import time
from pathlib import Path

ANSI = re.compile(r"\x1b\[[0-9;]*m")
# "(Actor pid=1) (EngineCore pid=2) ERROR 11-22 10:11:56 [core.py:1346] " in any combination
PREFIX = re.compile(r"^(?:\((?:\w+ )?pid=[^)]*\) |(?:ERROR|WARNING|INFO) [\d-]+ [\d:]+ \[[^\]]*\] )+")
ERROR_LINE = re.compile(r"^\s*([\w.]*(?:Error|Exception|Interrupt|Exit))(?:\(.*?\))?: (\S.*)")
# Wrappers that repeat another process's error.
WRAPPERS = ("RayTaskError", "ActorDiedError", "Error executing job")
WARNING = "warning: "  # begins our own lines in a log, which are no cause of a failure
CAUSE_CHARACTERS = 500


def duration(seconds: float) -> str:
    """Format seconds as 45 s, 12 min or 3.4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def cause(log: Path, offset: int = 0) -> str:
    """Find the error that ended a program in its log after `offset` bytes: the first that is no wrapper, if any."""
    with open(log, errors="replace") as file:
        file.seek(offset)
        lines = [PREFIX.sub("", ANSI.sub("", line)).strip() for line in file]
    errors = [line for line in lines if ERROR_LINE.match(line)]
    own = [line for line in errors if not any(word in line for word in WRAPPERS)]
    if own:
        return own[0][:CAUSE_CHARACTERS]
    if errors:  # a process that was killed logs nothing itself: Ray's last error has the class of the actor that died
        died = [f" ({line})" for line in lines if line.startswith("class_name: ")]
        return errors[-1][:CAUSE_CHARACTERS] + (died[-1] if died else "")
    printed = [line for line in lines if line and not line.startswith(WARNING)]
    return printed[-1][:CAUSE_CHARACTERS] if printed else "no output"


class WaitingLine:
    """Prints a line every `every_seconds` while something slow goes on."""

    def __init__(self, what: str, every_seconds: float = 20):
        self.what, self.every_seconds = what, every_seconds
        self.started = self.last = time.monotonic()

    def tick(self) -> None:
        if time.monotonic() - self.last >= self.every_seconds:
            self.last = time.monotonic()
            print(f"  {self.what} ... {self.last - self.started:.0f} s", flush=True)
