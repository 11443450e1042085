"""What the processes of a run are doing, for the report of a stall: their states, and their stacks by py-spy.

`python -m recipe.stacks PID` prints them for the descendants of a process and, where RAY_ADDRESS is set, for what the
raylet of each node has started.
"""

import concurrent.futures
import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

from common.forked_python import FORK
from common.processes import REPOSITORY, descendants, python_path, role
from recipe.heartbeat import read_heartbeats

FOLDER = "stalls"
DUMP_SECONDS = 30  # for one process; py-spy takes 0.1 to 1 s
CLUSTER_SECONDS = 90  # for all nodes of a cluster
REPORT_SECONDS, POLL_SECONDS = 300, 0.2  # for the whole; Ray may hang itself
DUMPS_AT_ONCE = 8
WITHOUT_STACKS = ("raylet", "gcs_server")  # not Python
STOPPED = re.compile(r"^== ([\w.]+), (process \d+), stopped", re.MULTILINE)


def stack(process: psutil.Process) -> str:
    """Return the stacks of a process's threads, or why there are none: in many containers py-spy has no permission."""
    spy = shutil.which("py-spy", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]))
    if not spy:
        return "no stacks: py-spy is not installed"
    command = [spy, "dump", "--nonblocking", "--pid", str(process.pid)]  # a stopped process cannot be paused
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DUMP_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no stacks: py-spy took longer than {DUMP_SECONDS} s"
    return done.stdout.strip() or f"no stacks: {done.stderr.strip()}"


def describe(process: psutil.Process) -> str:
    """Describe a process: "== WorkerDict, process 12, stopped, 900 MB", and its stacks; "" for one that has ended."""
    with contextlib.suppress(psutil.Error):
        name, arguments = role(process), process.cmdline()
        if FORK in arguments or not arguments:  # the client of a fork stands in for it
            return ""
        memory = process.memory_info().rss / 1e6
        title = f"== {name}, process {process.pid}, {process.status()}, {memory:,.0f} MB"
        return title if name in WITHOUT_STACKS else f"{title}\n{stack(process)}"
    return ""


def describe_all(root: psutil.Process) -> str:
    """Describe all descendants of a process but this one."""
    processes = sorted(descendants(root) - {psutil.Process()}, key=lambda process: process.pid)
    with concurrent.futures.ThreadPoolExecutor(DUMPS_AT_ONCE) as pool:
        return "\n\n".join(filter(None, pool.map(describe, processes)))


def describe_cluster() -> str:
    """Describe what the raylet of each node of the Ray cluster at RAY_ADDRESS has started, the nodes all at once."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": python_path()}})
    nodes = [node for node in ray.nodes() if node["Alive"]]
    here = ray.remote(num_cpus=0)(describe_node)
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    found = {here.options(scheduling_strategy=place).remote(): node for place, node in zip(places, nodes, strict=True)}
    ready, _ = ray.wait(list(found), num_returns=len(found), timeout=CLUSTER_SECONDS)
    texts = {node["NodeManagerAddress"]: ref for ref, node in found.items()}
    parts = [f"# {name}\n\n{ray.get(ref) if ref in ready else 'no result'}" for name, ref in sorted(texts.items())]
    return "\n\n".join(parts)


def describe_node() -> str:
    """Describe what this process's parent, a raylet, has started."""
    return describe_all(psutil.Process().parent() or psutil.Process())


def culprit(text: str, reward_path: str | None) -> str:
    """Find in a description what hangs: stopped processes, or one that is in the reward's file; "" for nothing."""
    if stopped := [f"{name} ({process})" for name, process in STOPPED.findall(text)]:
        return f"stopped: {', '.join(stopped)}"
    if reward_path:
        frame = re.compile(rf"^ +(\w+) \((?:\S*/)?({re.escape(Path(reward_path).name)}:\d+)\)", re.MULTILINE)
        for process in re.split("^== ", text, flags=re.MULTILINE)[1:]:
            if inside := frame.search(process):
                name, number, _ = process.split(", ", 2)
                return f"{name} ({number}) is in {inside[1]} ({inside[2]})"
    return ""


def write_report(folder: Path, stall: str, reward_path: str | None) -> tuple[Path, str]:
    """Write what every process of a stalled run does to `stalls/<time>.txt`; return its path and what hangs.

    The looking is done by a process of its own, which may itself hang at what hangs the run: it then stays behind, and
    is ended with the run.
    """
    path = folder / FOLDER / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.txt"
    path.parent.mkdir(exist_ok=True)
    with open(path, "w") as file:
        print(
            f"{stall}\n", *(f"{name}: {state}" for name, state in read_heartbeats(folder).items()), sep="\n", file=file
        )
        print(flush=True, file=file)
        command = [sys.executable, "-m", "recipe.stacks", str(os.getpid())]
        looking = subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=file)
        until = time.monotonic() + REPORT_SECONDS
        while looking.poll() is None and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        if looking.poll() is None:
            print(f"\nended: this took longer than {REPORT_SECONDS} s", file=file)
    return path, culprit(path.read_text(errors="replace"), reward_path)


def main() -> None:
    print(describe_all(psutil.Process(int(sys.argv[1]))), flush=True)
    if os.environ.get("RAY_ADDRESS"):
        print(f"\n{describe_cluster()}")


if __name__ == "__main__":
    main()
