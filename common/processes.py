"""One run per folder, and nothing left behind.

A run holds a lock that the kernel releases when its holder dies, however it dies. Where the kernel's locks do not
reach, on another machine that shares the folder, a heartbeat tells a living holder from a dead one. While it lives it
records the process ids of everything it started; the next start ends what a dead run left, by those
ids and their start times, never by name.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from common.files import write_text_whole

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>
TRIES = 5  # to take a lock, within a second
SECONDS_TO_END = 10  # between asking and killing; Ray's own shutdown takes 2 to 5
HEARTBEAT_SECONDS = 5
# A socket's path may have 107 characters (unix(7)); Ray's take 66 of them, vLLM's in a run's folder 53.
ROOT_CHARACTERS = 40
SILENT_SECONDS = 30  # without a heartbeat, after which a holder on another machine is dead
# Ray fails where its node takes more than 30 s to start or a worker more than 60, as on a machine with other work.
RAY_PATIENCE = {
    "RAY_raylet_start_wait_time_s": "600",
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_worker_register_timeout_seconds": "1800",
}
LIBC = ctypes.CDLL(None)  # loaded here: between fork and exec only calls are safe
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class RunInProgressError(ValueError):
    """Another process holds the run's lock."""


class Holder(NamedTuple):
    """Who held a run's lock last, as it wrote itself ("" if it ended in good order), and whether it lives."""

    alive: bool
    text: str


@contextlib.contextmanager
def run_lock(folder: Path):
    """Hold `folder` for one run.

    Raises:
        RunInProgressError: another live process holds it; the message says which and where.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.lock"
    with open(path, "a+") as lock:
        locked = take(lock)
        lock.seek(0)
        text = lock.read().strip()
        trusted = locked is not None and not is_elsewhere(text)  # a file server may keep the lock of a dead machine
        if (trusted and not locked) or (not trusted and text and beats(path, text)):
            raise RunInProgressError(f"a run is in progress in {folder}: {text}")
        lock.truncate(0)
        job = f", Slurm job {os.environ['SLURM_JOB_ID']}," if "SLURM_JOB_ID" in os.environ else ""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        lock.write(f"process {os.getpid()} on {socket.gethostname()}{job} since {now}\n")
        lock.flush()
        ended = threading.Event()
        threading.Thread(target=keep_beating, args=(path, ended), daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            lock.truncate(0)


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
    """Touch `path` now and then until `ended`."""
    while not ended.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)


def is_elsewhere(text: str) -> bool:
    """Return whether a lock's text names another machine than this."""
    return bool(text) and text.split()[3].rstrip(",") != socket.gethostname()


def touched(path: Path) -> float:
    """Return when `path` was touched (seconds since the epoch); opening makes a network file system look again."""
    with open(path) as file:
        return os.fstat(file.fileno()).st_mtime


def beats(path: Path, text: str) -> bool:
    """Return whether somebody still touches `path`; clocks do not matter, for it only waits for a change."""
    print(f"waiting up to {SILENT_SECONDS} s for a sign of life of {text}", file=sys.stderr)
    before, end = touched(path), time.monotonic() + SILENT_SECONDS
    while time.monotonic() < end:
        time.sleep(1)
        if touched(path) != before:
            return True
    return False


def temporary_root() -> Path:
    """Return the machine's folder for temporary files; /tmp where the paths of sockets below it would be too long."""
    root = Path(tempfile.gettempdir())
    return root if len(str(root)) <= ROOT_CHARACTERS else Path("/tmp")


def scratch_folder(folder: Path) -> Path:
    """Return the name of a run's folder for temporary files, the same at each start."""
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()
    return temporary_root() / f"justrl-{digest[:8]}"


@contextlib.contextmanager
def scratch(folder: Path):
    """Yield a folder for a run's sockets and other temporary files; what a killed run left in it goes at the start."""
    path = scratch_folder(folder)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def lock_holder(folder: Path) -> Holder:
    """Return who holds a run's lock or held it last, seen from any machine."""
    path = folder / "run.lock"
    with contextlib.suppress(FileNotFoundError), open(path) as lock:
        text = lock.read().strip()
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, and for an instant only: a start needs it
        except BlockingIOError:
            return Holder(True, text)
        except OSError:
            pass
        return Holder(is_elsewhere(text) and abs(time.time() - touched(path)) < SILENT_SECONDS, text)
    return Holder(False, "")


def python_path() -> str:
    """Return the PYTHONPATH by which a process on another node finds this repository, and what the caller's names."""
    root = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends, so that none escapes the record."""
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start_ticks(pid: int) -> int:
    """Return when a process started, in clock ticks since boot: unlike a time of day, the same after a clock jump."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])  # see proc(5), starttime
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(pid) from error


class ProcessRecord:
    """The ids of this run's processes, kept in `processes.json` of its folder."""

    def __init__(self, folder: Path):
        self.path = folder / "processes.json"
        self.recorded: dict[int, int] = {}

    def update(self) -> None:
        """Write the living descendants of this process, id to `start_ticks`, and the boot that these belong to."""
        alive = {}
        for process in living_descendants():
            with contextlib.suppress(psutil.NoSuchProcess):
                alive[process.pid] = start_ticks(process.pid)
        if alive.keys() != self.recorded.keys():
            write_text_whole(self.path, json.dumps({"boot": BOOT_ID.read_text(), "processes": alive}))
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
        here = record.get("boot") == BOOT_ID.read_text()  # the ids of another machine mean nothing on this one
        for pid, started in record["processes"].items() if here else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(pid))
                if start_ticks(process.pid) == started and process.pid != os.getpid():
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
