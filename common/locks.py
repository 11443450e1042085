"""One run per folder.

A run holds a lock that the kernel releases when its holder dies, however it dies. Where the kernel's locks do not
apply, on another machine that shares the folder, a heartbeat tells a living holder from a dead one.
"""

import contextlib
import fcntl
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

TRIES = 5  # within a second
HEARTBEAT_SECONDS = 5
SILENT_SECONDS = 30  # without a heartbeat, after which a holder on another machine is dead


class RunInProgressError(ValueError):
    """Another process holds the run's lock."""


class Holder(NamedTuple):
    """Whether the holder of a lock is alive, and its line in the lock's file, "" if it ended normally."""

    alive: bool
    text: str


@contextlib.contextmanager
def run_lock(folder: Path):
    """Hold `folder` for one run.

    Raises:
        RunInProgressError: another live process holds it; the message has its id and machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.lock"
    with open(path, "a+", errors="replace") as lock:
        locked = take(lock)
        lock.seek(0)
        text = lock.read().strip()
        reliable = locked is not None and not is_elsewhere(text)  # a file server may keep the lock of a dead machine
        if (reliable and not locked) or (not reliable and text and beats(path, text)):
            raise RunInProgressError(f"a run is in progress in {folder}: {text}; wait for it or end it")
        lock.truncate(0)
        lock.write(about_this_process())
        lock.flush()
        ended = threading.Event()
        threading.Thread(target=keep_beating, args=(path, ended), daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            lock.truncate(0)


def about_this_process() -> str:
    job = f", Slurm job {os.environ['SLURM_JOB_ID']}," if "SLURM_JOB_ID" in os.environ else ""
    return f"process {os.getpid()} on {socket.gethostname()}{job} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"


def take(lock) -> bool | None:
    """Lock a file: True; False if another process has it; None where the file system has no locks."""
    for _ in range(TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(1 / TRIES)  # `lock_holder` has it for an instant
        except OSError:
            return None
    return False


def keep_beating(path: Path, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)


def is_elsewhere(text: str) -> bool:
    words = text.split()  # of `about_this_process`, or of a damaged file
    return len(words) > 3 and words[3].rstrip(",") != socket.gethostname()


def touched(path: Path) -> float:
    """Read a file's time (seconds since the epoch); opening it makes a network file system look again."""
    with open(path) as file:
        return os.fstat(file.fileno()).st_mtime


def beats(path: Path, text: str) -> bool:
    """Wait for a heartbeat; clocks need not agree, since only a change counts."""
    print(f"waiting up to {SILENT_SECONDS} s for a heartbeat of {text}", file=sys.stderr)
    before, end = touched(path), time.monotonic() + SILENT_SECONDS
    while time.monotonic() < end:
        time.sleep(1)
        if touched(path) != before:
            return True
    return False


def lock_holder(folder: Path) -> Holder:
    """Find the holder of a run's lock or the last one, from any machine."""
    path = folder / "run.lock"
    with contextlib.suppress(FileNotFoundError), open(path, errors="replace") as lock:
        text = lock.read().strip()
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, and for an instant only: a start needs it
        except BlockingIOError:
            return Holder(True, text)
        except OSError:
            pass
        return Holder(is_elsewhere(text) and abs(time.time() - touched(path)) < SILENT_SECONDS, text)
    return Holder(False, "")
