"""One run per folder, and nothing left behind.

A run holds a lock that the kernel releases when its holder dies, however it dies. While it lives it
records the process ids of everything it started; the next start ends what a dead run left, by those
ids and their start times, never by name.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import time
from pathlib import Path

import psutil

from data_prep.files import write_text_whole

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>
SECONDS_TO_END = 10  # between asking and killing; Ray's own shutdown takes 2 to 5


class RunInProgressError(ValueError):
    """Another process holds the run's lock."""


@contextlib.contextmanager
def run_lock(folder: Path):
    """Hold `folder` for one run.

    Raises:
        RunInProgressError: another live process holds it; the message says which and where.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "run.lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise RunInProgressError(f"a run is in progress in {folder}: {lock.read().strip()}") from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        lock.flush()
        yield


def lock_holder(folder: Path) -> str | None:
    """Return who holds a run's lock, as `run_lock` wrote it; None if nobody does that this machine can see."""
    with contextlib.suppress(FileNotFoundError), open(folder / "run.lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, and for an instant only: a start needs it
        except BlockingIOError:
            return lock.read().strip()
    return None


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends, so that none escapes the record."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class ProcessRecord:
    """The ids of this run's processes, kept in `processes.json` of its folder."""

    def __init__(self, folder: Path):
        self.path = folder / "processes.json"
        self.recorded: dict[int, float] = {}

    def update(self) -> None:
        """Write the living descendants of this process: id to start time (seconds since the epoch)."""
        alive = {p.pid: p.create_time() for p in living_descendants()}
        if alive.keys() != self.recorded.keys():
            write_text_whole(self.path, json.dumps({"processes": alive}))
            self.recorded = alive

    def end_descendants(self) -> None:
        """End every descendant of this process: ask, wait, kill."""
        end(living_descendants())
        self.path.unlink(missing_ok=True)

    def end_leftovers(self) -> int:
        """End what a dead run of this folder left; return how many processes that were."""
        try:
            record = json.loads(self.path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return 0
        leftovers = set()
        for pid, started in record["processes"].items():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(pid))
                if process.create_time() == started and process.pid != os.getpid():
                    leftovers |= {process, *process.children(recursive=True)}
        end(list(leftovers))
        self.path.unlink(missing_ok=True)
        return len(leftovers)


def living_descendants() -> list[psutil.Process]:
    """Return this process's descendants, zombies left out."""
    living = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
    return living


def end(processes: list[psutil.Process]) -> None:
    """Ask processes to end, wait, kill those that did not, and reap what is ours."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=SECONDS_TO_END)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=SECONDS_TO_END)
