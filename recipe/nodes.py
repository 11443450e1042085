"""Look at every node of a run before anything heavy starts: python -m recipe.nodes CONFIG [key=value ...]

One task on each node, by srun in a Slurm job and by Ray where RAY_ADDRESS names a cluster, tells what the node has.
Prints a table. Exit status: 0 go, 2 something is missing; the one line says what and how to mend it.

example: srun --jobid 1234 python -m recipe.nodes justrl_deepseek
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
import time
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from common import machine
from common.command import run as run_command
from common.machine import FREE_SPACE, device
from common.processes import python_path
from recipe.compose import compose
from recipe.preflight import CPUS_PER_RANK, demand_here, files, ray_cpus_needed

ROOT = Path(__file__).resolve().parent.parent
CODE = ("run_justrl.sh", "scripts", "common", "recipe", "reward", "data_prep", "eval")
SECONDS_TO_ANSWER = 25


def describe(wanted: dict) -> dict:
    """Return what this node has and lacks.

    Args:
        wanted: root (of the code), token (a file in the run's folder), paths, port, demand and others, as `look` has.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        del os.environ["CUDA_VISIBLE_DEVICES"]  # Ray's, for a task without a GPU
    digest = hashlib.sha256()
    for top in CODE:
        path = Path(wanted["root"]) / top
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in (".py", ".yaml", ".json", ".sh") and file.is_file():
                digest.update(f"{file.relative_to(wanted['root'])}\n".encode() + file.read_bytes())
    packages = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    demand = machine.Demand(**wanted["demand"]) if wanted["demand"] else None
    found = machine.look()
    return {
        "node": socket.gethostname(),
        "code": digest.hexdigest()[:8],
        "packages": packages | {"Python": sys.version.split()[0]},
        "gpus": len(found.gpus),
        "free_gpus": len([gpu for gpu in found.gpus if demand and gpu.free >= demand.share * gpu.total]),
        "lacks": node_lacks(demand, wanted["others"]),
        "cpus": int(os.environ.get("SLURM_CPUS_ON_NODE") or len(os.sched_getaffinity(0))),
        "shared": Path(wanted["token"]).is_file(),
        "unseen": [path for path in wanted["paths"] if not Path(path).exists()],
        "free": machine.free_space(),
        "port_free": wanted["port"] is None or is_free(wanted["port"]),
    }


def node_lacks(demand: machine.Demand | None, others: bool) -> list[str]:
    """Return what this node lacks; `others`: also GPUs that something else uses, which no dead start of this run is."""
    if demand is None:
        return machine.space_lacks()
    return machine.lacks(demand) or (machine.in_use(demand) if others else [])


def is_free(port: int) -> bool:
    """Return whether a server could listen on a port of this machine."""
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind(("", port))
            return True
    return False


def by_srun(wanted: dict) -> list[dict]:
    """Return what each of a Slurm job's nodes has, from one srun a node: long lines of several would mix."""
    names = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    names = subprocess.run(names, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER, check=True).stdout.split()
    command = [sys.executable, "-m", "recipe.nodes", "--describe", json.dumps(wanted)]
    pipes = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    asked = [subprocess.Popen(["srun", "--nodes=1", "--ntasks=1", f"--nodelist={n}", *command], **pipes) for n in names]
    answers, end = [], time.monotonic() + SECONDS_TO_ANSWER
    try:
        for name, node in zip(names, asked, strict=True):
            out, said = node.communicate(timeout=max(0.1, end - time.monotonic()))
            if node.returncode:
                said = (said.strip().splitlines() or ["no answer"])[-1]
                raise ValueError(f"{name}: cannot run {sys.executable} in {ROOT}, is that on a shared disk? {said}")
            answers.append(json.loads(out))
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{name}: no answer in {SECONDS_TO_ANSWER} s; leave it out by sbatch --exclude") from error
    finally:
        for node in asked:
            node.kill()
    return answers


def by_ray(wanted: dict, config: DictConfig) -> list[dict]:
    """Return what each node of the Ray cluster has; waits a little for nodes that an autoscaler may add."""
    import ray
    from ray._private.state import available_resources_per_node
    from ray.autoscaler.sdk import request_resources
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    count, gpus, address = config.trainer.nnodes, config.trainer.n_gpus_per_node, os.environ["RAY_ADDRESS"]
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # Ray itself would try for a minute and a half
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": python_path()}})
        request_resources(bundles=[{"GPU": gpus, "CPU": gpus * CPUS_PER_RANK}] * count)
        end = time.monotonic() + float(os.environ.get("JUSTRL_WAIT_SECONDS", 10))
        while True:
            every, used = available_resources_per_node(), is_used()
            nodes = {node: free for node, free in every.items() if free.get("GPU", 0) >= gpus}
            if (len(nodes) >= count and not used) or time.monotonic() > end:
                break
            time.sleep(1)
        request_resources(bundles=[])  # it would hold them for ever; the run's own demand follows soon
        if used:
            raise ValueError(f"RAY_ADDRESS={address}: another run is on this cluster, and verl would mix their samples")
        asked = []
        for node in nodes:
            place = NodeAffinitySchedulingStrategy(node, soft=False)
            asked.append(ray.remote(describe).options(num_cpus=0, scheduling_strategy=place).remote(wanted))
        answers = ray.get(asked, timeout=SECONDS_TO_ANSWER)
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        raise ValueError(f"RAY_ADDRESS={address}: {str(error).strip().splitlines()[0]}; is it a cluster's?") from error
    for free, answer in zip(nodes.values(), answers, strict=True):
        answer["cpus"] = int(free.get("CPU", 0))
        answer["gpus"] = min(answer["gpus"] or 10**6, int(free["GPU"]))
    return answers


def is_used() -> bool:
    """Return whether a run of verl is on this Ray cluster: a second one attaches to its TransferQueue."""
    import ray

    with contextlib.suppress(ValueError):
        return bool(ray.get_actor("TransferQueueController", namespace="transfer_queue"))
    return False


def complaints(answers: list[dict], config: DictConfig) -> list[str]:
    """Return what is wrong with the nodes that answered, one line each with how to mend it."""
    ranks, count = config.trainer.n_gpus_per_node, config.trainer.nnodes
    if len(answers) < count:
        return [f"{len(answers)} nodes have {ranks} free GPUs, and the run wants {count}; wait, or set trainer.nnodes"]
    first, found = answers[0], []
    for node in answers:
        name = node["node"]
        if node["code"] != first["code"]:
            found.append(f"{name}: other code than {first['node']} has; put the repository on a shared file system")
        if differing := sorted(p for p, v in node["packages"].items() ^ first["packages"].items()):
            package = differing[0]
            versions = [answer["packages"].get(package, "no version") for answer in (node, first)]
            found.append(
                f"{name}: {package} {versions[0]}, and {first['node']} has {versions[1]}"
                f" ({len(set(differing))} packages differ); give all nodes the same environment"
            )
        found += [f"{name}: {line}" for line in node["lacks"]]
        if not node["shared"]:
            found.append(
                f"{name}: does not see the run's folder; set trainer.default_local_dir to a shared file system"
            )
        if node["unseen"]:
            found.append(f"{name}: does not see {node['unseen'][0]}; put it on a file system that all nodes share")
        if node["cpus"] < ranks * CPUS_PER_RANK:
            found.append(
                f"{name}: {node['cpus']} CPUs, and {ranks} ranks need {ranks * CPUS_PER_RANK}; "
                "give the job more (on Slurm --exclusive or --cpus-per-task)"
            )
    cpus = sum(node["cpus"] for node in answers)
    if cpus < ray_cpus_needed(config):
        found.append(f"{cpus} CPUs on all nodes, and the run needs {ray_cpus_needed(config)}; give the job more")
    if not first["port_free"]:
        found.append(f"{first['node']}: the port of Ray's head is taken; set JUSTRL_RAY_PORT to another")
    return found


def table(answers: list[dict], config: DictConfig) -> Table:
    """Return a row for each node."""
    shown = Table(
        "node", "GPUs free", "CPUs", "code", "packages", *(f"{path} GB free" for path in FREE_SPACE), box=None
    )
    for node in answers:
        gpus = f"{node['free_gpus']}/{node['gpus']}" if config.trainer.device == "cuda" else "none"
        packages = hashlib.sha256(json.dumps(sorted(node["packages"].items())).encode()).hexdigest()[:8]
        free = [f"{node['free'].get(path, 0):.0f}" for path in FREE_SPACE]
        shown.add_row(node["node"], gpus, str(node["cpus"]), node["code"], packages, *free)
    return shown


def look(config: DictConfig) -> list[dict]:
    """Return what each node of the run has."""
    folder = Path(config.trainer.default_local_dir).parent.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / f".seen-{secrets.token_hex(4)}"
    paths = [config.actor_rollout_ref.model.path, *files(config.data.train_files), *files(config.data.val_files)]
    port = None if os.environ.get("RAY_ADDRESS") else os.environ.get("JUSTRL_RAY_PORT")
    wanted = {
        "root": str(ROOT),
        "token": str(token),
        "paths": [str(Path(path).absolute()) for path in paths if path and Path(path).exists()],
        "port": int(port) if port else None,
        "demand": demand_here(config)._asdict() if config.trainer.device == "cuda" else None,
        # Alone on a machine a start first ends what a dead one left, which may hold the GPUs.
        "others": bool(os.environ.get("RAY_ADDRESS") or os.environ.get("SLURM_JOB_ID")),
    }
    token.touch()
    try:
        if os.environ.get("RAY_ADDRESS"):
            return by_ray(wanted, config)
        count = int(os.environ.get("SLURM_JOB_NUM_NODES", 1))
        if count > 1:
            return by_srun(wanted)
        alone = describe(wanted)
        return [alone | {"cpus": config.ray_kwargs.ray_init.num_cpus or alone["cpus"]}]
    finally:
        token.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a config of recipe/config")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
    args = parser.parse_args()
    os.chdir(ROOT)
    config = compose(args.config, args.overrides, device())
    answers = look(config)
    Console(width=None if sys.stdout.isatty() else 200).print(table(answers, config))
    if found := complaints(answers, config):
        raise ValueError(found[0] + (f" (and {len(found) - 1} more like this)" if found[1:] else ""))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--describe"]:  # what by_srun runs on each node
        print(json.dumps(describe(json.loads(sys.argv[2]))))
        sys.exit()
    run_command(main)
