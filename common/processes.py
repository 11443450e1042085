"""The processes of a run: none outlives it, and the next start ends stale ones.

A run records the ids and start times of its processes. The next start ends those that are still alive, and never goes
by a process's name.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil

from common.files import write_text
from common.forked_python import FORK
from common.json_lines import Shape, read_json
from common.locks import run_lock

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>
RECORD_SECONDS = 2.0  # between looks at which processes were started
# Without one that ends, between asking and killing; Ray's own shutdown takes 2 to 5. A kill loses nothing: files are
# written atomically, and the next start continues.
SECONDS_TO_END = 10
SECONDS_TO_DIE = 60  # of a killed process, until the kernel has taken its memory back
# A socket's path may have 107 characters (unix(7)); Ray's take 66 of them, vLLM's in a run's folder 53.
ROOT_CHARACTERS = 40
# Seconds that Ray and what runs on it wait for their own processes. The defaults are too few on a slow or loaded
# machine: 30 for Ray's head, node and cluster, 60 for a worker, 3 for a handshake with TransferQueue's controller, 30
# for its answer, without which a response is lost, 600 until vLLM has loaded its model.
RAY_PATIENCE = {
    "RAY_gcs_server_port_wait_time_s": "600",
    "RAY_raylet_start_wait_time_s": "5",  # between looks whether it lives (common/ray_start.py)
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_worker_register_timeout_seconds": "1800",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "600",
    "RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT": "1800",  # srun ends it earlier, with the first node that is lost
    "TQ_STORAGE_HANDSHAKE_MAX_RETRIES": "600",  # one a second
    "TQ_STORAGE_HANDSHAKE_TIMEOUT": "600",
    "TQ_DATA_UPDATE_RESPONSE_TIMEOUT": "300",
    "VLLM_ENGINE_READY_TIMEOUT_S": "7200",
}
RECORD = Shape(
    {
        "required": ["boot", "processes"],
        "properties": {"processes": {"type": "object", "propertyNames": {"pattern": "^[0-9]{1,9}$"}}},
    }
)
LIBC = ctypes.CDLL(None)  # loaded here: between fork and exec only calls are safe
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
REPOSITORY = Path(__file__).resolve().parent.parent


def temporary_root() -> Path:
    """The folder for temporary files; /tmp, for child processes too, where sockets' paths would be too long.

    Raises:
        ValueError: RAY_TMPDIR, which Ray prefers, is too long.
    """
    ray = os.environ.get("RAY_TMPDIR", "")
    if len(os.fsencode(ray)) > ROOT_CHARACTERS:
        raise ValueError(f"RAY_TMPDIR={ray}: too long for sockets, at most {ROOT_CHARACTERS} bytes; unset it")
    if len(os.fsencode(tempfile.gettempdir())) > ROOT_CHARACTERS:
        os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"
    return Path(tempfile.gettempdir())


def scratch_folder(folder: Path) -> Path:
    """A run's folder for temporary files, the same at each start."""
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()
    return temporary_root() / f"justrl-{digest[:8]}"


@contextlib.contextmanager
def scratch(folder: Path):
    """Make an empty folder for a run's sockets and other temporary files."""
    path = scratch_folder(folder)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def python_path() -> str:
    """The PYTHONPATH by which a process on another node finds this repository, before the caller's own."""
    return os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])


def become_subreaper() -> None:
    """Make this process the parent of every descendant whose own parent ends, so that none escapes the record."""
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot: a time of day would change with the clock."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])  # proc(5), starttime
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(pid) from error


def still_alive(processes: dict[int, int]) -> list[psutil.Process]:
    """Return those of the processes, id to `start_ticks`, that have not ended."""
    found = []
    for pid, started in processes.items():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if start_ticks(pid) == started and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


class ProcessRecord:
    """The ids of a run's processes, kept in `processes.json` of its folder."""

    def __init__(self, folder: Path):
        self.path = folder / "processes.json"
        self.recorded: dict[int, int] = {}

    def update(self) -> None:
        """Write the living descendants of this process, id to `start_ticks`, and the boot that these belong to.

        Those recorded before stay recorded: a child of a fork server's fork is reparented away from this process.
        """
        alive = {process.pid: self.recorded[process.pid] for process in still_alive(self.recorded)}
        for process in living_descendants():
            with contextlib.suppress(psutil.NoSuchProcess):
                alive[process.pid] = start_ticks(process.pid)
        if alive != self.recorded:
            write_text(self.path, json.dumps({"boot": BOOT_ID.read_text(), "processes": alive}))
            self.recorded = alive

    def end_descendants(self) -> None:
        """End all living descendants of this process, also those that have another parent by now."""
        end(list({*still_alive(self.recorded), *living_descendants()}))
        self.path.unlink(missing_ok=True)

    def end_stale(self) -> int:
        """End the stale processes of an earlier start in this folder; return how many there were."""
        try:
            record = read_json(self.path, shape=RECORD)
        except ValueError:
            return 0
        stale: set[psutil.Process] = set()
        if record.get("boot") == BOOT_ID.read_text():  # the ids of another machine mean nothing on this one
            for process in still_alive({int(pid): started for pid, started in record["processes"].items()}):
                if process.pid != os.getpid():
                    stale |= {process, *descendants(process)}
        end(list(stale))
        self.path.unlink(missing_ok=True)
        return len(stale)


def role(process: psutil.Process) -> str:
    """Name what a process of a run does: TaskRunner, WorkerDict, EngineCore, raylet, recipe.driver; "?" if it ended.

    Ray and vLLM set the titles of their processes: "ray::WorkerDict.actor_rollout_update_actor", "VLLM::EngineCore".
    """
    try:
        words = " ".join(process.cmdline()).split() or [process.name()]
    except psutil.NoSuchProcess:
        return "?"
    if titled := re.match(r"\w+::(\w+)", words[0]):
        return titled[1]
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1]
    return Path(words[0]).name


def living_descendants() -> list[psutil.Process]:
    living = []
    for process in descendants(psutil.Process()):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
    return living


def descendants(process: psutil.Process) -> set[psutil.Process]:
    """Find the descendants of a process, forks that they have from a fork server and those forks' own included."""
    found = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        found |= set(process.children(recursive=True))
    for client in list(found):
        for fork in forks_of(client):
            found |= {fork, *descendants(fork)}
    return found


def forks_of(client: psutil.Process) -> list[psutil.Process]:
    """Find the fork of a client of the fork server, by the pidfd that the client holds (proc(5), fdinfo)."""
    with contextlib.suppress(psutil.NoSuchProcess, OSError):
        if FORK in client.cmdline():
            texts = [info.read_text() for info in Path(f"/proc/{client.pid}/fdinfo").iterdir()]
            ids = re.findall(r"^Pid:\t(\d+)$", "\n".join(texts), re.MULTILINE)
            return [psutil.Process(int(pid)) for pid in ids]
    return []


def end(processes: list[psutil.Process]) -> None:
    """Ask processes to end, wait, kill those that did not, and reap what is ours."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
            process.resume()  # else one that is stopped would not hear of it
    alive = processes
    while alive:
        ended, alive = psutil.wait_procs(alive, timeout=SECONDS_TO_END)
        if not ended:
            break
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=SECONDS_TO_DIE)


@contextlib.contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Hold a folder: end the stale processes of an earlier start, and at the end those of this one."""

    def keep_record() -> None:
        while not ended.wait(RECORD_SECONDS):
            record.update()

    with run_lock(folder):
        record, ended = ProcessRecord(folder), threading.Event()
        if stale := record.end_stale():
            print(f"  ended {stale} stale processes of an earlier start", flush=True)
        become_subreaper()
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        keeper = threading.Thread(target=keep_record, daemon=True)
        keeper.start()
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            ended.set()
            keeper.join()
            record.end_descendants()
