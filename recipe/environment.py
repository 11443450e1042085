"""What depends on one start of a run: a part of its config, and the environment of its processes."""

import getpass
import os
import secrets
import sys
from pathlib import Path

from omegaconf import DictConfig, open_dict

from common.forked_python import PYTHON_VARIABLE
from common.processes import RAY_PATIENCE, python_path, temporary_root
from recipe import preflight
from recipe.cpu.environment import ENVIRONMENT as CPU_ENVIRONMENT
from recipe.distillation import nodes_and_gpus
from recipe.monitor.loggers import wandb_environment
from recipe.preflight import run_folder

CPU_WORKERS = 8  # that Ray starts at once on a machine without GPUs
# 0: Ray keeps no record of each task for its dashboard, 0.3 MB per step of the smallest run.
NO_TASK_EVENTS = "RAY_task_events_report_interval_ms"
MODULES = "VERL_USE_EXTERNAL_MODULES"  # verl imports these in every process


def attempt_path(config: DictConfig) -> Path:
    """Where verl's file logger writes. It empties the file at each start, hence not `metrics.jsonl`."""
    return run_folder(config) / "attempt.jsonl"


def prepare_config(config: DictConfig, step: int, python: str | None = None) -> None:
    """Set, in place, where Ray runs and its Python, and skip a second validation of the same step."""
    with open_dict(config):
        config.trainer.max_actor_ckpt_to_keep = None  # see recipe.checkpoints.prune
        if step:
            config.trainer.val_before_train = False  # it would log the checkpoint's step again
        ray = config.ray_kwargs.ray_init
        if not os.environ.get("RAY_ADDRESS"):
            ray.address = "local"  # else Ray joins any cluster on the machine
            ray.include_dashboard = False
            # Logical CPUs: with fewer than verl's actors hold, the start waits for ever. Ray starts a process for each.
            there = CPU_WORKERS if config.trainer.device == "cpu" else os.cpu_count() or 1
            ray.num_cpus = ray.num_cpus or max(there, preflight.ray_cpus_needed(config))
            if config.trainer.device == "cpu":  # declared, one per rank and one for each of a teacher's engines
                nodes, each = nodes_and_gpus(config)
                ray.num_gpus = ray.num_gpus or nodes * each
        else:
            # The cluster's workers were not started by this process and do not inherit its environment.
            waits = {name: os.environ.get(name, seconds) for name, seconds in RAY_PATIENCE.items()}
            ray.runtime_env.env_vars = waits | fixed_environment(config)
            ray.runtime_env.worker_process_setup_hook = "recipe.driver.enter_repository"
            for declared in ("num_cpus", "num_gpus"):  # Ray refuses them beside an address
                ray.pop(declared, None)
        if python:
            ray.runtime_env.py_executable = python


def fixed_environment(config: DictConfig) -> dict[str, str]:
    """Set the variables that every process of the run needs, on any node."""
    variables = {
        "PYTHONPATH": python_path(),
        "VERL_FILE_LOGGER_PATH": str(attempt_path(config).resolve()),
        "TENSORBOARD_DIR": str((run_folder(config) / "tensorboard").resolve()),
        "VLLM_NO_USAGE_STATS": "1",
        "JUSTRL_NCCL_TIMEOUT": str(config.actor_rollout_ref.nccl_timeout),
        **wandb_environment(config, run_folder(config)),
        **(CPU_ENVIRONMENT if config.trainer.device == "cpu" else gpu_environment(config)),
    }
    # The user's modules first; the CPU's last, since its process group takes the timeout from ours.
    modules = (os.environ.get(MODULES), "recipe.verl_plugins.process_group", variables.get(MODULES))
    return variables | {MODULES: ",".join(filter(None, modules))}


def gpu_environment(config: DictConfig) -> dict[str, str]:
    """Give an optimizer that steps on the CPU its threads; Ray's default is one."""
    if not config.actor_rollout_ref.actor.fsdp_config.offload_policy:
        return {}
    threads = max(1, len(os.sched_getaffinity(0)) // config.trainer.n_gpus_per_node)
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}


def environment(config: DictConfig, temporary: Path) -> dict[str, str]:
    """Set the environment of the driver, which every process of a local Ray inherits."""
    fixed = RAY_PATIENCE | os.environ | fixed_environment(config)
    fixed |= {PYTHON_VARIABLE: sys.executable, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
    if os.environ.get("RAY_ADDRESS"):
        return fixed
    kept = str(temporary_root())  # for logs and compiled kernels
    compiled = f"{kept}/torchinductor_{getpass.getuser()}"
    return fixed | {
        NO_TASK_EVENTS: os.environ.get(NO_TASK_EVENTS, "0"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "TMPDIR": str(temporary),
        "RAY_TMPDIR": os.environ.get("RAY_TMPDIR", kept),
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", compiled),
    }
