"""Check every node of a run before anything heavy starts: python -m recipe.nodes CONFIG [key=value ...]

A task on each node reports what the node has: by srun in a Slurm job, by Ray where RAY_ADDRESS is set, else here.
Prints a table. Exit status: 0 ready; 2 something is missing: one line says what and how to fix it.

example, in a Slurm allocation: python -m recipe.nodes justrl_deepseek
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from common import machine
from common.command import run as run_command
from common.machine import FREE_SPACE, device
from common.patience import Patience
from common.processes import REPOSITORY, python_path
from recipe.compose import compose
from recipe.distillation import models, nodes_and_gpus
from recipe.preflight import CPUS_PER_RANK, as_list, demand_here, ray_cpus_needed, run_folder

CODE = ("run_justrl.sh", "scripts", "common", "recipe", "reward", "data_prep", "eval")
SUFFIXES = (".py", ".yaml", ".json", ".sh")
LOOK_SECONDS = 0.5
CONNECT_SECONDS = 30  # the kernel connects, however loaded the machine: in this time the network lost five tries
CLUSTER_SECONDS = 30  # without a change of a cluster's free resources


def describe(wanted: dict) -> dict:
    """Report what this node has and lacks.

    Args:
        wanted: root (of the code), token (a file in the run's folder), paths, port, demand and others, as from
            `requirements`.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        del os.environ["CUDA_VISIBLE_DEVICES"]  # Ray's, for a task without a GPU
    packages = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    demand = machine.Demand(**wanted["demand"]) if wanted["demand"] else None
    gpus = machine.look().gpus
    return {
        "node": socket.gethostname(),
        "code": code_digest(Path(wanted["root"])),
        "packages": packages | {"Python": sys.version.split()[0]},
        "gpus": len(gpus),
        "free_gpus": len([gpu for gpu in gpus if demand and gpu.free >= demand.share * gpu.total]),
        "lacks": node_lacks(demand, wanted["others"]),
        "cpus": int(os.environ.get("SLURM_CPUS_ON_NODE") or len(os.sched_getaffinity(0))),
        "shared": Path(wanted["token"]).is_file(),
        "unseen": [path for path in wanted["paths"] if not Path(path).exists()],
        "free": machine.free_space(),
        "port_free": wanted["port"] is None or is_free(wanted["port"]),
    }


def code_digest(root: Path) -> str:
    digest = hashlib.sha256()
    for top in CODE:
        path = root / top
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in SUFFIXES and file.is_file():
                digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:8]


def node_lacks(demand: machine.Demand | None, others: bool) -> list[str]:
    """List what this node lacks; `others`: also GPUs that something else uses, which no stale process of ours is."""
    if demand is None:
        return machine.space_lacks()
    return machine.lacks(demand) or (machine.in_use(demand) if others else [])


def is_free(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind(("", port))
            return True
    return False


def ask_by_srun(wanted: dict) -> list[dict]:
    """Collect the reports of a Slurm job's nodes, by one srun per node: the output of several would mix."""
    names = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    names = subprocess.run(names, capture_output=True, text=True, check=True).stdout.split()
    command = [sys.executable, "-m", "recipe.nodes", "--describe", json.dumps(wanted)]
    with contextlib.ExitStack() as stack:
        outputs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tasks = {}
        for name in names:
            srun = ["srun", "--nodes=1", "--ntasks=1", f"--nodelist={name}", *command]
            with open(outputs / f"{name}.json", "w") as out, open(outputs / f"{name}.errors", "w") as errors:
                tasks[name] = subprocess.Popen(srun, cwd=REPOSITORY, stdout=out, stderr=errors)
            stack.callback(tasks[name].kill)
        wait_for_answers(lambda: [name for name, task in tasks.items() if task.poll() is None])
        for name, task in tasks.items():
            if task.returncode:
                reason = ((outputs / f"{name}.errors").read_text().strip().splitlines() or ["no answer"])[-1]
                here = f"cannot run {sys.executable} in {REPOSITORY}, is it on a shared disk?"
                raise ValueError(f"{name}: {here} {reason}")
        return [json.loads((outputs / f"{name}.json").read_text()) for name in names]


def wait_for_answers(missing: Callable[[], list[str]]) -> None:
    """Wait until no node's answer is missing; ValueError when for long no more of them have answered."""
    patience = Patience("waiting for the nodes' answers", missing)
    while patience.lasts() and patience.seen:
        time.sleep(LOOK_SECONDS)
    if silent := patience.seen:
        raise ValueError(f"{silent[0]}: no answer in {patience.seconds:.0f} s; leave it out (on Slurm by --exclude)")


def ask_by_ray(wanted: dict, config: DictConfig) -> list[dict]:
    """Collect the reports of a Ray cluster's nodes that have enough free GPUs."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    address = os.environ["RAY_ADDRESS"]
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # Ray itself would try for a minute and a half
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        ray.init(log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": python_path()}})
        nodes = wait_for_nodes(config)
        tasks = []
        for node in nodes:
            place = NodeAffinitySchedulingStrategy(node, soft=False)
            tasks.append(ray.remote(describe).options(num_cpus=0, scheduling_strategy=place).remote(wanted))
        names = dict(zip(tasks, nodes, strict=True))
        wait_for_answers(lambda: [names[task] for task in ray.wait(tasks, num_returns=len(tasks), timeout=0)[1]])
        reports = ray.get(tasks)
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        raise ValueError(f"RAY_ADDRESS={address}: {str(error).strip().splitlines()[0]}; is it a cluster's?") from error
    for free, report in zip(nodes.values(), reports, strict=True):
        report["cpus"] = int(free["CPU"])
        report["gpus"] = min(report["gpus"] or 10**6, int(free["GPU"]))
    return reports


def wait_for_nodes(config: DictConfig) -> dict[str, dict]:
    """Wait until a Ray cluster has the nodes that a run needs, which an autoscaler may add, and no other run.

    Returns:
        Node id to its free resources; fewer nodes than needed when these have not changed for JUSTRL_WAIT_SECONDS.

    Raises:
        ValueError: another run is on the cluster.
    """
    from ray._private.state import available_resources_per_node
    from ray.autoscaler.sdk import request_resources

    def free_nodes() -> dict[str, dict]:
        return {node: free for node, free in available_resources_per_node().items() if free.get("GPU", 0) >= gpus}

    count, gpus = nodes_and_gpus(config)
    request_resources(bundles=[{"GPU": gpus, "CPU": gpus * CPUS_PER_RANK}] * count)
    seconds = float(os.environ.get("JUSTRL_WAIT_SECONDS", CLUSTER_SECONDS))
    what = "waiting for the cluster's nodes and the end of other runs"
    # Not how much is free: other jobs may change that for ever.
    patience = Patience(what, lambda: (has_verl_run(), set(free_nodes())), seconds)
    while (patience.seen[0] or len(patience.seen[1]) < count) and patience.lasts():
        time.sleep(LOOK_SECONDS)
    used, nodes = patience.seen[0], free_nodes()
    request_resources(bundles=[])  # the request would hold them for ever; the run's own follows soon
    if used:
        raise ValueError(
            f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}: another run is on this cluster, and verl would mix their samples"
        )
    return nodes


def has_verl_run() -> bool:
    """Look for a run of verl on this Ray cluster: a second one would attach to its TransferQueue."""
    import ray

    with contextlib.suppress(ValueError):
        return bool(ray.get_actor("TransferQueueController", namespace="transfer_queue"))
    return False


def problems(reports: list[dict], config: DictConfig) -> list[str]:
    """List the problems of the nodes that reported, each with its fix."""
    count, ranks = nodes_and_gpus(config)
    if len(reports) < count:
        return [f"{len(reports)} nodes have {ranks} free GPUs, and the run needs {count}; wait, or set trainer.nnodes"]
    first = reports[0]
    found = [f"{node['node']}: {line}" for node in reports for line in node_problems(node, first, ranks)]
    cpus = sum(node["cpus"] for node in reports)
    if cpus < ray_cpus_needed(config):
        found.append(f"{cpus} CPUs on all nodes, and the run needs {ray_cpus_needed(config)}; give the job more")
    if not first["port_free"]:
        found.append(f"{first['node']}: the port of Ray's head is taken; set JUSTRL_RAY_PORT to another")
    return found


def node_problems(node: dict, first: dict, ranks: int) -> list[str]:
    """List the problems of one node, which must also match the first."""
    found = []
    if node["code"] != first["code"]:
        found.append(f"has other code than {first['node']}; put the repository on a shared file system")
    differing = {package for package, _ in node["packages"].items() ^ first["packages"].items()}
    if differing:
        package = min(differing)
        here, there = (report["packages"].get(package, "no version") for report in (node, first))
        more = f" ({len(differing)} packages differ)"
        found.append(f"{package} {here}, and {first['node']} has {there}{more}; give all nodes the same environment")
    found += node["lacks"]
    if not node["shared"]:
        found.append("does not see the run's folder; set trainer.default_local_dir to a shared file system")
    if node["unseen"]:
        found.append(f"does not see {node['unseen'][0]}; put it on a file system that all nodes share")
    if node["cpus"] < ranks * CPUS_PER_RANK:
        found.append(
            f"{node['cpus']} CPUs, and {ranks} ranks need {ranks * CPUS_PER_RANK}; "
            "give the job more (on Slurm --exclusive or --cpus-per-task)"
        )
    return found


def table(reports: list[dict], config: DictConfig) -> Table:
    spaces = [f"{path} GB free" for path in FREE_SPACE]
    shown = Table("node", "GPUs free", "CPUs", "code", "packages", *spaces, box=None)
    for node in reports:
        gpus = f"{node['free_gpus']}/{node['gpus']}" if config.trainer.device == "cuda" else "none"
        packages = hashlib.sha256(json.dumps(sorted(node["packages"].items())).encode()).hexdigest()[:8]
        free = [f"{node['free'].get(path, 0):.0f}" for path in FREE_SPACE]
        shown.add_row(node["node"], gpus, str(node["cpus"]), node["code"], packages, *free)
    return shown


def requirements(config: DictConfig, token: Path) -> dict:
    """Collect what each node has to look at, the argument of `describe`."""
    paths = [*models(config), *as_list(config.data.train_files), *as_list(config.data.val_files)]
    port = None if os.environ.get("RAY_ADDRESS") else os.environ.get("JUSTRL_RAY_PORT")
    return {
        "root": str(REPOSITORY),
        "token": str(token),
        "paths": [str(Path(path).absolute()) for path in paths if path and Path(path).exists()],
        "port": int(port) if port else None,
        "demand": demand_here(config)._asdict() if config.trainer.device == "cuda" else None,
        # Alone on a machine a start first ends its own stale processes, which may hold the GPUs.
        "others": bool(os.environ.get("RAY_ADDRESS") or os.environ.get("SLURM_JOB_ID")),
    }


def look(config: DictConfig) -> list[dict]:
    """Collect the reports of all nodes of a run."""
    folder = run_folder(config).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / f".seen-{secrets.token_hex(4)}"
    wanted = requirements(config, token)
    token.touch()
    try:
        if os.environ.get("RAY_ADDRESS"):
            return ask_by_ray(wanted, config)
        if int(os.environ.get("SLURM_JOB_NUM_NODES", 1)) > 1:
            return ask_by_srun(wanted)
        report = describe(wanted)
        if not os.environ.get("SLURM_JOB_ID"):  # alone, Ray has the logical CPUs that recipe.train declares
            report["cpus"] = config.ray_kwargs.ray_init.num_cpus or ray_cpus_needed(config)
        return [report]
    finally:
        token.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a config of recipe/config")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
    args = parser.parse_args()
    os.chdir(REPOSITORY)
    config = compose(args.config, args.overrides, device())
    reports = look(config)
    Console(width=None if sys.stdout.isatty() else 200).print(table(reports, config))
    if found := problems(reports, config):
        raise ValueError(found[0] + (f" (and {len(found) - 1} more like this)" if found[1:] else ""))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--describe"]:  # what ask_by_srun runs on each node
        print(json.dumps(describe(json.loads(sys.argv[2]))))
        sys.exit()
    run_command(main)
