"""Progress of slow work on the terminal, and the cause of a failure from a long log."""

import contextlib
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from common.command import Failure

ANSI = re.compile(r"\x1b\[[0-9;]*m")
# "(Actor pid=1) (EngineCore pid=2) ERROR 11-22 10:11:56 [core.py:1346] " in any combination
PREFIX = re.compile(r"^(?:\((?:\w+ )?pid=[^)]*\) |(?:ERROR|WARNING|INFO) [\d-]+ [\d:]+ \[[^\]]*\] )+")
ERROR_LINE = re.compile(
    r"^\s*([\w.]*(?:Error|Exception|Interrupt|Exit))(?:\(.*?\))?: (\S.*)|.*Watchdog caught collective"
)
# Wrappers that repeat another process's error.
WRAPPERS = ("RayTaskError", "ActorDiedError", "Error executing job")
WARNING = "warning: "  # begins our own lines in a log, which are no cause of a failure
CAUSE_CHARACTERS = 500
PRINT_EVERY_SECONDS = 20.0  # where there is no terminal for a bar


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

    def __init__(self, what: str, every_seconds: float = 20, file: TextIO | None = None):
        self.what, self.every_seconds, self.file = what, every_seconds, file
        self.started = self.last = time.monotonic()

    def tick(self) -> None:
        if time.monotonic() - self.last >= self.every_seconds:
            self.last = time.monotonic()
            print(f"  {self.what} ... {self.last - self.started:.0f} s", flush=True, file=self.file)


class ResponseProgress:
    """A bar of finished responses, tokens per second and time left; now and then a message where no terminal is."""

    def __init__(self, total: int, terminal):
        self.total, self.terminal, self.tokens, self.finished = total, terminal, 0, 0
        self.started = self.printed = time.monotonic()
        self.bar = tqdm(total=total, file=terminal, unit=" responses") if terminal.isatty() else None

    def add(self, tokens: int) -> None:
        self.finished, self.tokens, now = self.finished + 1, self.tokens + tokens, time.monotonic()
        rate = self.tokens / max(1e-9, now - self.started)
        if self.bar is not None:
            self.bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
            self.bar.update()
        elif now - self.printed > PRINT_EVERY_SECONDS or self.finished == self.total:
            self.printed = now
            left = duration((now - self.started) / self.finished * (self.total - self.finished))
            print(f"  {self.finished} of {self.total} responses, {rate:,.0f} tokens/s, {left} left", file=self.terminal)


def redirect(out: int, errors: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(out, 1)
    os.dup2(errors, 2)


@contextlib.contextmanager
def output_into(log_path: Path) -> Iterator[TextIO]:
    """Send everything that this process prints into a log; yield a file that still reaches the terminal.

    By descriptor: Ray's and vLLM's C++ parts print too.

    Raises:
        Failure: with the cause, for any error but ValueError and OSError.
    """
    terminal, errors = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    start = os.lseek(log, 0, os.SEEK_END)
    redirect(log, log)
    try:
        yield terminal
    except (ValueError, OSError):
        raise
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        raise Failure(f"failed: {cause(log_path, start)}\n  see {log_path}") from error
    finally:
        redirect(terminal.fileno(), errors.fileno())
