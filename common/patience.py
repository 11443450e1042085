"""Waits that a slow or loaded machine does not exceed: they end when nothing happens any more, after no fixed time."""

import sys
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from common.progress import WaitingLine

SILENT_SECONDS = 600.0  # without a sign of life; on an idle machine the longest of our waits takes less than a minute
LOOK_SECONDS = 5.0
Sign = TypeVar("Sign")


class Silence:
    """Measures how long a sign of life, which is anything that changes as long as something happens, stays the same."""

    def __init__(self) -> None:
        self.seen: object = None
        self.seconds, self.looked = 0.0, time.monotonic()

    def look(self, seen: object) -> float:
        """Take the sign as it is now, and return the seconds for which it has been the same."""
        now = time.monotonic()
        # A look that was itself held up, by a stopped process or a file server, says no more than a quick one.
        self.seconds = self.seconds + min(now - self.looked, LOOK_SECONDS) if seen == self.seen else 0.0
        self.seen, self.looked = seen, now
        return self.seconds


class Patience(Generic[Sign]):
    """Says whether to go on waiting, and prints every 20 s that it waits: to stderr, as some commands' output is read.

    Args:
        what: the line to print.
        sign: a sign of life, see `Silence`.
        seconds: how long it may stay the same.
    """

    def __init__(self, what: str, sign: Callable[[], Sign], seconds: float | None = None):
        self.line, self.sign, self.seen, self.silence = WaitingLine(what, file=sys.stderr), sign, sign(), Silence()
        self.seconds = SILENT_SECONDS if seconds is None else seconds
        self.silence.look(self.seen)

    def lasts(self) -> bool:
        """Look once more, and return whether to look again."""
        self.line.tick()
        self.seen = self.sign()
        return self.silence.look(self.seen) < self.seconds
