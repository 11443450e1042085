"""One run per folder.

A run holds a lock that the kernel releases when its holder dies, however it dies. Where the kernel's locks do not
apply, on another machine that shares the folder, a heartbeat tells a living holder from a dead one.
"""

import contextlib
import fcntl
import os
import random
import socket
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from common.patience import Patience
from common.progress import WaitingLine

HEARTBEAT_SECONDS = 5
# Without a heartbeat, after which a holder on another machine is dead. Two runs in one folder would damage it, so a
# holder may miss twenty of them: for a thread that does nothing else, even on a loaded machine, that is long.
SILENT_SECONDS = 120
LOOK_SECONDS = 0.2


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
    waiting = WaitingLine("another process looks at the run's lock", file=sys.stderr)
    try:
        while not try_lock(lock, fcntl.LOCK_EX):
            # Several may share it, as `lock_holder` does for an instant, which is long on a loaded machine.
            if not try_lock(lock, fcntl.LOCK_SH):
                return False
            fcntl.flock(lock, fcntl.LOCK_UN)
            waiting.tick()
            time.sleep(LOOK_SECONDS * random.random())  # of two starts one comes first
        return True
    except OSError:
        return None


def try_lock(lock, kind: int) -> bool:
    """Lock a file for this process alone (LOCK_EX) or shared (LOCK_SH), without waiting."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
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
    before = touched(path)
    patience = Patience(f"no heartbeat of {text}", lambda: touched(path), SILENT_SECONDS)
    while patience.lasts() and patience.seen == before:
        time.sleep(LOOK_SECONDS)
    return patience.seen != before


def lock_holder(folder: Path) -> Holder:
    """Find the holder of a run's lock or the last one, from any machine."""
    path = folder / "run.lock"
    with contextlib.suppress(FileNotFoundError), open(path, errors="replace") as lock:
        text = lock.read().strip()
        with contextlib.suppress(OSError):
            if not try_lock(lock, fcntl.LOCK_SH):  # shared, and for an instant only: a start needs it
                return Holder(True, text)
        return Holder(is_elsewhere(text) and abs(time.time() - touched(path)) < SILENT_SECONDS, text)
    return Holder(False, "")
