"""The host memory that this machine, container or Slurm job uses and has, and that of processes by role; in bytes."""

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from common.processes import role

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
SHARED_MEMORY = Path("/dev/shm")
# Of a memory cgroup of version 2 and of version 1: limit, use, and how memory.stat names its file cache.
CGROUP_FILES = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)


class Memory(NamedTuple):
    used: int
    total: int


def node_memory(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> Memory:
    """Measure the machine, or the cgroup around this process that has less left: there processes are ended.

    As Ray's monitor does (src/ray/common/monitors/memory_monitor_utils.cc), file cache and swap do not count, and
    shared memory does. Ray looks at the outermost cgroup alone; the kernel also at those that Slurm puts a job in.
    """
    machine = psutil.virtual_memory()
    found = [Memory(machine.total - machine.available, machine.total)]
    found += [memory for folder in memory_cgroups(root, own) if (memory := cgroup_memory(folder))]
    return min(found, key=lambda memory: memory.total - memory.used)


def memory_cgroups(root: Path, own: Path) -> Iterator[Path]:
    """Yield the folders of the memory cgroups around this process (cgroups(7)); in a container some may not exist."""
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        inner = top / path.lstrip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(top))


def cgroup_memory(folder: Path) -> Memory | None:
    """Read a cgroup's memory; None for one without a limit."""
    for limit, use, caches in CGROUP_FILES:
        with contextlib.suppress(OSError, ValueError, KeyError):  # the other version's files, or the limit "max"
            total = int((folder / limit).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cached = sum(int(stat[name]) for name in caches)
            return Memory(max(0, int((folder / use).read_text()) - cached), total)
    return None


def shared_memory() -> int:
    """Measure what lies in /dev/shm, as Ray's objects do."""
    return shutil.disk_usage(SHARED_MEMORY).used if SHARED_MEMORY.is_dir() else 0


def by_role(processes: Iterable[psutil.Process]) -> dict[str, int]:
    """Sum the memory of processes by role, as PSS: pages that n processes share count one n-th in each (proc(5)).

    RSS counts Ray's objects, and what forks have in common, once per process: 3 times too much in the demo.
    """
    sizes: dict[str, int] = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if size := process.memory_full_info().pss:  # else it is ending
                name = role(process)
                sizes[name] = sizes.get(name, 0) + size
    return sizes
