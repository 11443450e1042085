"""Whether a run that ended before its last step starts again."""

import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

DONE, STOPPED, FAILED, STALLED, FULL = "done", "stopped", "failed", "stalled", "ended early"
UNATTENDED = 3  # restarts where nobody sits at a terminal
NUMBER = re.compile(r"0x[0-9a-f]+|\d+")  # process ids and addresses differ between equal failures


class Ended(NamedTuple):
    """How a start of a run ended.

    Args:
        step: the last finished one, 0 for none.
        cause: a line, "" where it did not fail.
        see: a file with more.
        idle: no step was finished.
        final: why it must not be started again, "" where it may.
    """

    kind: str
    step: int
    cause: str = ""
    see: Path | None = None
    final: str = ""
    idle: bool = False

    def like(self, other: "Ended") -> bool:
        """Tell whether two starts ended at the same step for the same cause."""
        causes = [NUMBER.sub("#", ended.cause) for ended in (self, other)]
        return self.step == other.step and self.kind == other.kind and causes[0] == causes[1]


def default_restarts() -> int:
    """Return the restarts that JUSTRL_RESTARTS allows, or those of a run with or without a terminal.

    Raises:
        ValueError: the variable is no number; one line.
    """
    given = os.environ.get("JUSTRL_RESTARTS", "")
    if re.fullmatch("[0-9]{1,9}", given):
        return int(given)
    if given:
        raise ValueError(f"JUSTRL_RESTARTS={given}: use the number of restarts, such as 3, or 0 for none")
    attended = any(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
    return 0 if attended else UNATTENDED


class Restarts:
    """Counts the restarts of one command."""

    def __init__(self, allowed: int):
        self.allowed, self.used = allowed, 0
        self.before: Ended | None = None

    def refusal(self, ended: Ended) -> str | None:
        """Return why a run that ended so is not started again; None if it is, which counts."""
        same = self.before is not None and ended.like(self.before)
        self.before = ended
        if ended.final:
            return ended.final
        if same:
            return f"it ended in the same way twice after step {ended.step}"
        if self.used == self.allowed:
            return f"all {self.allowed} restarts are used"
        self.used += 1
        return None
